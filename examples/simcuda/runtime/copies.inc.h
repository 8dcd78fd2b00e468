/* SPDX-License-Identifier: Apache-2.0
 *
 * copies.inc.h - copies and memsets of the runtime API; read twice, see driver.h.
 */

cudaError_t DS(cudaMemcpy)(void *dst, const void *src, size_t size,
			   enum cudaMemcpyKind kind)
{
	ENTER(DS(cudaMemcpy));
	note_copy(SIM_CALL, size, kind);
	LEAVE_WITHOUT_CONTEXT();
	switch (kind) {
	case cudaMemcpyHostToDevice:
		LEAVE(ERROR_OF(DRIVER_DS(cuMemcpyHtoD_v2)(address_of(dst), src, size)));
	case cudaMemcpyDeviceToHost:
		LEAVE(ERROR_OF(DRIVER_DS(cuMemcpyDtoH_v2)(dst, address_of(src), size)));
	case cudaMemcpyDeviceToDevice:
		LEAVE(ERROR_OF(DRIVER_DS(cuMemcpyDtoD_v2)(address_of(dst),
							  address_of(src), size)));
	case cudaMemcpyHostToHost:
	case cudaMemcpyDefault:
		LEAVE(ERROR_OF(
		    DRIVER_DS(cuMemcpy)(address_of(dst), address_of(src), size)));
	}
	LEAVE(cudaErrorInvalidMemcpyDirection);
}

cudaError_t SZ(cudaMemcpyAsync)(void *dst, const void *src, size_t size,
				enum cudaMemcpyKind kind, cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpyAsync));
	note_copy(SIM_CALL, size, kind);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	switch (kind) {
	case cudaMemcpyHostToDevice:
		LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyHtoDAsync_v2)(address_of(dst), src,
							       size, stream)));
	case cudaMemcpyDeviceToHost:
		LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyDtoHAsync_v2)(dst, address_of(src),
							       size, stream)));
	case cudaMemcpyDeviceToDevice:
		LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyDtoDAsync_v2)(
		    address_of(dst), address_of(src), size, stream)));
	case cudaMemcpyHostToHost:
	case cudaMemcpyDefault:
		LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyAsync)(
		    address_of(dst), address_of(src), size, stream)));
	}
	LEAVE(cudaErrorInvalidMemcpyDirection);
}

cudaError_t DS(cudaMemcpy2D)(void *dst, size_t dst_pitch, const void *src,
			     size_t src_pitch, size_t width, size_t height,
			     enum cudaMemcpyKind kind)
{
	ENTER(DS(cudaMemcpy2D));
	CUDA_MEMCPY2D copy = runtime_2d(dst, dst_pitch, src, src_pitch, width, height);
	note_copy(SIM_CALL, width * height, kind);
	LEAVE_WITHOUT_CONTEXT();
	if (width > dst_pitch || width > src_pitch)
		LEAVE(cudaErrorInvalidPitchValue);
	LEAVE(ERROR_OF(DRIVER_DS(cuMemcpy2DUnaligned_v2)(&copy)));
}

cudaError_t SZ(cudaMemcpy2DAsync)(void *dst, size_t dst_pitch, const void *src,
				  size_t src_pitch, size_t width, size_t height,
				  enum cudaMemcpyKind kind, cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpy2DAsync));
	CUDA_MEMCPY2D copy = runtime_2d(dst, dst_pitch, src, src_pitch, width, height);
	note_copy(SIM_CALL, width * height, kind);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (width > dst_pitch || width > src_pitch)
		LEAVE(cudaErrorInvalidPitchValue);
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpy2DAsync_v2)(&copy, stream)));
}

cudaError_t DS(cudaMemcpy3D)(const struct cudaMemcpy3DParms *params)
{
	ENTER(DS(cudaMemcpy3D));
	CUDA_MEMCPY3D copy;
	LEAVE_WITHOUT_CONTEXT();
	if (!params)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d(params);
	note_copy(SIM_CALL, copy.WidthInBytes * copy.Height * copy.Depth, params->kind);
	LEAVE(ERROR_OF(DRIVER_DS(cuMemcpy3D_v2)(&copy)));
}

cudaError_t SZ(cudaMemcpy3DAsync)(const struct cudaMemcpy3DParms *params,
				  cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpy3DAsync));
	CUDA_MEMCPY3D copy;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!params)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d(params);
	note_copy(SIM_CALL, copy.WidthInBytes * copy.Height * copy.Depth, params->kind);
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpy3DAsync_v2)(&copy, stream)));
}

