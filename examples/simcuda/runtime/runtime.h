/* SPDX-License-Identifier: Apache-2.0
 *
 * runtime.h - how an exported function of libcudart is written, and the driver below
 * it.
 *
 * As NVIDIA's, this library does not name libcuda as needed: it is opened at the first
 * call, and its functions come from cuGetProcAddress. See driver.h for files that are
 * read twice.
 */
#ifndef SIMCUDA_RUNTIME_H
#define SIMCUDA_RUNTIME_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "../core/sim.h"

#define ENTER(name)                                                                    \
	SIM_ENTER(SIM_RUNTIME, name);                                                  \
	runtime_begin(SIM_CALL)

/* Ends the call with an error to be remembered, if it is one. */
#define LEAVE(result) return runtime_end(SIM_CALL, result)

/* Leave at once unless there is a driver and this thread has a context. */
#define LEAVE_WITHOUT_CONTEXT()                                                        \
	do {                                                                           \
		cudaError_t missing_ = runtime_context();                              \
		if (missing_ != cudaSuccess)                                           \
			LEAVE(missing_);                                               \
	} while (0)

#define ERROR_OF(result) ((cudaError_t)(result)) /* they share their numbers */

/* Functions with a suffix for the per-thread default stream, and how they are asked
 * for. X(name of the plain one, suffix, name to ask for) */
#define DRIVER_TWICE(X)                                                                \
	X(cuMemcpy, _ptds, "cuMemcpy")                                                 \
	X(cuMemcpyHtoD_v2, _ptds, "cuMemcpyHtoD")                                      \
	X(cuMemcpyDtoH_v2, _ptds, "cuMemcpyDtoH")                                      \
	X(cuMemcpyDtoD_v2, _ptds, "cuMemcpyDtoD")                                      \
	X(cuMemcpy2DUnaligned_v2, _ptds, "cuMemcpy2DUnaligned")                        \
	X(cuMemcpy3D_v2, _ptds, "cuMemcpy3D")                                          \
	X(cuMemcpy3DPeer, _ptds, "cuMemcpy3DPeer")                                     \
	X(cuMemcpyPeer, _ptds, "cuMemcpyPeer")                                         \
	X(cuMemsetD8_v2, _ptds, "cuMemsetD8")                                          \
	X(cuMemsetD2D8_v2, _ptds, "cuMemsetD2D8")                                      \
	X(cuMemcpyAsync, _ptsz, "cuMemcpyAsync")                                       \
	X(cuMemcpyHtoDAsync_v2, _ptsz, "cuMemcpyHtoDAsync")                            \
	X(cuMemcpyDtoHAsync_v2, _ptsz, "cuMemcpyDtoHAsync")                            \
	X(cuMemcpyDtoDAsync_v2, _ptsz, "cuMemcpyDtoDAsync")                            \
	X(cuMemcpy2DAsync_v2, _ptsz, "cuMemcpy2DAsync")                                \
	X(cuMemcpy3DAsync_v2, _ptsz, "cuMemcpy3DAsync")                                \
	X(cuMemcpy3DPeerAsync, _ptsz, "cuMemcpy3DPeerAsync")                           \
	X(cuMemcpyPeerAsync, _ptsz, "cuMemcpyPeerAsync")                               \
	X(cuMemcpyBatchAsync_v2, _ptsz, "cuMemcpyBatchAsync")                          \
	X(cuMemcpy3DBatchAsync_v2, _ptsz, "cuMemcpy3DBatchAsync")                      \
	X(cuMemcpyWithAttributesAsync, _ptsz, "cuMemcpyWithAttributesAsync")           \
	X(cuMemcpy3DWithAttributesAsync, _ptsz, "cuMemcpy3DWithAttributesAsync")       \
	X(cuMemPrefetchAsync_v2, _ptsz, "cuMemPrefetchAsync")                          \
	X(cuMemsetD8Async, _ptsz, "cuMemsetD8Async")                                   \
	X(cuMemsetD2D8Async, _ptsz, "cuMemsetD2D8Async")                               \
	X(cuMemAllocAsync, _ptsz, "cuMemAllocAsync")                                   \
	X(cuMemAllocFromPoolAsync, _ptsz, "cuMemAllocFromPoolAsync")                   \
	X(cuMemFreeAsync, _ptsz, "cuMemFreeAsync")                                     \
	X(cuLaunchKernel, _ptsz, "cuLaunchKernel")                                     \
	X(cuLaunchKernelEx, _ptsz, "cuLaunchKernelEx")                                 \
	X(cuLaunchCooperativeKernel, _ptsz, "cuLaunchCooperativeKernel")               \
	X(cuLaunchHostFunc_v2, _ptsz, "cuLaunchHostFunc")                              \
	X(cuGraphLaunch, _ptsz, "cuGraphLaunch")                                       \
	X(cuStreamSynchronize, _ptsz, "cuStreamSynchronize")                           \
	X(cuStreamQuery, _ptsz, "cuStreamQuery")                                       \
	X(cuStreamWaitEvent, _ptsz, "cuStreamWaitEvent")                               \
	X(cuEventRecord, _ptsz, "cuEventRecord")                                       \
	X(cuEventRecordWithFlags, _ptsz, "cuEventRecordWithFlags")                     \
	X(cuStreamBeginCapture_v2, _ptsz, "cuStreamBeginCapture")                      \
	X(cuStreamEndCapture, _ptsz, "cuStreamEndCapture")                             \
	X(cuStreamIsCapturing, _ptsz, "cuStreamIsCapturing")                           \
	X(cuStreamGetCaptureInfo_v3, _ptsz, "cuStreamGetCaptureInfo")                  \
	X(cuStreamGetFlags, _ptsz, "cuStreamGetFlags")                                 \
	X(cuStreamGetPriority, _ptsz, "cuStreamGetPriority")                           \
	X(cuStreamGetId, _ptsz, "cuStreamGetId")

