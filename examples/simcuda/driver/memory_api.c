/* SPDX-License-Identifier: Apache-2.0
 *
 * memory_api.c - the driver's allocations: device, host, managed, virtual, arrays.
 */
#define _GNU_SOURCE
#include "../core/clock.h"
#include "driver.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PITCH_BYTES 512               /* what rows are rounded up to */
#define GRANULARITY_BYTES (2ul << 20) /* of cuMemCreate */

static CUresult allocate(struct sim_call *call, void **address, size_t size_bytes,
			 enum sim_memory memory, uint32_t flags, uint64_t toll_ns)
{
	struct sim_context *context;
	CUresult result = state_check();

	call->size_bytes = size_bytes;
	if (memory != SIM_MEM_DEVICE)
		call->host_memory = (uint8_t)memory;
	if (result != CUDA_SUCCESS)
		return result;
	context = context_current();
	if (!context)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!address || !size_bytes)
		return CUDA_ERROR_INVALID_VALUE;
	*address = memory_alloc(size_bytes, memory, context->device, flags);
	if (!*address)
		return CUDA_ERROR_OUT_OF_MEMORY;
	clock_wait_until(call->entry_ns + profile_jitter(toll_ns));
	return CUDA_SUCCESS;
}

/* Frees wait for the device: memory in use is not given back. */
static CUresult release(struct sim_call *call, uint64_t address, enum sim_memory memory,
			enum sim_memory other)
{
	struct range range;
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	if (!context_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!address)
		return CUDA_SUCCESS;
	result = memory_remove(address, memory, other, &range);
	if (result != CUDA_SUCCESS)
		return result;
	call->size_bytes = range.size_bytes;
	context_wait(context_current());
	memory_release(&range);
	clock_wait_until(sim_now_ns() + profile_jitter(sim_profile.free_ns));
	return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size)
{
	ENTER(cuMemAlloc_v2);
	LEAVE(allocate(SIM_CALL, (void **)address, size, SIM_MEM_DEVICE, 0,
		       sim_profile.alloc_device_ns));
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width,
			    size_t height, unsigned int element_bytes)
{
	ENTER(cuMemAllocPitch_v2);
	if (!pitch || !width || !height ||
	    (element_bytes != 4 && element_bytes != 8 && element_bytes != 16))
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*pitch = (width + PITCH_BYTES - 1) / PITCH_BYTES * PITCH_BYTES;
	LEAVE(allocate(SIM_CALL, (void **)address, *pitch * height, SIM_MEM_DEVICE, 0,
		       sim_profile.alloc_device_ns));
}

CUresult cuMemFree_v2(CUdeviceptr address)
{
	ENTER(cuMemFree_v2);
	LEAVE(release(SIM_CALL, address, SIM_MEM_DEVICE, SIM_MEM_MANAGED));
}

CUresult cuMemAllocManaged(CUdeviceptr *address, size_t size, unsigned int flags)
{
	ENTER(cuMemAllocManaged);
	if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(allocate(SIM_CALL, (void **)address, size, SIM_MEM_MANAGED, flags,
		       sim_profile.alloc_device_ns));
}

CUresult cuMemHostAlloc(void **address, size_t size, unsigned int flags)
{
	ENTER(cuMemHostAlloc);
	if (flags & ~7u)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(allocate(SIM_CALL, address, size, SIM_MEM_PINNED, flags,
		       sim_profile.alloc_host_ns));
}

CUresult cuMemAllocHost_v2(void **address, size_t size)
{
	ENTER(cuMemAllocHost_v2);
	LEAVE(allocate(SIM_CALL, address, size, SIM_MEM_PINNED, 0,
		       sim_profile.alloc_host_ns));
}

CUresult cuMemFreeHost(void *address)
{
	ENTER(cuMemFreeHost);
	SIM_CALL->host_memory = SIM_MEM_PINNED;
	LEAVE(release(SIM_CALL, address_of(address), SIM_MEM_PINNED, SIM_MEM_PINNED));
}

CUresult cuMemHostRegister_v2(void *address, size_t size, unsigned int flags)
{
	ENTER(cuMemHostRegister_v2);
	struct range range = {.begin = address_of(address),
			      .size_bytes = size,
			      .flags = flags,
			      .memory = SIM_MEM_REGISTERED,
			      .owner = OWNER_CALLER,
			      .fresh = 1};
	SIM_CALL->size_bytes = size;
	SIM_CALL->host_memory = SIM_MEM_REGISTERED;
	LEAVE_UNLESS_READY();
	if (!context_current())
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	if (sim_profile.confidential)
		LEAVE(CUDA_ERROR_NOT_SUPPORTED);
	if (!address || !size)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	range.device = (int16_t)context_current()->device;
	clock_wait_until(SIM_CALL->entry_ns +
			 profile_jitter(sim_profile.alloc_host_ns));
	LEAVE(memory_enter(&range));
}

