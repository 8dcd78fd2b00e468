/* SPDX-License-Identifier: Apache-2.0
 *
 * streams.inc.h - what the driver API does on a stream, copies aside; read twice, see
 * driver.h.
 */

CUresult SZ(cuLaunchKernel)(CUfunction function, unsigned int grid_x,
			    unsigned int grid_y, unsigned int grid_z,
			    unsigned int block_x, unsigned int block_y,
			    unsigned int block_z, unsigned int shared_bytes,
			    CUstream stream, void **params, void **extra)
{
	ENTER(SZ(cuLaunchKernel));
	(void)shared_bytes, (void)extra; /* nothing is computed */
	if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(kernel_launch(SIM_CALL, function, stream, PER_THREAD, params));
}

CUresult SZ(cuLaunchKernelEx)(const CUlaunchConfig *config, CUfunction function,
			      void **params, void **extra)
{
	ENTER(SZ(cuLaunchKernelEx));
	(void)extra; /* nothing is computed */
	if (!config || !config->gridDimX || !config->gridDimY || !config->gridDimZ ||
	    !config->blockDimX || !config->blockDimY || !config->blockDimZ)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(kernel_launch(SIM_CALL, function, config->hStream, PER_THREAD, params));
}

CUresult SZ(cuLaunchCooperativeKernel)(CUfunction function, unsigned int grid_x,
				       unsigned int grid_y, unsigned int grid_z,
				       unsigned int block_x, unsigned int block_y,
				       unsigned int block_z, unsigned int shared_bytes,
				       CUstream stream, void **params)
{
	ENTER(SZ(cuLaunchCooperativeKernel));
	(void)shared_bytes; /* nothing is computed */
	if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(kernel_launch(SIM_CALL, function, stream, PER_THREAD, params));
}

CUresult SZ(cuGraphLaunch)(CUgraphExec value, CUstream stream)
{
	ENTER(SZ(cuGraphLaunch));
	struct sim_graph_exec *exec = handle_check(value, HANDLE_GRAPH_EXEC);
	SIM_CALL->stream = address_of(stream);
	if (!exec)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	LEAVE(graph_launch(SIM_CALL, exec, stream, PER_THREAD));
}

CUresult SZ(cuLaunchHostFunc)(CUstream stream, CUhostFn function, void *data)
{
	ENTER(SZ(cuLaunchHostFunc));
	LEAVE(host_function(SIM_CALL, stream, function, data, PER_THREAD));
}

CUresult SZ(cuLaunchHostFunc_v2)(CUstream stream, CUhostFn function, void *data,
				 unsigned int sync_mode)
{
	ENTER(SZ(cuLaunchHostFunc_v2));
	(void)sync_mode; /* how the device would wait for the host */
	LEAVE(host_function(SIM_CALL, stream, function, data, PER_THREAD));
}

CUresult SZ(cuStreamSynchronize)(CUstream stream)
{
	ENTER(SZ(cuStreamSynchronize));
	LEAVE(stream_synchronize(SIM_CALL, stream, PER_THREAD));
}

CUresult SZ(cuStreamQuery)(CUstream stream)
{
	ENTER(SZ(cuStreamQuery));
	LEAVE(stream_query(SIM_CALL, stream, PER_THREAD));
}

CUresult SZ(cuStreamWaitEvent)(CUstream stream, CUevent event, unsigned int flags)
{
	ENTER(SZ(cuStreamWaitEvent));
	if (flags & ~(unsigned int)CU_EVENT_WAIT_EXTERNAL)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(event_wait_in_stream(SIM_CALL, stream, event, PER_THREAD));
}

CUresult SZ(cuEventRecord)(CUevent event, CUstream stream)
{
	ENTER(SZ(cuEventRecord));
	LEAVE(event_record(SIM_CALL, event, stream, PER_THREAD));
}

CUresult SZ(cuEventRecordWithFlags)(CUevent event, CUstream stream, unsigned int flags)
{
	ENTER(SZ(cuEventRecordWithFlags));
	if (flags & ~(unsigned int)CU_EVENT_RECORD_EXTERNAL)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(event_record(SIM_CALL, event, stream, PER_THREAD));
}

CUresult SZ(cuStreamWaitValue32)(CUstream stream, CUdeviceptr address, cuuint32_t value,
				 unsigned int flags)
{
	ENTER(SZ(cuStreamWaitValue32));
	LEAVE(wait_value(SIM_CALL, stream, address, value, 4, flags, PER_THREAD));
}

CUresult SZ(cuStreamWaitValue64)(CUstream stream, CUdeviceptr address, cuuint64_t value,
				 unsigned int flags)
{
	ENTER(SZ(cuStreamWaitValue64));
	LEAVE(wait_value(SIM_CALL, stream, address, value, 8, flags, PER_THREAD));
}

