/* SPDX-License-Identifier: Apache-2.0
 *
 * device.c - devices, streams, events, graphs and errors of the runtime API.
 */
#include <string.h>

#include "runtime.h"

cudaError_t cudaGetDeviceCount(int *count)
{
	ENTER(cudaGetDeviceCount);
	cudaError_t result = runtime_ready();
	if (count)
		*count = 0;
	if (result == cudaSuccess)
		result = count ? ERROR_OF(driver.cuDeviceGetCount(count))
			       : cudaErrorInvalidValue;
	LEAVE(result);
}

cudaError_t cudaSetDevice(int device)
{
	ENTER(cudaSetDevice);
	LEAVE(runtime_set_device(device));
}

cudaError_t cudaGetDevice(int *device)
{
	ENTER(cudaGetDevice);
	cudaError_t result = runtime_ready();
	if (result != cudaSuccess)
		LEAVE(result);
	if (!device)
		LEAVE(cudaErrorInvalidValue);
	*device = runtime_device();
	LEAVE(cudaSuccess);
}

cudaError_t cudaSetDeviceFlags(unsigned int flags)
{
	ENTER(cudaSetDeviceFlags);
	(void)flags; /* how a wait is spent: this one always sleeps, then spins */
	LEAVE(runtime_ready());
}

cudaError_t cudaGetDeviceFlags(unsigned int *flags)
{
	ENTER(cudaGetDeviceFlags);
	if (!flags)
		LEAVE(cudaErrorInvalidValue);
	*flags = 0;
	LEAVE(runtime_ready());
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute,
				   int device)
{
	ENTER(cudaDeviceGetAttribute);
	cudaError_t result = runtime_ready();
	if (result == cudaSuccess)
		result = ERROR_OF(driver.cuDeviceGetAttribute(
		    value, (CUdevice_attribute)attribute, device));
	LEAVE(result);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
	ENTER(cudaGetDeviceProperties);
	cudaError_t result = runtime_ready();
	size_t total_bytes;
	if (result != cudaSuccess)
		LEAVE(result);
	if (!properties)
		LEAVE(cudaErrorInvalidValue);
	memset(properties, 0, sizeof(*properties));
	result = ERROR_OF(
	    driver.cuDeviceGetName(properties->name, sizeof(properties->name), device));
	if (result != cudaSuccess)
		LEAVE(result);
	driver.cuDeviceTotalMem_v2(&total_bytes, device);
	properties->totalGlobalMem = total_bytes;
	driver.cuDeviceGetAttribute(
	    &properties->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
	driver.cuDeviceGetAttribute(
	    &properties->minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
	driver.cuDeviceGetAttribute(&properties->asyncEngineCount,
				    CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, device);
	properties->warpSize = 32;
	properties->maxThreadsPerBlock = 1024;
	properties->unifiedAddressing = 1;
	properties->managedMemory = 1;
	LEAVE(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void)
{
	ENTER(cudaDeviceSynchronize);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuCtxSynchronize()));
}

cudaError_t cudaDeviceReset(void)
{
	ENTER(cudaDeviceReset);
	cudaError_t result = runtime_ready();
	if (result == cudaSuccess)
		result = ERROR_OF(driver.cuDevicePrimaryCtxReset_v2(runtime_device()));
	if (result == cudaSuccess)
		result = runtime_set_device(runtime_device());
	LEAVE(result);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
	ENTER(cudaDeviceGetStreamPriorityRange);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuCtxGetStreamPriorityRange(least, greatest)));
}

cudaError_t cudaDriverGetVersion(int *version)
{
	ENTER(cudaDriverGetVersion);
	if (!version)
		LEAVE(cudaErrorInvalidValue);
	*version = 0; /* no driver is no error of this call */
	if (driver.sim)
		driver.cuDriverGetVersion(version);
	LEAVE(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
	ENTER(cudaRuntimeGetVersion);
	if (!version)
		LEAVE(cudaErrorInvalidValue);
	*version = CUDART_VERSION;
	LEAVE(cudaSuccess);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
	ENTER(cudaStreamCreate);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuStreamCreate(stream, 0)));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
	ENTER(cudaStreamCreateWithFlags);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuStreamCreate(stream, flags)));
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags,
					 int priority)
{
	ENTER(cudaStreamCreateWithPriority);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuStreamCreateWithPriority(stream, flags, priority)));
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
	ENTER(cudaStreamDestroy);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuStreamDestroy_v2(stream)));
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
	ENTER(cudaEventCreate);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuEventCreate(event, 0)));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
	ENTER(cudaEventCreateWithFlags);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuEventCreate(event, flags)));
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
	ENTER(cudaEventDestroy);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuEventDestroy_v2(event)));
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
	ENTER(cudaEventQuery);
	LEAVE_WITHOUT_CONTEXT();
	return runtime_end_query(SIM_CALL, ERROR_OF(driver.cuEventQuery(event)));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	ENTER(cudaEventSynchronize);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuEventSynchronize(event)));
}