#define DRIVER_ONCE(X)                                                                 \
	X(cuInit, "cuInit")                                                            \
	X(cuDriverGetVersion, "cuDriverGetVersion")                                    \
	X(cuDeviceGetCount, "cuDeviceGetCount")                                        \
	X(cuDeviceGetName, "cuDeviceGetName")                                          \
	X(cuDeviceGetAttribute, "cuDeviceGetAttribute")                                \
	X(cuDeviceTotalMem_v2, "cuDeviceTotalMem")                                     \
	X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain")                        \
	X(cuDevicePrimaryCtxReset_v2, "cuDevicePrimaryCtxReset")                       \
	X(cuCtxGetCurrent, "cuCtxGetCurrent")                                          \
	X(cuCtxSetCurrent, "cuCtxSetCurrent")                                          \
	X(cuCtxGetDevice, "cuCtxGetDevice")                                            \
	X(cuCtxGetStreamPriorityRange, "cuCtxGetStreamPriorityRange")                  \
	X(cuStreamCreateWithPriority, "cuStreamCreateWithPriority")                    \
	X(cuStreamCreate, "cuStreamCreate")                                            \
	X(cuStreamDestroy_v2, "cuStreamDestroy")                                       \
	X(cuEventCreate, "cuEventCreate")                                              \
	X(cuEventDestroy_v2, "cuEventDestroy")                                         \
	X(cuEventQuery, "cuEventQuery")                                                \
	X(cuEventSynchronize, "cuEventSynchronize")                                    \
	X(cuEventElapsedTime_v2, "cuEventElapsedTime")                                 \
	X(cuMemAlloc_v2, "cuMemAlloc")                                                 \
	X(cuMemAllocPitch_v2, "cuMemAllocPitch")                                       \
	X(cuMemAllocManaged, "cuMemAllocManaged")                                      \
	X(cuMemFree_v2, "cuMemFree")                                                   \
	X(cuMemHostAlloc, "cuMemHostAlloc")                                            \
	X(cuMemFreeHost, "cuMemFreeHost")                                              \
	X(cuMemHostRegister_v2, "cuMemHostRegister")                                   \
	X(cuMemHostUnregister, "cuMemHostUnregister")                                  \
	X(cuMemHostGetDevicePointer_v2, "cuMemHostGetDevicePointer")                   \
	X(cuMemHostGetFlags, "cuMemHostGetFlags")                                      \
	X(cuMemGetInfo_v2, "cuMemGetInfo")                                             \
	X(cuPointerGetAttribute, "cuPointerGetAttribute")                              \
	X(cuArray3DCreate_v2, "cuArray3DCreate")                                       \
	X(cuArrayDestroy, "cuArrayDestroy")                                            \
	X(cuGraphCreate, "cuGraphCreate")                                              \
	X(cuGraphDestroy, "cuGraphDestroy")                                            \
	X(cuGraphGetNodes, "cuGraphGetNodes")                                          \
	X(cuGraphAddMemcpyNode, "cuGraphAddMemcpyNode")                                \
	X(cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags")                  \
	X(cuGraphExecUpdate_v2, "cuGraphExecUpdate")                                   \
	X(cuGraphExecDestroy, "cuGraphExecDestroy")