CUresult SZ(cuStreamWaitValue32_v2)(CUstream stream, CUdeviceptr address,
				    cuuint32_t value, unsigned int flags)
{
	ENTER(SZ(cuStreamWaitValue32_v2));
	LEAVE(wait_value(SIM_CALL, stream, address, value, 4, flags, PER_THREAD));
}

CUresult SZ(cuStreamWaitValue64_v2)(CUstream stream, CUdeviceptr address,
				    cuuint64_t value, unsigned int flags)
{
	ENTER(SZ(cuStreamWaitValue64_v2));
	LEAVE(wait_value(SIM_CALL, stream, address, value, 8, flags, PER_THREAD));
}

CUresult SZ(cuMemAllocAsync)(CUdeviceptr *address, size_t size, CUstream stream)
{
	ENTER(SZ(cuMemAllocAsync));
	LEAVE(alloc_async(SIM_CALL, address, size, stream, PER_THREAD));
}

CUresult SZ(cuMemAllocFromPoolAsync)(CUdeviceptr *address, size_t size,
				     CUmemoryPool pool, CUstream stream)
{
	ENTER(SZ(cuMemAllocFromPoolAsync));
	if (!handle_check(pool, HANDLE_POOL))
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	LEAVE(alloc_async(SIM_CALL, address, size, stream, PER_THREAD));
}

CUresult SZ(cuMemFreeAsync)(CUdeviceptr address, CUstream stream)
{
	ENTER(SZ(cuMemFreeAsync));
	LEAVE(free_async(SIM_CALL, address, stream, PER_THREAD));
}

CUresult SZ(cuStreamBeginCapture_v2)(CUstream value, CUstreamCaptureMode mode)
{
	ENTER(SZ(cuStreamBeginCapture_v2));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	SIM_CALL->stream = address_of(value);
	if (result == CUDA_SUCCESS)
		result = (unsigned int)mode > CU_STREAM_CAPTURE_MODE_RELAXED
			     ? CUDA_ERROR_INVALID_VALUE
			     : capture_begin(stream);
	LEAVE(result);
}

CUresult SZ(cuStreamEndCapture)(CUstream value, CUgraph *graph)
{
	ENTER(SZ(cuStreamEndCapture));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	SIM_CALL->stream = address_of(value);
	if (result == CUDA_SUCCESS)
		result = graph ? capture_end(stream, (struct sim_graph **)graph)
			       : CUDA_ERROR_INVALID_VALUE;
	LEAVE(result);
}

CUresult SZ(cuStreamIsCapturing)(CUstream stream, CUstreamCaptureStatus *status)
{
	ENTER(SZ(cuStreamIsCapturing));
	LEAVE(capture_info(SIM_CALL, stream, PER_THREAD, status, NULL, NULL));
}

CUresult SZ(cuStreamGetCaptureInfo_v2)(CUstream stream, CUstreamCaptureStatus *status,
				       cuuint64_t *id, CUgraph *graph,
				       const CUgraphNode **dependencies, size_t *count)
{
	ENTER(SZ(cuStreamGetCaptureInfo_v2));
	if (dependencies)
		*dependencies = NULL;
	if (count)
		*count = 0;
	LEAVE(capture_info(SIM_CALL, stream, PER_THREAD, status, id, graph));
}

CUresult SZ(cuStreamGetCaptureInfo_v3)(CUstream stream, CUstreamCaptureStatus *status,
				       cuuint64_t *id, CUgraph *graph,
				       const CUgraphNode **dependencies,
				       const CUgraphEdgeData **edges, size_t *count)
{
	ENTER(SZ(cuStreamGetCaptureInfo_v3));
	if (dependencies)
		*dependencies = NULL;
	if (edges)
		*edges = NULL;
	if (count)
		*count = 0;
	LEAVE(capture_info(SIM_CALL, stream, PER_THREAD, status, id, graph));
}

CUresult SZ(cuStreamGetFlags)(CUstream value, unsigned int *flags)
{
	ENTER(SZ(cuStreamGetFlags));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	if (result == CUDA_SUCCESS)
		*flags = stream->flags;
	LEAVE(result);
}

CUresult SZ(cuStreamGetPriority)(CUstream value, int *priority)
{
	ENTER(SZ(cuStreamGetPriority));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	if (result == CUDA_SUCCESS)
		*priority = stream->priority;
	LEAVE(result);
}

CUresult SZ(cuStreamGetId)(CUstream value, unsigned long long *id)
{
	ENTER(SZ(cuStreamGetId));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	if (result == CUDA_SUCCESS)
		*id = stream->id;
	LEAVE(result);
}

CUresult SZ(cuStreamGetCtx)(CUstream value, CUcontext *context)
{
	ENTER(SZ(cuStreamGetCtx));
	struct sim_stream *stream;
	CUresult result = stream_find(value, PER_THREAD, &stream);
	if (result == CUDA_SUCCESS)
		*context = (CUcontext)stream->context;
	LEAVE(result);
}
