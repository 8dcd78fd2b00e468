/* SPDX-License-Identifier: Apache-2.0
 *
 * arrays_api.c - arrays, memory pools, and what the driver says about a pointer.
 */
#include "../core/clock.h"
#include "driver.h"

#include <string.h>

struct sim_pool {
	struct handle handle;
	int device;
};

static unsigned format_bytes(CUarray_format format)
{
	switch (format) {
	case CU_AD_FORMAT_UNSIGNED_INT8:
	case CU_AD_FORMAT_SIGNED_INT8:
		return 1;
	case CU_AD_FORMAT_UNSIGNED_INT16:
	case CU_AD_FORMAT_SIGNED_INT16:
	case CU_AD_FORMAT_HALF:
		return 2;
	case CU_AD_FORMAT_UNSIGNED_INT32:
	case CU_AD_FORMAT_SIGNED_INT32:
	case CU_AD_FORMAT_FLOAT:
		return 4;
	default:
		return 0;
	}
}

static CUresult make_array(struct sim_call *call, CUarray *made, uint64_t width,
			   uint64_t height, uint64_t depth, CUarray_format format,
			   unsigned channels)
{
	uint64_t element_bytes = (uint64_t)format_bytes(format) * channels;
	struct sim_array *array;
	void *base;

	if (state_check() != CUDA_SUCCESS)
		return state_check();
	if (!context_current())
		return CUDA_ERROR_INVALID_CONTEXT;
	if (!made || !width || !element_bytes)
		return CUDA_ERROR_INVALID_VALUE;
	height = height ? height : 1;
	depth = depth ? depth : 1;
	call->size_bytes = width * element_bytes * height * depth;
	array = handle_new(HANDLE_ARRAY);
	base = array ? memory_alloc(call->size_bytes, SIM_MEM_DEVICE,
				    context_current()->device, 0)
		     : NULL;
	if (!base) {
		if (array)
			handle_free(array);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	array->base = address_of(base);
	array->width_bytes = width * element_bytes;
	array->height = height;
	array->depth = depth;
	array->element_bytes = element_bytes;
	array->device = context_current()->device;
	*made = (CUarray)array;
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.alloc_device_ns));
	return CUDA_SUCCESS;
}

CUresult cuArrayCreate_v2(CUarray *made, const CUDA_ARRAY_DESCRIPTOR *what)
{
	ENTER(cuArrayCreate_v2);
	if (!what)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(make_array(SIM_CALL, made, what->Width, what->Height, 1, what->Format,
			 what->NumChannels));
}

CUresult cuArray3DCreate_v2(CUarray *made, const CUDA_ARRAY3D_DESCRIPTOR *what)
{
	ENTER(cuArray3DCreate_v2);
	if (!what)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(make_array(SIM_CALL, made, what->Width, what->Height, what->Depth,
			 what->Format, what->NumChannels));
}

CUresult cuArrayDestroy(CUarray value)
{
	ENTER(cuArrayDestroy);
	struct sim_array *array = handle_check(value, HANDLE_ARRAY);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!array)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	if (context_current())
		context_wait(context_current());
	if (memory_remove(array->base, SIM_MEM_DEVICE, SIM_MEM_DEVICE, &range) ==
	    CUDA_SUCCESS)
		memory_release(&range);
	handle_free(array);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemPoolCreate(CUmemoryPool *made, const CUmemPoolProps *properties)
{
	ENTER(cuMemPoolCreate);
	struct sim_pool *pool;
	LEAVE_UNLESS_READY();
	if (!made || !properties)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	pool = handle_new(HANDLE_POOL);
	if (!pool)
		LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
	pool->device = properties->location.id;
	*made = (CUmemoryPool)pool;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuMemPoolDestroy(CUmemoryPool value)
{
	ENTER(cuMemPoolDestroy);
	struct sim_pool *pool = handle_check(value, HANDLE_POOL);
	LEAVE_UNLESS_READY();
	if (!pool)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	handle_free(pool);
	LEAVE(CUDA_SUCCESS);
}

static CUmemorytype type_of(const struct range *range)
{
	return range->memory == SIM_MEM_DEVICE || range->memory == SIM_MEM_MANAGED
		   ? CU_MEMORYTYPE_DEVICE
		   : CU_MEMORYTYPE_HOST;
}

/* Under confidential computing pinned memory says it is managed: CC-FIGURES in README.
 */
static int is_managed(const struct range *range)
{
	return range->memory == SIM_MEM_MANAGED ||
	       (sim_profile.confidential && range->memory == SIM_MEM_PINNED);
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute,
			       CUdeviceptr address)
{
	ENTER(cuPointerGetAttribute);
	struct range range;
	LEAVE_UNLESS_READY();
	if (!data || !memory_find(address, &range))
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned int *)data = type_of(&range);
		break;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)data = address;
		break;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		if (range.memory == SIM_MEM_DEVICE)
			LEAVE(CUDA_ERROR_INVALID_VALUE);
		*(CUdeviceptr *)data = address;
		break;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		*(unsigned int *)data = is_managed(&range);
		break;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)data = range.device;
		break;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)data = range.begin;
		break;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)data = range.size_bytes;
		break;
	default:
		LEAVE(CUDA_ERROR_NOT_SUPPORTED);
	}
	LEAVE(CUDA_SUCCESS);
}
