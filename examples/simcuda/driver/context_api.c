/* SPDX-License-Identifier: Apache-2.0
 *
 * context_api.c - initialisation, devices, contexts, streams and events.
 */
#define _GNU_SOURCE
#include "../core/clock.h"
#include "driver.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static int is_device(CUdevice device)
{
	return device >= 0 && (uint64_t)device < sim_profile.device_count;
}

CUresult cuInit(unsigned int flags)
{
	ENTER(cuInit);
	LEAVE(flags ? CUDA_ERROR_INVALID_VALUE : state_init());
}

CUresult cuDriverGetVersion(int *version)
{
	ENTER(cuDriverGetVersion);
	if (!version)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*version = CUDA_VERSION;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGetCount(int *count)
{
	ENTER(cuDeviceGetCount);
	LEAVE_UNLESS_READY();
	if (!count)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*count = (int)sim_profile.device_count;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	ENTER(cuDeviceGet);
	LEAVE_UNLESS_READY();
	if (!device)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	if (!is_device(ordinal))
		LEAVE(CUDA_ERROR_INVALID_DEVICE);
	*device = ordinal;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
	ENTER(cuDeviceGetName);
	LEAVE_UNLESS_READY();
	if (!is_device(device))
		LEAVE(CUDA_ERROR_INVALID_DEVICE);
	if (!name || length < 1)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	snprintf(name, (size_t)length, "%s", sim_profile.device_name);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice device)
{
	ENTER(cuDeviceTotalMem_v2);
	LEAVE_UNLESS_READY();
	if (!is_device(device))
		LEAVE(CUDA_ERROR_INVALID_DEVICE);
	*size = sim_profile.device_memory_bytes;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
	ENTER(cuDeviceGetAttribute);
	LEAVE_UNLESS_READY();
	if (!is_device(device))
		LEAVE(CUDA_ERROR_INVALID_DEVICE);
	if (!value)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
		*value = (int)sim_profile.capability_major;
		break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
		*value = (int)sim_profile.capability_minor;
		break;
	case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
		*value = (int)sim_profile.copies_at_once;
		break;
	case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
		*value = !sim_profile.confidential;
		break;
	case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
	case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
	case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
	case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
		*value = 1;
		break;
	case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
		*value = 32;
		break;
	case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
		*value = 1024;
		break;
	default: /* a feature that is not simulated is not there */
		*value = 0;
	}
	LEAVE(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	ENTER(cuDevicePrimaryCtxRetain);
	LEAVE_UNLESS_READY();
	if (!context)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(context_retain_primary(device, (struct sim_context **)context));
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	ENTER(cuDevicePrimaryCtxRelease_v2);
	LEAVE_UNLESS_READY();
	LEAVE(context_release_primary(device, 0));
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	ENTER(cuDevicePrimaryCtxReset_v2);
	LEAVE_UNLESS_READY();
	LEAVE(context_release_primary(device, 1));
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	ENTER(cuDevicePrimaryCtxGetState);
	LEAVE_UNLESS_READY();
	if (!is_device(device))
		LEAVE(CUDA_ERROR_INVALID_DEVICE);
	*active = context_primary_state(device, flags);
	LEAVE(CUDA_SUCCESS);
}

static CUresult make_context(CUcontext *made, unsigned int flags, CUdevice device)
{
	struct sim_context *context;
	CUresult result = state_check();

	if (result == CUDA_SUCCESS && !made)
		result = CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		result = context_create(device, flags, &context);
	if (result != CUDA_SUCCESS)
		return result;
	*made = (CUcontext)context;
	return context_push(context);
}

CUresult cuCtxCreate_v2(CUcontext *made, unsigned int flags, CUdevice device)
{
	ENTER(cuCtxCreate_v2);
	LEAVE(make_context(made, flags, device));
}

CUresult cuCtxCreate_v4(CUcontext *made, CUctxCreateParams *params, unsigned int flags,
			CUdevice device)
{
	ENTER(cuCtxCreate_v4);
	(void)params; /* affinities and graphics: nothing to simulate */
	LEAVE(make_context(made, flags, device));
}

CUresult cuCtxDestroy_v2(CUcontext value)
{
	ENTER(cuCtxDestroy_v2);
	struct sim_context *context = handle_check(value, HANDLE_CONTEXT);
	LEAVE_UNLESS_READY();
	if (!context || context->is_primary)
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	if (context_current() == context)
		context_pop();
	LEAVE(context_destroy(context));
}

CUresult cuCtxPushCurrent_v2(CUcontext value)
{
	ENTER(cuCtxPushCurrent_v2);
	struct sim_context *context = handle_check(value, HANDLE_CONTEXT);
	LEAVE_UNLESS_READY();
	LEAVE(context ? context_push(context) : CUDA_ERROR_INVALID_CONTEXT);
}

CUresult cuCtxPopCurrent_v2(CUcontext *value)
{
	ENTER(cuCtxPopCurrent_v2);
	struct sim_context *context;
	LEAVE_UNLESS_READY();
	context = context_pop();
	if (value)
		*value = (CUcontext)context;
	LEAVE(context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
}

CUresult cuCtxSetCurrent(CUcontext value)
{
	ENTER(cuCtxSetCurrent);
	struct sim_context *context = handle_check(value, HANDLE_CONTEXT);
	LEAVE_UNLESS_READY();
	if (value && !context)
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	LEAVE(context_set(context));
}

CUresult cuCtxGetCurrent(CUcontext *value)
{
	ENTER(cuCtxGetCurrent);
	LEAVE_UNLESS_READY();
	if (!value)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*value = (CUcontext)context_current();
	LEAVE(CUDA_SUCCESS);
}

CUresult cuCtxGetDevice(CUdevice *device)
{
	ENTER(cuCtxGetDevice);
	LEAVE_UNLESS_READY();
	if (!context_current())
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	*device = context_current()->device;
	LEAVE(CUDA_SUCCESS);
}

static CUresult synchronize(struct sim_context *context)
{
	struct sim_stream *stream;
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	if (!context)
		return CUDA_ERROR_INVALID_CONTEXT;
	pthread_mutex_lock(&sim_lock);
	for (stream = context->streams; stream; stream = stream->next) {
		if (stream->capture) {
			graph_invalidate(stream->capture);
			result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
		}
	}
	pthread_mutex_unlock(&sim_lock);
	if (result != CUDA_SUCCESS)
		return result;
	context_wait(context);
	clock_wait_until(sim_now_ns() + profile_jitter(sim_profile.sync_host_ns));
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
	ENTER(cuCtxSynchronize);
	LEAVE(synchronize(context_current()));
}

CUresult cuCtxSynchronize_v2(CUcontext value)
{
	ENTER(cuCtxSynchronize_v2);
	LEAVE(synchronize(handle_check(value, HANDLE_CONTEXT)));
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	ENTER(cuCtxGetStreamPriorityRange);
	LEAVE_UNLESS_READY();
	if (least)
		*least = 0;
	if (greatest)
		*greatest = -5;
	LEAVE(CUDA_SUCCESS);
}

static CUresult make_stream(CUstream *made, unsigned int flags, int priority)
{
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	if (!context_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!made || flags & ~(unsigned int)CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	/* Priorities are known and kept; they order nothing here. */
	return stream_create(context_current(), flags, priority,
			     (struct sim_stream **)made);
}

CUresult cuStreamCreate(CUstream *made, unsigned int flags)
{
	ENTER(cuStreamCreate);
	LEAVE(make_stream(made, flags, 0));
}

CUresult cuStreamCreateWithPriority(CUstream *made, unsigned int flags, int priority)
{
	ENTER(cuStreamCreateWithPriority);
	LEAVE(make_stream(made, flags, priority));
}

CUresult cuStreamDestroy_v2(CUstream value)
{
	ENTER(cuStreamDestroy_v2);
	struct sim_stream *stream = handle_check(value, HANDLE_STREAM);
	SIM_CALL->stream = address_of(value);
	LEAVE_UNLESS_READY();
	if (!stream || stream == stream->context->legacy)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	stream_destroy(stream);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuEventCreate(CUevent *made, unsigned int flags)
{
	ENTER(cuEventCreate);
	struct sim_event *event;
	LEAVE_UNLESS_READY();
	if (!context_current())
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	if (!made || flags & ~7u)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	event = handle_new(HANDLE_EVENT);
	if (!event)
		LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
	event->flags = flags;
	*made = (CUevent)event;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuEventDestroy_v2(CUevent value)
{
	ENTER(cuEventDestroy_v2);
	struct sim_event *event = handle_check(value, HANDLE_EVENT);
	LEAVE_UNLESS_READY();
	if (!event)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	op_put(event->op);
	handle_free(event);
	LEAVE(CUDA_SUCCESS);
}

/* What the event recorded, with a reference; NULL if it never did. */
static struct sim_op *recorded(struct sim_event *event)
{
	struct sim_op *op;

	pthread_mutex_lock(&sim_lock);
	op = event->op;
	if (op)
		__atomic_fetch_add(&op->refs, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&sim_lock);
	return op;
}

CUresult cuEventQuery(CUevent value)
{
	ENTER(cuEventQuery);
	struct sim_event *event = handle_check(value, HANDLE_EVENT);
	struct sim_op *op;
	int over;
	LEAVE_UNLESS_READY();
	if (!event)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	if (event->capture && event->capture->origin)
		LEAVE(CUDA_ERROR_CAPTURED_EVENT);
	clock_wait_until(SIM_CALL->entry_ns +
			 profile_jitter(sim_profile.query_host_ns));
	op = recorded(event);
	over = !op || op_is_over(op);
	op_put(op);
	LEAVE(over ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY);
}

CUresult cuEventSynchronize(CUevent value)
{
	ENTER(cuEventSynchronize);
	struct sim_event *event = handle_check(value, HANDLE_EVENT);
	struct sim_op *op;
	LEAVE_UNLESS_READY();
	if (!event)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	if (event->capture && event->capture->origin)
		LEAVE(CUDA_ERROR_CAPTURED_EVENT);
	op = recorded(event);
	if (op)
		op_wait(op);
	op_put(op);
	clock_wait_until(sim_now_ns() + profile_jitter(sim_profile.sync_host_ns));
	LEAVE(CUDA_SUCCESS);
}

CUresult cuEventElapsedTime_v2(float *elapsed_ms, CUevent start_value,
			       CUevent end_value)
{
	ENTER(cuEventElapsedTime_v2);
	struct sim_event *start = handle_check(start_value, HANDLE_EVENT);
	struct sim_event *end = handle_check(end_value, HANDLE_EVENT);
	CUresult result = CUDA_SUCCESS;
	struct sim_op *from, *to;
	LEAVE_UNLESS_READY();
	if (!start || !end ||
	    (start->flags | end->flags) & (unsigned int)CU_EVENT_DISABLE_TIMING)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	from = recorded(start);
	to = recorded(end);
	if (!from || !to)
		result = CUDA_ERROR_INVALID_HANDLE;
	else if (!op_is_over(from) || !op_is_over(to))
		result = CUDA_ERROR_NOT_READY;
	else
		*elapsed_ms =
		    (float)((double)(int64_t)(to->end_ns - from->end_ns) / 1e6);
	op_put(from);
	op_put(to);
	LEAVE(result);
}
