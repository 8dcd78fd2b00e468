/* SPDX-License-Identifier: Apache-2.0
 *
 * streams.inc.h - what the runtime API does on a stream, copies aside; read twice, see
 * driver.h.
 */

cudaError_t SZ(cudaLaunchKernel)(const void *function, dim3 grid, dim3 block,
				 void **args, size_t shared_bytes, cudaStream_t stream)
{
	ENTER(SZ(cudaLaunchKernel));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!function)
		LEAVE(cudaErrorInvalidDeviceFunction);
	LEAVE(ERROR_OF(DRIVER_SZ(cuLaunchKernel)(
	    (CUfunction)(uintptr_t)function, grid.x, grid.y, grid.z, block.x, block.y,
	    block.z, (unsigned int)shared_bytes, stream, args, NULL)));
}

cudaError_t SZ(cudaLaunchKernelExC)(const cudaLaunchConfig_t *config,
				    const void *function, void **args)
{
	ENTER(SZ(cudaLaunchKernelExC));
	CUlaunchConfig launch;
	LEAVE_WITHOUT_CONTEXT();
	if (!config)
		LEAVE(cudaErrorInvalidValue);
	SIM_CALL->stream = address_of(config->stream);
	if (!function)
		LEAVE(cudaErrorInvalidDeviceFunction);
	launch = runtime_launch_config(config);
	LEAVE(ERROR_OF(DRIVER_SZ(cuLaunchKernelEx)(
	    &launch, (CUfunction)(uintptr_t)function, args, NULL)));
}

cudaError_t SZ(cudaLaunchCooperativeKernel)(const void *function, dim3 grid, dim3 block,
					    void **args, size_t shared_bytes,
					    cudaStream_t stream)
{
	ENTER(SZ(cudaLaunchCooperativeKernel));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!function)
		LEAVE(cudaErrorInvalidDeviceFunction);
	LEAVE(ERROR_OF(DRIVER_SZ(cuLaunchCooperativeKernel)(
	    (CUfunction)(uintptr_t)function, grid.x, grid.y, grid.z, block.x, block.y,
	    block.z, (unsigned int)shared_bytes, stream, args)));
}

cudaError_t SZ(cudaLaunchHostFunc)(cudaStream_t stream, cudaHostFn_t function,
				   void *data)
{
	ENTER(SZ(cudaLaunchHostFunc));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuLaunchHostFunc_v2)(stream, function, data, 0)));
}

cudaError_t SZ(cudaLaunchHostFunc_v2)(cudaStream_t stream, cudaHostFn_t function,
				      void *data, unsigned int sync_mode)
{
	ENTER(SZ(cudaLaunchHostFunc_v2));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(
	    DRIVER_SZ(cuLaunchHostFunc_v2)(stream, function, data, sync_mode)));
}

cudaError_t SZ(cudaGraphLaunch)(cudaGraphExec_t graph, cudaStream_t stream)
{
	ENTER(SZ(cudaGraphLaunch));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuGraphLaunch)(graph, stream)));
}

cudaError_t SZ(cudaStreamSynchronize)(cudaStream_t stream)
{
	ENTER(SZ(cudaStreamSynchronize));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamSynchronize)(stream)));
}

cudaError_t SZ(cudaStreamQuery)(cudaStream_t stream)
{
	ENTER(SZ(cudaStreamQuery));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	return runtime_end_query(SIM_CALL, ERROR_OF(DRIVER_SZ(cuStreamQuery)(stream)));
}

cudaError_t SZ(cudaStreamWaitEvent)(cudaStream_t stream, cudaEvent_t event,
				    unsigned int flags)
{
	ENTER(SZ(cudaStreamWaitEvent));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamWaitEvent)(stream, event, flags)));
}

cudaError_t SZ(cudaEventRecord)(cudaEvent_t event, cudaStream_t stream)
{
	ENTER(SZ(cudaEventRecord));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuEventRecord)(event, stream)));
}

cudaError_t SZ(cudaEventRecordWithFlags)(cudaEvent_t event, cudaStream_t stream,
					 unsigned int flags)
{
	ENTER(SZ(cudaEventRecordWithFlags));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuEventRecordWithFlags)(event, stream, flags)));
}

cudaError_t SZ(cudaMallocAsync)(void **address, size_t size, cudaStream_t stream)
{
	ENTER(SZ(cudaMallocAsync));
	SIM_CALL->size_bytes = size;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(
	    ERROR_OF(DRIVER_SZ(cuMemAllocAsync)((CUdeviceptr *)address, size, stream)));
}

cudaError_t SZ(cudaMallocFromPoolAsync)(void **address, size_t size, cudaMemPool_t pool,
					cudaStream_t stream)
{
	ENTER(SZ(cudaMallocFromPoolAsync));
	SIM_CALL->size_bytes = size;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemAllocFromPoolAsync)((CUdeviceptr *)address, size,
							  pool, stream)));
}

cudaError_t SZ(cudaFreeAsync)(void *address, cudaStream_t stream)
{
	ENTER(SZ(cudaFreeAsync));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemFreeAsync)(address_of(address), stream)));
}

cudaError_t SZ(cudaStreamBeginCapture)(cudaStream_t stream,
				       enum cudaStreamCaptureMode mode)
{
	ENTER(SZ(cudaStreamBeginCapture));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(
	    DRIVER_SZ(cuStreamBeginCapture_v2)(stream, (CUstreamCaptureMode)mode)));
}

cudaError_t SZ(cudaStreamEndCapture)(cudaStream_t stream, cudaGraph_t *graph)
{
	ENTER(SZ(cudaStreamEndCapture));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamEndCapture)(stream, graph)));
}

cudaError_t SZ(cudaStreamIsCapturing)(cudaStream_t stream,
				      enum cudaStreamCaptureStatus *status)
{
	ENTER(SZ(cudaStreamIsCapturing));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(
	    DRIVER_SZ(cuStreamIsCapturing)(stream, (CUstreamCaptureStatus *)status)));
}

cudaError_t SZ(cudaStreamGetCaptureInfo)(cudaStream_t stream,
					 enum cudaStreamCaptureStatus *status,
					 unsigned long long *id, cudaGraph_t *graph,
					 const cudaGraphNode_t **dependencies,
					 const cudaGraphEdgeData **edges, size_t *count)
{
	ENTER(SZ(cudaStreamGetCaptureInfo));
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamGetCaptureInfo_v3)(
	    stream, (CUstreamCaptureStatus *)status, (cuuint64_t *)id, graph,
	    dependencies, (const CUgraphEdgeData **)edges, count)));
}

cudaError_t SZ(cudaStreamGetFlags)(cudaStream_t stream, unsigned int *flags)
{
	ENTER(SZ(cudaStreamGetFlags));
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamGetFlags)(stream, flags)));
}

cudaError_t SZ(cudaStreamGetPriority)(cudaStream_t stream, int *priority)
{
	ENTER(SZ(cudaStreamGetPriority));
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamGetPriority)(stream, priority)));
}

cudaError_t SZ(cudaStreamGetId)(cudaStream_t stream, unsigned long long *id)
{
	ENTER(SZ(cudaStreamGetId));
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuStreamGetId)(stream, id)));
}