cudaError_t DS(cudaMemcpy3DPeer)(const struct cudaMemcpy3DPeerParms *params)
{
	ENTER(DS(cudaMemcpy3DPeer));
	CUDA_MEMCPY3D_PEER copy;
	LEAVE_WITHOUT_CONTEXT();
	if (!params)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d_peer(params);
	note_copy(SIM_CALL, copy.WidthInBytes * copy.Height * copy.Depth,
		  cudaMemcpyDefault);
	LEAVE(ERROR_OF(DRIVER_DS(cuMemcpy3DPeer)(&copy)));
}

cudaError_t SZ(cudaMemcpy3DPeerAsync)(const struct cudaMemcpy3DPeerParms *params,
				      cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpy3DPeerAsync));
	CUDA_MEMCPY3D_PEER copy;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!params)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d_peer(params);
	note_copy(SIM_CALL, copy.WidthInBytes * copy.Height * copy.Depth,
		  cudaMemcpyDefault);
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpy3DPeerAsync)(&copy, stream)));
}

cudaError_t DS(cudaMemcpyToSymbol)(const void *symbol, const void *src, size_t size,
				   size_t offset, enum cudaMemcpyKind kind)
{
	ENTER(DS(cudaMemcpyToSymbol));
	CUdeviceptr at;
	note_copy(SIM_CALL, size, kind);
	LEAVE_WITHOUT_CONTEXT();
	at = runtime_symbol(symbol, offset, size);
	if (!at)
		LEAVE(cudaErrorInvalidSymbol);
	LEAVE(ERROR_OF(DRIVER_DS(cuMemcpy)(at, address_of(src), size)));
}

cudaError_t DS(cudaMemcpyFromSymbol)(void *dst, const void *symbol, size_t size,
				     size_t offset, enum cudaMemcpyKind kind)
{
	ENTER(DS(cudaMemcpyFromSymbol));
	CUdeviceptr at;
	note_copy(SIM_CALL, size, kind);
	LEAVE_WITHOUT_CONTEXT();
	at = runtime_symbol(symbol, offset, size);
	if (!at)
		LEAVE(cudaErrorInvalidSymbol);
	LEAVE(ERROR_OF(DRIVER_DS(cuMemcpy)(address_of(dst), at, size)));
}

cudaError_t SZ(cudaMemcpyToSymbolAsync)(const void *symbol, const void *src,
					size_t size, size_t offset,
					enum cudaMemcpyKind kind, cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpyToSymbolAsync));
	CUdeviceptr at;
	note_copy(SIM_CALL, size, kind);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	at = runtime_symbol(symbol, offset, size);
	if (!at)
		LEAVE(cudaErrorInvalidSymbol);
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyAsync)(at, address_of(src), size, stream)));
}

cudaError_t SZ(cudaMemcpyFromSymbolAsync)(void *dst, const void *symbol, size_t size,
					  size_t offset, enum cudaMemcpyKind kind,
					  cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpyFromSymbolAsync));
	CUdeviceptr at;
	note_copy(SIM_CALL, size, kind);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	at = runtime_symbol(symbol, offset, size);
	if (!at)
		LEAVE(cudaErrorInvalidSymbol);
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyAsync)(address_of(dst), at, size, stream)));
}

cudaError_t SZ(cudaMemcpyBatchAsync)(void *const *dsts, const void *const *srcs,
				     const size_t *sizes, size_t count,
				     struct cudaMemcpyAttributes *attributes,
				     size_t *attribute_indexes, size_t attribute_count,
				     cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpyBatchAsync));
	size_t i;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	for (i = 0; sizes && i < count; i++)
		SIM_CALL->size_bytes += sizes[i];
	/* The arrays hold the same in both APIs; attributes are hints. */
	(void)attributes, (void)attribute_indexes, (void)attribute_count;
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyBatchAsync_v2)(
	    (CUdeviceptr *)(uintptr_t)dsts, (CUdeviceptr *)(uintptr_t)srcs,
	    (size_t *)(uintptr_t)sizes, count, NULL, NULL, 0, stream)));
}

cudaError_t SZ(cudaMemcpy3DBatchAsync)(size_t count, struct cudaMemcpy3DBatchOp *ops,
				       unsigned long long flags, cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpy3DBatchAsync));
	CUDA_MEMCPY3D_BATCH_OP *copies;
	cudaError_t result;
	size_t i;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!ops || !count)
		LEAVE(cudaErrorInvalidValue);
	copies = calloc(count, sizeof(*copies));
	if (!copies)
		LEAVE(cudaErrorMemoryAllocation);
	for (i = 0; i < count; i++) {
		copies[i] = runtime_3d_op(&ops[i]);
		SIM_CALL->size_bytes +=
		    ops[i].extent.width * ops[i].extent.height * ops[i].extent.depth;
	}
	result =
	    ERROR_OF(DRIVER_SZ(cuMemcpy3DBatchAsync_v2)(count, copies, flags, stream));
	free(copies);
	LEAVE(result);
}