cudaError_t cudaEventElapsedTime(float *elapsed_ms, cudaEvent_t start, cudaEvent_t end)
{
	ENTER(cudaEventElapsedTime);
	LEAVE_WITHOUT_CONTEXT();
	return runtime_end_query(
	    SIM_CALL, ERROR_OF(driver.cuEventElapsedTime_v2(elapsed_ms, start, end)));
}

cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned int flags)
{
	ENTER(cudaGraphCreate);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphCreate(graph, flags)));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
	ENTER(cudaGraphDestroy);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphDestroy(graph)));
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
	ENTER(cudaGraphGetNodes);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphGetNodes(graph, nodes, count)));
}

cudaError_t cudaGraphAddMemcpyNode(cudaGraphNode_t *node, cudaGraph_t graph,
				   const cudaGraphNode_t *dependencies, size_t count,
				   const struct cudaMemcpy3DParms *params)
{
	ENTER(cudaGraphAddMemcpyNode);
	CUDA_MEMCPY3D copy;
	LEAVE_WITHOUT_CONTEXT();
	if (!params)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d(params);
	LEAVE(ERROR_OF(driver.cuGraphAddMemcpyNode(node, graph, dependencies, count,
						   &copy, NULL)));
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t *node, cudaGraph_t graph,
				     const cudaGraphNode_t *dependencies, size_t count,
				     void *dst, const void *src, size_t size,
				     enum cudaMemcpyKind kind)
{
	ENTER(cudaGraphAddMemcpyNode1D);
	struct cudaMemcpy3DParms params = {
	    .srcPtr = {.ptr = (void *)(uintptr_t)src, .pitch = size, .ysize = 1},
	    .dstPtr = {.ptr = dst, .pitch = size, .ysize = 1},
	    .extent = {.width = size, .height = 1, .depth = 1},
	    .kind = kind};
	CUDA_MEMCPY3D copy;
	note_copy(SIM_CALL, size, kind);
	LEAVE_WITHOUT_CONTEXT();
	copy = runtime_3d(&params);
	LEAVE(ERROR_OF(driver.cuGraphAddMemcpyNode(node, graph, dependencies, count,
						   &copy, NULL)));
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph,
				 unsigned long long flags)
{
	ENTER(cudaGraphInstantiate);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphInstantiateWithFlags(made, graph, flags)));
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
					  unsigned long long flags)
{
	ENTER(cudaGraphInstantiateWithFlags);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphInstantiateWithFlags(made, graph, flags)));
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
				cudaGraphExecUpdateResultInfo *info)
{
	ENTER(cudaGraphExecUpdate);
	CUgraphExecUpdateResultInfo from;
	cudaError_t result;
	LEAVE_WITHOUT_CONTEXT();
	if (!info)
		LEAVE(cudaErrorInvalidValue);
	result = ERROR_OF(driver.cuGraphExecUpdate_v2(exec, graph, &from));
	memset(info, 0, sizeof(*info));
	info->result = (enum cudaGraphExecUpdateResult)from.result;
	LEAVE(result);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
	ENTER(cudaGraphExecDestroy);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuGraphExecDestroy(exec)));
}

cudaError_t cudaGetLastError(void)
{
	ENTER(cudaGetLastError);
	return runtime_end_plain(SIM_CALL, runtime_last_error(1));
}

cudaError_t cudaPeekAtLastError(void)
{
	ENTER(cudaPeekAtLastError);
	return runtime_end_plain(SIM_CALL, runtime_last_error(0));
}

static const struct {
	cudaError_t code;
	const char *name, *text;
} errors[] = {
#define ERROR(code, text) {code, #code, text}
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInitializationError, "initialization error"),
    ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    ERROR(cudaErrorInvalidSymbol, "invalid device symbol"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient"),
    ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorDeviceUninitialized, "invalid device context"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "not permitted in this state"),
    ERROR(cudaErrorSymbolNotFound, "named symbol not found"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorHostMemoryAlreadyRegistered, "memory is registered already"),
    ERROR(cudaErrorHostMemoryNotRegistered, "memory is not registered"),
    ERROR(cudaErrorNotPermitted, "operation not permitted"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorSystemNotReady, "system not ready: see the profile's error"),
    ERROR(cudaErrorStreamCaptureUnsupported, "not permitted while capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "the capture was invalidated"),
    ERROR(cudaErrorStreamCaptureUnmatched, "capture ended on another stream"),
    ERROR(cudaErrorStreamCaptureIsolation, "capture depends on uncaptured work"),
    ERROR(cudaErrorCapturedEvent, "the event was recorded in a capture"),
    ERROR(cudaErrorGraphExecUpdateFailure, "the graph's topology changed"),
#undef ERROR
};

const char *cudaGetErrorName(cudaError_t code)
{
	unsigned i;

	for (i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		if (errors[i].code == code)
			return errors[i].name;
	return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t code)
{
	unsigned i;

	for (i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		if (errors[i].code == code)
			return errors[i].text;
	return "unrecognized error code";
}