CUresult cuMemHostUnregister(void *address)
{
	ENTER(cuMemHostUnregister);
	CUresult result = release(SIM_CALL, address_of(address), SIM_MEM_REGISTERED,
				  SIM_MEM_REGISTERED);
	SIM_CALL->host_memory = SIM_MEM_REGISTERED;
	LEAVE(result == CUDA_ERROR_INVALID_VALUE ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
						 : result);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host,
				      unsigned int flags)
{
	ENTER(cuMemHostGetDevicePointer_v2);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!device || flags || !memory_find(address_of(host), &range) ||
	    (range.memory != SIM_MEM_PINNED && range.memory != SIM_MEM_REGISTERED))
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*device = address_of(host);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemHostGetFlags(unsigned int *flags, void *host)
{
	ENTER(cuMemHostGetFlags);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!flags || !memory_find(address_of(host), &range) ||
	    range.memory != SIM_MEM_PINNED)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*flags = range.flags;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
	ENTER(cuMemGetInfo_v2);
	LEAVE_UNLESS_READY();
	if (!context_current())
		LEAVE(CUDA_ERROR_INVALID_CONTEXT);
	if (!free_bytes || !total_bytes)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*total_bytes = sim_profile.device_memory_bytes;
	*free_bytes = *total_bytes - memory_used_bytes(context_current()->device);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
	ENTER(cuMemGetAddressRange_v2);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!memory_find(address, &range))
		LEAVE(CUDA_ERROR_NOT_FOUND);
	if (base)
		*base = range.begin;
	if (size)
		*size = range.size_bytes;
	LEAVE(CUDA_SUCCESS);
}

/* Virtual memory: a reservation is address space, an allocation a size, and mapping one
 * into the other makes device memory of it. */

struct allocation {
	struct handle handle;
	uint64_t size_bytes;
	int device;
	unsigned mappings;
	int is_released;
};

static void allocation_put(struct allocation *allocation)
{
	if (!allocation->is_released || allocation->mappings)
		return;
	memory_discharge(allocation->device, allocation->size_bytes);
	handle_free(allocation);
}

CUresult cuMemGetAllocationGranularity(size_t *granularity,
				       const CUmemAllocationProp *properties,
				       CUmemAllocationGranularity_flags option)
{
	ENTER(cuMemGetAllocationGranularity);
	(void)option; /* the least is the best */
	if (!granularity || !properties)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	*granularity = GRANULARITY_BYTES;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
		     const CUmemAllocationProp *properties, unsigned long long flags)
{
	ENTER(cuMemCreate);
	struct allocation *allocation;
	SIM_CALL->size_bytes = size;
	LEAVE_UNLESS_READY();
	if (!handle || !properties || flags || !size || size % GRANULARITY_BYTES ||
	    properties->location.id < 0 ||
	    (uint64_t)properties->location.id >= sim_profile.device_count)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	if (!memory_charge(properties->location.id, size))
		LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
	allocation = handle_new(HANDLE_ALLOCATION);
	if (!allocation) {
		memory_discharge(properties->location.id, size);
		LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
	}
	allocation->size_bytes = size;
	allocation->device = properties->location.id;
	*handle = address_of(allocation);
	clock_wait_until(SIM_CALL->entry_ns +
			 profile_jitter(sim_profile.alloc_device_ns));
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	ENTER(cuMemRelease);
	struct allocation *allocation =
	    handle_check((void *)(uintptr_t)handle, HANDLE_ALLOCATION);
	LEAVE_UNLESS_READY();
	if (!allocation || allocation->is_released)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	allocation->is_released = 1;
	allocation_put(allocation);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment,
			     CUdeviceptr wish, unsigned long long flags)
{
	ENTER(cuMemAddressReserve);
	void *base;
	(void)alignment,
	    (void)wish; /* page alignment is what there is; wishes are free */
	SIM_CALL->size_bytes = size;
	LEAVE_UNLESS_READY();
	if (!address || !size || flags || size % GRANULARITY_BYTES)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (base == MAP_FAILED)
		LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
	*address = address_of(base);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t size)
{
	ENTER(cuMemAddressFree);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!address || !size || memory_find(address, &range))
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(munmap((void *)(uintptr_t)address, size) ? CUDA_ERROR_INVALID_VALUE
						       : CUDA_SUCCESS);
}

CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset,
		  CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	ENTER(cuMemMap);
	struct allocation *allocation =
	    handle_check((void *)(uintptr_t)handle, HANDLE_ALLOCATION);
	struct range range = {.begin = address,
			      .size_bytes = size,
			      .memory = SIM_MEM_DEVICE,
			      .owner = OWNER_RESERVED,
			      .fresh = 1};
	CUresult result;
	SIM_CALL->size_bytes = size;
	LEAVE_UNLESS_READY();
	if (!allocation || offset || flags || size > allocation->size_bytes || !size)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	range.device = (int16_t)allocation->device;
	range.allocation = allocation;
	result = memory_enter(&range);
	if (result == CUDA_SUCCESS)
		allocation->mappings++;
	LEAVE(result);
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *access,
			size_t count)
{
	ENTER(cuMemSetAccess);
	LEAVE_UNLESS_READY();
	if (!access || !count)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(mprotect((void *)(uintptr_t)address, size, PROT_READ | PROT_WRITE)
		  ? CUDA_ERROR_INVALID_VALUE
		  : CUDA_SUCCESS);
}

CUresult cuMemUnmap(CUdeviceptr address, size_t size)
{
	ENTER(cuMemUnmap);
	struct allocation *allocation;
	struct range range;
	CUresult result;
	LEAVE_UNLESS_READY();
	if (!memory_find(address, &range) || range.owner != OWNER_RESERVED ||
	    range.size_bytes != size)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	if (context_current())
		context_wait(context_current());
	result = memory_remove(address, SIM_MEM_DEVICE, SIM_MEM_DEVICE, &range);
	if (result != CUDA_SUCCESS)
		LEAVE(result);
	mprotect((void *)(uintptr_t)address, size, PROT_NONE);
	allocation = handle_check(range.allocation, HANDLE_ALLOCATION);
	if (allocation) {
		allocation->mappings--;
		allocation_put(allocation);
	}
	LEAVE(CUDA_SUCCESS);
}
