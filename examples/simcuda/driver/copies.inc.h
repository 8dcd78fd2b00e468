/* SPDX-License-Identifier: Apache-2.0
 *
 * copies.inc.h - copies and memsets of the driver API; read twice, see driver.h.
 */

CUresult DS(cuMemcpy)(CUdeviceptr dst, CUdeviceptr src, size_t size)
{
	ENTER(DS(cuMemcpy));
	struct copy_shape shape = copy_linear(dst, src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyPeer)(CUdeviceptr dst, CUcontext dst_context, CUdeviceptr src,
			  CUcontext src_context, size_t size)
{
	ENTER(DS(cuMemcpyPeer));
	struct copy_shape shape = copy_linear(dst, src, size);
	(void)dst_context, (void)src_context; /* addresses say where they lie */
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyHtoD_v2)(CUdeviceptr dst, const void *src, size_t size)
{
	ENTER(DS(cuMemcpyHtoD_v2));
	struct copy_shape shape = copy_linear(dst, address_of(src), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_H2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyDtoH_v2)(void *dst, CUdeviceptr src, size_t size)
{
	ENTER(DS(cuMemcpyDtoH_v2));
	struct copy_shape shape = copy_linear(address_of(dst), src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2H, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyDtoD_v2)(CUdeviceptr dst, CUdeviceptr src, size_t size)
{
	ENTER(DS(cuMemcpyDtoD_v2));
	struct copy_shape shape = copy_linear(dst, src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyDtoA_v2)(CUarray dst, size_t dst_offset, CUdeviceptr src,
			     size_t size)
{
	ENTER(DS(cuMemcpyDtoA_v2));
	struct copy_shape shape =
	    copy_linear(copy_in_array(dst, dst_offset, size), src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyAtoD_v2)(CUdeviceptr dst, CUarray src, size_t src_offset,
			     size_t size)
{
	ENTER(DS(cuMemcpyAtoD_v2));
	struct copy_shape shape =
	    copy_linear(dst, copy_in_array(src, src_offset, size), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyHtoA_v2)(CUarray dst, size_t dst_offset, const void *src,
			     size_t size)
{
	ENTER(DS(cuMemcpyHtoA_v2));
	struct copy_shape shape =
	    copy_linear(copy_in_array(dst, dst_offset, size), address_of(src), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_H2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyAtoH_v2)(void *dst, CUarray src, size_t src_offset, size_t size)
{
	ENTER(DS(cuMemcpyAtoH_v2));
	struct copy_shape shape =
	    copy_linear(address_of(dst), copy_in_array(src, src_offset, size), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2H, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpyAtoA_v2)(CUarray dst, size_t dst_offset, CUarray src,
			     size_t src_offset, size_t size)
{
	ENTER(DS(cuMemcpyAtoA_v2));
	struct copy_shape shape =
	    copy_linear(copy_in_array(dst, dst_offset, size),
			copy_in_array(src, src_offset, size), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_SYNC, 0, PER_THREAD));
}

CUresult DS(cuMemcpy2D_v2)(const CUDA_MEMCPY2D *copy)
{
	ENTER(DS(cuMemcpy2D_v2));
	struct copy_shape shape;
	CUresult result = copy_of_2d(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_SYNC, 0,
				  PER_THREAD);
	LEAVE(result);
}

CUresult DS(cuMemcpy2DUnaligned_v2)(const CUDA_MEMCPY2D *copy)
{
	ENTER(DS(cuMemcpy2DUnaligned_v2));
	struct copy_shape shape;
	CUresult result = copy_of_2d(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_SYNC, 0,
				  PER_THREAD);
	LEAVE(result);
}

CUresult DS(cuMemcpy3D_v2)(const CUDA_MEMCPY3D *copy)
{
	ENTER(DS(cuMemcpy3D_v2));
	struct copy_shape shape;
	CUresult result = copy_of_3d(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_SYNC, 0,
				  PER_THREAD);
	LEAVE(result);
}

CUresult DS(cuMemcpy3DPeer)(const CUDA_MEMCPY3D_PEER *copy)
{
	ENTER(DS(cuMemcpy3DPeer));
	struct copy_shape shape;
	CUresult result = copy_of_3d_peer(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_SYNC, 0,
				  PER_THREAD);
	LEAVE(result);
}

CUresult SZ(cuMemcpyAsync)(CUdeviceptr dst, CUdeviceptr src, size_t size,
			   CUstream stream)
{
	ENTER(SZ(cuMemcpyAsync));
	struct copy_shape shape = copy_linear(dst, src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyPeerAsync)(CUdeviceptr dst, CUcontext dst_context, CUdeviceptr src,
			       CUcontext src_context, size_t size, CUstream stream)
{
	ENTER(SZ(cuMemcpyPeerAsync));
	struct copy_shape shape = copy_linear(dst, src, size);
	(void)dst_context, (void)src_context; /* addresses say where they lie */
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyHtoDAsync_v2)(CUdeviceptr dst, const void *src, size_t size,
				  CUstream stream)
{
	ENTER(SZ(cuMemcpyHtoDAsync_v2));
	struct copy_shape shape = copy_linear(dst, address_of(src), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_H2D, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyDtoHAsync_v2)(void *dst, CUdeviceptr src, size_t size,
				  CUstream stream)
{
	ENTER(SZ(cuMemcpyDtoHAsync_v2));
	struct copy_shape shape = copy_linear(address_of(dst), src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2H, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyDtoDAsync_v2)(CUdeviceptr dst, CUdeviceptr src, size_t size,
				  CUstream stream)
{
	ENTER(SZ(cuMemcpyDtoDAsync_v2));
	struct copy_shape shape = copy_linear(dst, src, size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2D, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyHtoAAsync_v2)(CUarray dst, size_t dst_offset, const void *src,
				  size_t size, CUstream stream)
{
	ENTER(SZ(cuMemcpyHtoAAsync_v2));
	struct copy_shape shape =
	    copy_linear(copy_in_array(dst, dst_offset, size), address_of(src), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_H2D, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpyAtoHAsync_v2)(void *dst, CUarray src, size_t src_offset,
				  size_t size, CUstream stream)
{
	ENTER(SZ(cuMemcpyAtoHAsync_v2));
	struct copy_shape shape =
	    copy_linear(address_of(dst), copy_in_array(src, src_offset, size), size);
	LEAVE(copy_run(SIM_CALL, &shape, 1, SIM_COPY_D2H, COPY_ASYNC, stream,
		       PER_THREAD));
}

CUresult SZ(cuMemcpy2DAsync_v2)(const CUDA_MEMCPY2D *copy, CUstream stream)
{
	ENTER(SZ(cuMemcpy2DAsync_v2));
	struct copy_shape shape;
	CUresult result = copy_of_2d(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_ASYNC,
				  stream, PER_THREAD);
	LEAVE(result);
}

CUresult SZ(cuMemcpy3DAsync_v2)(const CUDA_MEMCPY3D *copy, CUstream stream)
{
	ENTER(SZ(cuMemcpy3DAsync_v2));
	struct copy_shape shape;
	CUresult result = copy_of_3d(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_ASYNC,
				  stream, PER_THREAD);
	LEAVE(result);
}

CUresult SZ(cuMemcpy3DPeerAsync)(const CUDA_MEMCPY3D_PEER *copy, CUstream stream)
{
	ENTER(SZ(cuMemcpy3DPeerAsync));
	struct copy_shape shape;
	CUresult result = copy_of_3d_peer(copy, &shape);
	if (result == CUDA_SUCCESS)
		result = copy_run(SIM_CALL, &shape, 1, SIM_COPY_NONE, COPY_ASYNC,
				  stream, PER_THREAD);
	LEAVE(result);
}

/* CUDA 12.8's, which says which copy failed. */
CUresult SZ(cuMemcpyBatchAsync)(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes,
				size_t count, CUmemcpyAttributes *attributes,
				size_t *attribute_indexes, size_t attribute_count,
				size_t *fail_index, CUstream stream)
{
	ENTER(SZ(cuMemcpyBatchAsync));
	(void)attributes, (void)attribute_indexes, (void)attribute_count; /* hints */
	LEAVE(batch_copy(SIM_CALL, dsts, srcs, sizes, count, fail_index, stream,
			 PER_THREAD));
}

CUresult SZ(cuMemcpyBatchAsync_v2)(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes,
				   size_t count, CUmemcpyAttributes *attributes,
				   size_t *attribute_indexes, size_t attribute_count,
				   CUstream stream)
{
	ENTER(SZ(cuMemcpyBatchAsync_v2));
	(void)attributes, (void)attribute_indexes, (void)attribute_count; /* hints */
	LEAVE(batch_copy(SIM_CALL, dsts, srcs, sizes, count, NULL, stream, PER_THREAD));
}

CUresult SZ(cuMemcpy3DBatchAsync)(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops,
				  size_t *fail_index, unsigned long long flags,
				  CUstream stream)
{
	ENTER(SZ(cuMemcpy3DBatchAsync));
	if (flags)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(batch_copy_3d(SIM_CALL, count, ops, fail_index, stream, PER_THREAD));
}

CUresult SZ(cuMemcpy3DBatchAsync_v2)(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops,
				     unsigned long long flags, CUstream stream)
{
	ENTER(SZ(cuMemcpy3DBatchAsync_v2));
	if (flags)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(batch_copy_3d(SIM_CALL, count, ops, NULL, stream, PER_THREAD));
}

CUresult SZ(cuMemcpyWithAttributesAsync)(CUdeviceptr dst, CUdeviceptr src, size_t size,
					 CUmemcpyAttributes *attributes,
					 CUstream stream)
{
	ENTER(SZ(cuMemcpyWithAttributesAsync));
	(void)attributes; /* hints */
	LEAVE(batch_copy(SIM_CALL, &dst, &src, &size, 1, NULL, stream, PER_THREAD));
}

CUresult SZ(cuMemcpy3DWithAttributesAsync)(CUDA_MEMCPY3D_BATCH_OP *op,
					   unsigned long long flags, CUstream stream)
{
	ENTER(SZ(cuMemcpy3DWithAttributesAsync));
	if (flags)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(batch_copy_3d(SIM_CALL, 1, op, NULL, stream, PER_THREAD));
}

CUresult SZ(cuMemPrefetchAsync)(CUdeviceptr at, size_t size, CUdevice device,
				CUstream stream)
{
	ENTER(SZ(cuMemPrefetchAsync));
	(void)device; /* where it goes changes nothing: it lies in one place */
	LEAVE(prefetch(SIM_CALL, at, size, stream, PER_THREAD));
}

CUresult SZ(cuMemPrefetchAsync_v2)(CUdeviceptr at, size_t size, CUmemLocation location,
				   unsigned int flags, CUstream stream)
{
	ENTER(SZ(cuMemPrefetchAsync_v2));
	(void)location, (void)flags; /* as above */
	LEAVE(prefetch(SIM_CALL, at, size, stream, PER_THREAD));
}
