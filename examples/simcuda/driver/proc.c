/* SPDX-License-Identifier: Apache-2.0
 *
 * proc.c - how other libraries find the driver's functions, and the simulator's own.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static void *own_library;

/* The version of CUDA that a function's later form came with, where that matters: who
 * asks for an older one gets the form of that day. Others have a _v2 since CUDA 4. */
static const struct {
	const char *name;
	const char *suffix;
	int since;
} forms[] = {
    {"cuCtxCreate", "_v4", 12050},          {"cuMemcpyBatchAsync", "_v2", 13000},
    {"cuMemcpy3DBatchAsync", "_v2", 13000}, {"cuMemPrefetchAsync", "_v2", 13000},
    {"cuCtxSynchronize", "_v2", 13000},     {"cuEventElapsedTime", "_v2", 12080},
    {"cuLaunchHostFunc", "_v2", 13010},     {"cuStreamGetCaptureInfo", "_v3", 12030},
    {"cuStreamWaitValue32", "_v2", 11070},  {"cuStreamWaitValue64", "_v2", 11070},
    {"cuGetProcAddress", "_v2", 12000},     {"cuGraphExecUpdate", "_v2", 12000},
};

static void *look_up(const char *name, const char *form, cuuint64_t flags)
{
	static const char *const suffixes[] = {"_ptsz", "_ptds", ""};
	int from = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM ? 0 : 2;
	char symbol[256];
	void *found = NULL;

	for (; from < 3 && !found; from++) {
		snprintf(symbol, sizeof(symbol), "%s%s%s", name, form, suffixes[from]);
		found = dlsym(own_library, symbol);
	}
	return found;
}

static void *find_function(const char *name, int version, cuuint64_t flags)
{
	static const char *const newest_first[] = {"_v4", "_v3", "_v2", ""};
	unsigned i, j;

	for (j = 0; j < 4; j++) {
		int too_new = 0;
		void *found;

		for (i = 0; i < sizeof(forms) / sizeof(*forms); i++)
			if (strcmp(forms[i].name, name) == 0 &&
			    strcmp(forms[i].suffix, newest_first[j]) == 0 &&
			    version < forms[i].since)
				too_new = 1;
		if (too_new)
			continue;
		found = look_up(name, newest_first[j], flags);
		if (found)
			return found;
	}
	return NULL;
}

static pthread_once_t own_library_once = PTHREAD_ONCE_INIT;

static void open_own_library(void)
{
	Dl_info info;

	if (dladdr(&own_library, &info))
		own_library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

static CUresult proc_address(const char *name, void **found, int version,
			     cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
	pthread_once(&own_library_once, open_own_library);
	if (!name || !found)
		return CUDA_ERROR_INVALID_VALUE;
	*found =
	    strncmp(name, "cu", 2) == 0 ? find_function(name, version, flags) : NULL;
	if (status)
		*status = *found ? CU_GET_PROC_ADDRESS_SUCCESS
				 : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return *found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char *name, void **found, int version, cuuint64_t flags)
{
	ENTER(cuGetProcAddress);
	LEAVE(proc_address(name, found, version, flags, NULL));
}

CUresult cuGetProcAddress_v2(const char *name, void **found, int version,
			     cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
	ENTER(cuGetProcAddress_v2);
	LEAVE(proc_address(name, found, version, flags, status));
}

/* NVIDIA's own tables behind the API: there are none. */
CUresult cuGetExportTable(const void **table, const CUuuid *id)
{
	ENTER(cuGetExportTable);
	(void)id;
	if (!table)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*table = NULL;
	LEAVE(CUDA_ERROR_NOT_FOUND);
}

static const struct {
	CUresult code;
	const char *name, *text;
} errors[] = {
#define ERROR(code, text) {code, #code, text}
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "not permitted in this state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "memory is registered already"),
    ERROR(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "memory is not registered"),
    ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_SYSTEM_NOT_READY, "system not ready: see the profile's error"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not permitted while capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE, "two captures would merge"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture ended on another stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "capture depends on uncaptured work"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture"),
    ERROR(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the graph's topology changed"),
#undef ERROR
};

static const char *describe(CUresult code, int want_name)
{
	unsigned i;

	for (i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		if (errors[i].code == code)
			return want_name ? errors[i].name : errors[i].text;
	return NULL;
}

CUresult cuGetErrorName(CUresult code, const char **name)
{
	ENTER(cuGetErrorName);
	*name = describe(code, 1);
	LEAVE(*name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuGetErrorString(CUresult code, const char **text)
{
	ENTER(cuGetErrorString);
	*text = describe(code, 0);
	LEAVE(*text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

static uint64_t collective_ns(uint64_t size_bytes)
{
	return profile_jitter(
	    sim_profile.collective_latency_ns +
	    profile_transfer_ns(size_bytes, sim_profile.collective_gb_per_s));
}

static int is_device_range(const void *address, uint64_t size_bytes)
{
	struct range range;

	return memory_find(address_of(address), &range) &&
	       memory_holds(&range, address_of(address), size_bytes);
}

const struct sim_services *simcuda_services(void)
{
	static const struct sim_services services = {
	    .version = SIM_SERVICES_VERSION,
	    .register_apis = truth_register,
	    .begin = truth_begin,
	    .end = truth_end,
	    .special_kernel = kernel_new_special,
	    .collective_ns = collective_ns,
	    .is_device_range = is_device_range,
	};

	return &services;
}
