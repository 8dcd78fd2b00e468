/* SPDX-License-Identifier: Apache-2.0
 *
 * state.c - finding the driver, the current device, and the last error.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct runtime_driver driver;

static cudaError_t driver_state = cudaErrorInsufficientDriver;

static __thread struct {
	int device;
	int is_bound; /* a context of that device has been made current */
	cudaError_t last_error;
} thread;

static int ask(const char *name, cuuint64_t flags, int version, void *into)
{
	CUdriverProcAddressQueryResult status;

	if (driver.cuGetProcAddress_v2(name, into, version, flags, &status) ==
	    CUDA_SUCCESS)
		return 1;
	fprintf(stderr,
		"simcuda: libcuda.so.1 has no %s\n"
		"hint: it is another one's; put the simulator's directory first in "
		"LD_LIBRARY_PATH\n",
		name);
	return 0;
}

static int bind_all(void)
{
	const cuuint64_t plain = CU_GET_PROC_ADDRESS_LEGACY_STREAM;
	const cuuint64_t thread_stream = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
	int ok = 1;

#define X(name, suffix, wanted)                                                        \
	ok = ok && ask(wanted, plain, CUDA_VERSION, &driver.name) &&                   \
	     ask(wanted, thread_stream, CUDA_VERSION, &driver.name##suffix);
	DRIVER_TWICE(X)
#undef X
#define X(name, wanted) ok = ok && ask(wanted, plain, CUDA_VERSION, &driver.name);
	DRIVER_ONCE(X)
#undef X
	return ok && ask("cuCtxSynchronize", plain, 12000, &driver.cuCtxSynchronize);
}

static void find_driver(void)
{
	const struct sim_services *(*services)(void);
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);

	if (!library)
		return; /* cudaErrorInsufficientDriver, as NVIDIA's */
	services =
	    (const struct sim_services *(*)(void))dlsym(library, "simcuda_services");
	driver.cuGetProcAddress_v2 =
	    (__typeof__(&cuGetProcAddress_v2))dlsym(library, "cuGetProcAddress_v2");
	if (!services || !driver.cuGetProcAddress_v2 ||
	    services()->version != SIM_SERVICES_VERSION) {
		fprintf(stderr, "simcuda: libcuda.so.1 is not this simulator's\n"
				"hint: put the simulator's directory first in "
				"LD_LIBRARY_PATH\n");
		return;
	}
	driver.sim = services();
	driver.sim->register_apis(__start_sim_apis, __stop_sim_apis);
	if (bind_all())
		driver_state = cudaSuccess;
}

void runtime_begin(struct sim_call *call)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_driver);
	if (driver.sim)
		driver.sim->begin(call);
}

cudaError_t runtime_end_plain(struct sim_call *call, cudaError_t result)
{
	if (driver.sim)
		driver.sim->end(call, (int32_t)result);
	return result;
}

cudaError_t runtime_end(struct sim_call *call, cudaError_t result)
{
	if (result != cudaSuccess)
		thread.last_error = result;
	return runtime_end_plain(call, result);
}

cudaError_t runtime_end_query(struct sim_call *call, cudaError_t result)
{
	if (result != cudaSuccess && result != cudaErrorNotReady)
		thread.last_error = result;
	return runtime_end_plain(call, result);
}

cudaError_t runtime_last_error(int forget)
{
	cudaError_t last = thread.last_error;

	if (forget)
		thread.last_error = cudaSuccess;
	return last;
}

cudaError_t runtime_ready(void)
{
	static __thread int is_initialised;

	if (driver_state != cudaSuccess)
		return driver_state;
	if (!is_initialised) {
		cudaError_t result = ERROR_OF(driver.cuInit(0));

		if (result != cudaSuccess)
			return result;
		is_initialised = 1;
	}
	return cudaSuccess;
}

cudaError_t runtime_context(void)
{
	CUcontext context = NULL;
	cudaError_t result;

	if (SIM_LIKELY(thread.is_bound))
		return cudaSuccess;
	result = runtime_ready();
	if (result == cudaSuccess)
		result = ERROR_OF(driver.cuCtxGetCurrent(&context));
	if (result == cudaSuccess && !context) {
		result =
		    ERROR_OF(driver.cuDevicePrimaryCtxRetain(&context, thread.device));
		if (result == cudaSuccess)
			result = ERROR_OF(driver.cuCtxSetCurrent(context));
	}
	if (result == cudaSuccess)
		thread.is_bound = 1;
	return result;
}

cudaError_t runtime_set_device(int device)
{
	CUcontext context;
	cudaError_t result = runtime_ready();
	int count;

	if (result == cudaSuccess)
		result = ERROR_OF(driver.cuDeviceGetCount(&count));
	if (result != cudaSuccess)
		return result;
	if (device < 0 || device >= count)
		return cudaErrorInvalidDevice;
	/* CUDA 12 and later make the context here. */
	result = ERROR_OF(driver.cuDevicePrimaryCtxRetain(&context, device));
	if (result == cudaSuccess)
		result = ERROR_OF(driver.cuCtxSetCurrent(context));
	if (result == cudaSuccess) {
		thread.device = device;
		thread.is_bound = 1;
	}
	return result;
}

int runtime_device(void)
{
	return thread.device;
}

__attribute__((constructor)) static void load(void)
{
	/* The compiler drops the section of a library that never names it. */
	(void)__start_sim_apis;
}