cudaError_t SZ(cudaMemcpyWithAttributesAsync)(void *dst, const void *src, size_t size,
					      struct cudaMemcpyAttributes *attributes,
					      cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpyWithAttributesAsync));
	note_copy(SIM_CALL, size, cudaMemcpyDefault);
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	(void)attributes; /* hints */
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpyWithAttributesAsync)(
	    address_of(dst), address_of(src), size, NULL, stream)));
}

cudaError_t SZ(cudaMemcpy3DWithAttributesAsync)(struct cudaMemcpy3DBatchOp *op,
						unsigned long long flags,
						cudaStream_t stream)
{
	ENTER(SZ(cudaMemcpy3DWithAttributesAsync));
	CUDA_MEMCPY3D_BATCH_OP copy;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	if (!op)
		LEAVE(cudaErrorInvalidValue);
	copy = runtime_3d_op(op);
	SIM_CALL->size_bytes = op->extent.width * op->extent.height * op->extent.depth;
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemcpy3DWithAttributesAsync)(&copy, flags, stream)));
}

cudaError_t DS(cudaMemset)(void *dst, int value, size_t size)
{
	ENTER(DS(cudaMemset));
	SIM_CALL->size_bytes = size;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(
	    DRIVER_DS(cuMemsetD8_v2)(address_of(dst), (unsigned char)value, size)));
}

cudaError_t DS(cudaMemset2D)(void *dst, size_t pitch, int value, size_t width,
			     size_t height)
{
	ENTER(DS(cudaMemset2D));
	SIM_CALL->size_bytes = width * height;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_DS(cuMemsetD2D8_v2)(
	    address_of(dst), pitch, (unsigned char)value, width, height)));
}

cudaError_t DS(cudaMemset3D)(struct cudaPitchedPtr dst, int value,
			     struct cudaExtent extent)
{
	ENTER(DS(cudaMemset3D));
	cudaError_t result = cudaSuccess;
	size_t slice;
	SIM_CALL->size_bytes = extent.width * extent.height * extent.depth;
	LEAVE_WITHOUT_CONTEXT();
	for (slice = 0; slice < extent.depth && result == cudaSuccess; slice++)
		result = ERROR_OF(DRIVER_DS(cuMemsetD2D8_v2)(
		    address_of(dst.ptr) + slice * dst.pitch * dst.ysize, dst.pitch,
		    (unsigned char)value, extent.width, extent.height));
	LEAVE(result);
}

cudaError_t SZ(cudaMemsetAsync)(void *dst, int value, size_t size, cudaStream_t stream)
{
	ENTER(SZ(cudaMemsetAsync));
	SIM_CALL->size_bytes = size;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemsetD8Async)(address_of(dst), (unsigned char)value,
						  size, stream)));
}

cudaError_t SZ(cudaMemset2DAsync)(void *dst, size_t pitch, int value, size_t width,
				  size_t height, cudaStream_t stream)
{
	ENTER(SZ(cudaMemset2DAsync));
	SIM_CALL->size_bytes = width * height;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemsetD2D8Async)(
	    address_of(dst), pitch, (unsigned char)value, width, height, stream)));
}

cudaError_t SZ(cudaMemset3DAsync)(struct cudaPitchedPtr dst, int value,
				  struct cudaExtent extent, cudaStream_t stream)
{
	ENTER(SZ(cudaMemset3DAsync));
	cudaError_t result = cudaSuccess;
	size_t slice;
	SIM_CALL->size_bytes = extent.width * extent.height * extent.depth;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	for (slice = 0; slice < extent.depth && result == cudaSuccess; slice++)
		result = ERROR_OF(DRIVER_SZ(cuMemsetD2D8Async)(
		    address_of(dst.ptr) + slice * dst.pitch * dst.ysize, dst.pitch,
		    (unsigned char)value, extent.width, extent.height, stream));
	LEAVE(result);
}

cudaError_t SZ(cudaMemPrefetchAsync)(const void *at, size_t size,
				     struct cudaMemLocation location,
				     unsigned int flags, cudaStream_t stream)
{
	ENTER(SZ(cudaMemPrefetchAsync));
	CUmemLocation where = {.type = (CUmemLocationType)location.type,
			       .id = location.id};
	SIM_CALL->size_bytes = size;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(DRIVER_SZ(cuMemPrefetchAsync_v2)(address_of(at), size, where,
							flags, stream)));
}