struct runtime_driver {
	const struct sim_services *sim;
	/* cuCtxSynchronize came to take a context; the runtime asks for the old form.
	 */
	__typeof__(&cuCtxSynchronize) cuCtxSynchronize;
	__typeof__(&cuGetProcAddress_v2) cuGetProcAddress_v2;
#define X(name, suffix, ask)                                                           \
	__typeof__(&name) name;                                                        \
	__typeof__(&name) name##suffix;
	DRIVER_TWICE(X)
#undef X
#define X(name, ask) __typeof__(&name) name;
	DRIVER_ONCE(X)
#undef X
};

/* Filled by the first call. */
extern struct runtime_driver driver;

void runtime_begin(struct sim_call *call);
cudaError_t runtime_end(struct sim_call *call, cudaError_t result);
/* As runtime_end, but nothing is remembered. */
cudaError_t runtime_end_plain(struct sim_call *call, cudaError_t result);
/* As runtime_end, but cudaErrorNotReady is an answer and no error. */
cudaError_t runtime_end_query(struct sim_call *call, cudaError_t result);
/* Whether there is a driver, initialised. */
cudaError_t runtime_ready(void);
/* And a context on this thread: the device's primary one unless there is another. */
cudaError_t runtime_context(void);
cudaError_t runtime_set_device(int device);
int runtime_device(void);
cudaError_t runtime_last_error(int forget);

/* Where a symbol of the program lies on the device; 0 if it was not registered, or does
 * not hold so many bytes. */
CUdeviceptr runtime_symbol(const void *symbol, size_t offset, size_t size);

CUDA_MEMCPY2D runtime_2d(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
			 size_t width, size_t height);
CUDA_MEMCPY3D runtime_3d(const struct cudaMemcpy3DParms *from);
CUDA_MEMCPY3D_PEER runtime_3d_peer(const struct cudaMemcpy3DPeerParms *from);
CUDA_MEMCPY3D_BATCH_OP runtime_3d_op(const struct cudaMemcpy3DBatchOp *from);
CUlaunchConfig runtime_launch_config(const cudaLaunchConfig_t *from);

static inline uint64_t address_of(const void *pointer)
{
	return (uint64_t)(uintptr_t)pointer;
}

static inline void note_copy(struct sim_call *call, size_t size,
			     enum cudaMemcpyKind kind)
{
	static const uint8_t kinds[] = {SIM_COPY_H2H, SIM_COPY_H2D, SIM_COPY_D2H,
					SIM_COPY_D2D, SIM_COPY_NONE};

	call->size_bytes = size;
	if ((unsigned)kind < sizeof(kinds))
		call->copy_kind = kinds[kind];
}

#endif
