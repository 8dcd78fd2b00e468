/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.c - allocations of the runtime API, and what it says about pointers.
 */
#include <string.h>

#include "runtime.h"

cudaError_t cudaMalloc(void **address, size_t size)
{
	ENTER(cudaMalloc);
	SIM_CALL->size_bytes = size;
	LEAVE_WITHOUT_CONTEXT();
	if (address && !size) {
		*address = NULL;
		LEAVE(cudaSuccess);
	}
	LEAVE(ERROR_OF(driver.cuMemAlloc_v2((CUdeviceptr *)address, size)));
}

cudaError_t cudaMallocPitch(void **address, size_t *pitch, size_t width, size_t height)
{
	ENTER(cudaMallocPitch);
	cudaError_t result;
	LEAVE_WITHOUT_CONTEXT();
	result = ERROR_OF(
	    driver.cuMemAllocPitch_v2((CUdeviceptr *)address, pitch, width, height, 4));
	if (result == cudaSuccess)
		SIM_CALL->size_bytes = *pitch * height;
	LEAVE(result);
}

cudaError_t cudaMalloc3D(struct cudaPitchedPtr *made, struct cudaExtent extent)
{
	ENTER(cudaMalloc3D);
	cudaError_t result;
	LEAVE_WITHOUT_CONTEXT();
	if (!made)
		LEAVE(cudaErrorInvalidValue);
	result = ERROR_OF(driver.cuMemAllocPitch_v2((CUdeviceptr *)&made->ptr,
						    &made->pitch, extent.width,
						    extent.height * extent.depth, 4));
	made->xsize = extent.width;
	made->ysize = extent.height;
	if (result == cudaSuccess)
		SIM_CALL->size_bytes = made->pitch * extent.height * extent.depth;
	LEAVE(result);
}

cudaError_t cudaMallocManaged(void **address, size_t size, unsigned int flags)
{
	ENTER(cudaMallocManaged);
	SIM_CALL->size_bytes = size;
	SIM_CALL->host_memory = SIM_MEM_MANAGED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemAllocManaged((CUdeviceptr *)address, size, flags)));
}

cudaError_t cudaMallocHost(void **address, size_t size)
{
	ENTER(cudaMallocHost);
	SIM_CALL->size_bytes = size;
	SIM_CALL->host_memory = SIM_MEM_PINNED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemHostAlloc(address, size, 0)));
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned int flags)
{
	ENTER(cudaHostAlloc);
	SIM_CALL->size_bytes = size;
	SIM_CALL->host_memory = SIM_MEM_PINNED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemHostAlloc(address, size, flags)));
}

cudaError_t cudaHostRegister(void *address, size_t size, unsigned int flags)
{
	ENTER(cudaHostRegister);
	SIM_CALL->size_bytes = size;
	SIM_CALL->host_memory = SIM_MEM_REGISTERED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemHostRegister_v2(address, size, flags)));
}

cudaError_t cudaHostUnregister(void *address)
{
	ENTER(cudaHostUnregister);
	SIM_CALL->host_memory = SIM_MEM_REGISTERED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemHostUnregister(address)));
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags)
{
	ENTER(cudaHostGetDevicePointer);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(
	    driver.cuMemHostGetDevicePointer_v2((CUdeviceptr *)device, host, flags)));
}

cudaError_t cudaHostGetFlags(unsigned int *flags, void *host)
{
	ENTER(cudaHostGetFlags);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemHostGetFlags(flags, host)));
}

cudaError_t cudaFree(void *address)
{
	ENTER(cudaFree);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemFree_v2(address_of(address))));
}

cudaError_t cudaFreeHost(void *address)
{
	ENTER(cudaFreeHost);
	SIM_CALL->host_memory = SIM_MEM_PINNED;
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemFreeHost(address)));
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
	ENTER(cudaMemGetInfo);
	LEAVE_WITHOUT_CONTEXT();
	LEAVE(ERROR_OF(driver.cuMemGetInfo_v2(free_bytes, total_bytes)));
}

cudaError_t cudaMemcpyPeer(void *dst, int dst_device, const void *src, int src_device,
			   size_t size)
{
	ENTER(cudaMemcpyPeer);
	SIM_CALL->size_bytes = size;
	SIM_CALL->copy_kind = SIM_COPY_P2P;
	LEAVE_WITHOUT_CONTEXT();
	(void)dst_device, (void)src_device; /* addresses say where they lie */
	LEAVE(ERROR_OF(
	    driver.cuMemcpyPeer(address_of(dst), NULL, address_of(src), NULL, size)));
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src,
				int src_device, size_t size, cudaStream_t stream)
{
	ENTER(cudaMemcpyPeerAsync);
	SIM_CALL->size_bytes = size;
	SIM_CALL->copy_kind = SIM_COPY_P2P;
	SIM_CALL->stream = address_of(stream);
	LEAVE_WITHOUT_CONTEXT();
	(void)dst_device, (void)src_device; /* addresses say where they lie */
	LEAVE(ERROR_OF(driver.cuMemcpyPeerAsync(address_of(dst), NULL, address_of(src),
						NULL, size, stream)));
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes,
				     const void *pointer)
{
	ENTER(cudaPointerGetAttributes);
	CUdeviceptr at = address_of(pointer);
	unsigned int type, is_managed = 0;
	LEAVE_WITHOUT_CONTEXT();
	if (!attributes)
		LEAVE(cudaErrorInvalidValue);
	memset(attributes, 0, sizeof(*attributes));
	attributes->type = cudaMemoryTypeUnregistered;
	attributes->device = -2; /* what NVIDIA's says of memory it does not know */
	attributes->hostPointer = (void *)(uintptr_t)pointer;
	if (driver.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at) !=
	    CUDA_SUCCESS)
		LEAVE(cudaSuccess);
	driver.cuPointerGetAttribute(&attributes->device,
				     CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at);
	driver.cuPointerGetAttribute(&is_managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, at);
	attributes->devicePointer = (void *)(uintptr_t)pointer;
	if (is_managed)
		attributes->type = cudaMemoryTypeManaged;
	else if (type == CU_MEMORYTYPE_HOST)
		attributes->type = cudaMemoryTypeHost;
	else
		attributes->type = cudaMemoryTypeDevice;
	if (attributes->type == cudaMemoryTypeDevice)
		attributes->hostPointer = NULL;
	LEAVE(cudaSuccess);
}
