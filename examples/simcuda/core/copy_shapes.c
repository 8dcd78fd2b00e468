/* SPDX-License-Identifier: Apache-2.0
 *
 * copy_shapes.c - CUDA's structures for copies of rectangles and boxes, as copy_shape.
 */
#include "copy.h"

/* One side of a copy as the structures give it. */
struct place {
	CUmemorytype type;
	const void *host;
	CUdeviceptr device;
	CUarray array;
	uint64_t x_bytes, y, z;
	uint64_t pitch_bytes, height;
};

/* Where a side begins and how its rows lie; 0 if it makes no sense. */
static int locate(const struct place *place, uint64_t width_bytes, uint64_t rows,
		  uint64_t slices, uint64_t *base, uint64_t *pitch, uint64_t *slice)
{
	const struct sim_array *array;
	uint64_t height = place->height ? place->height : rows;

	*pitch = place->pitch_bytes ? place->pitch_bytes : width_bytes;
	switch (place->type) {
	case CU_MEMORYTYPE_HOST:
		*base = (uint64_t)(uintptr_t)place->host;
		break;
	case CU_MEMORYTYPE_DEVICE:
	case CU_MEMORYTYPE_UNIFIED:
		*base = place->device;
		break;
	case CU_MEMORYTYPE_ARRAY:
		array = handle_check(place->array, HANDLE_ARRAY);
		if (!array || place->x_bytes + width_bytes > array->width_bytes ||
		    place->y + rows > array->height || place->z + slices > array->depth)
			return 0;
		*base = array->base;
		*pitch = array->width_bytes;
		height = array->height;
		break;
	default:
		return 0;
	}
	*slice = *pitch * height;
	if (rows > 1 && *pitch < width_bytes)
		return 0;
	*base += place->z * *slice + place->y * *pitch + place->x_bytes;
	return 1;
}

static CUresult shape_of(const struct place *dst, const struct place *src,
			 uint64_t width_bytes, uint64_t rows, uint64_t slices,
			 struct copy_shape *shape)
{
	*shape = (struct copy_shape){
	    .width_bytes = width_bytes, .height = rows, .depth = slices};
	if (!width_bytes || !rows || !slices) {
		shape->width_bytes = 0;
		return CUDA_SUCCESS;
	}
	if (!locate(dst, width_bytes, rows, slices, &shape->dst,
		    &shape->dst_pitch_bytes, &shape->dst_slice_bytes) ||
	    !locate(src, width_bytes, rows, slices, &shape->src,
		    &shape->src_pitch_bytes, &shape->src_slice_bytes))
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

CUresult copy_of_2d(const CUDA_MEMCPY2D *from, struct copy_shape *shape)
{
	struct place dst, src;

	if (!from)
		return CUDA_ERROR_INVALID_VALUE;
	dst = (struct place){.type = from->dstMemoryType,
			     .host = from->dstHost,
			     .device = from->dstDevice,
			     .array = from->dstArray,
			     .x_bytes = from->dstXInBytes,
			     .y = from->dstY,
			     .pitch_bytes = from->dstPitch};
	src = (struct place){.type = from->srcMemoryType,
			     .host = from->srcHost,
			     .device = from->srcDevice,
			     .array = from->srcArray,
			     .x_bytes = from->srcXInBytes,
			     .y = from->srcY,
			     .pitch_bytes = from->srcPitch};
	return shape_of(&dst, &src, from->WidthInBytes, from->Height, 1, shape);
}

/* The plain structure and the peers' one name their members alike. */
#define PLACE_3D(from, side)                                                           \
	((struct place){.type = (from)->side##MemoryType,                              \
			.host = (from)->side##Host,                                    \
			.device = (from)->side##Device,                                \
			.array = (from)->side##Array,                                  \
			.x_bytes = (from)->side##XInBytes,                             \
			.y = (from)->side##Y,                                          \
			.z = (from)->side##Z,                                          \
			.pitch_bytes = (from)->side##Pitch,                            \
			.height = (from)->side##Height})

CUresult copy_of_3d(const CUDA_MEMCPY3D *from, struct copy_shape *shape)
{
	struct place dst, src;

	if (!from)
		return CUDA_ERROR_INVALID_VALUE;
	dst = PLACE_3D(from, dst);
	src = PLACE_3D(from, src);
	return shape_of(&dst, &src, from->WidthInBytes, from->Height, from->Depth,
			shape);
}

CUresult copy_of_3d_peer(const CUDA_MEMCPY3D_PEER *from, struct copy_shape *shape)
{
	struct place dst, src;

	if (!from)
		return CUDA_ERROR_INVALID_VALUE;
	dst = PLACE_3D(from, dst);
	src = PLACE_3D(from, src);
	return shape_of(&dst, &src, from->WidthInBytes, from->Height, from->Depth,
			shape);
}

static CUresult operand(const CUmemcpy3DOperand *from, uint64_t element_bytes,
			struct place *place)
{
	if (from->type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
		*place =
		    (struct place){.type = CU_MEMORYTYPE_ARRAY,
				   .array = from->op.array.array,
				   .x_bytes = from->op.array.offset.x * element_bytes,
				   .y = from->op.array.offset.y,
				   .z = from->op.array.offset.z};
		return CUDA_SUCCESS;
	}
	if (from->type != CU_MEMCPY_OPERAND_TYPE_POINTER)
		return CUDA_ERROR_INVALID_VALUE;
	*place = (struct place){.type = CU_MEMORYTYPE_UNIFIED,
				.device = from->op.ptr.ptr,
				.pitch_bytes = from->op.ptr.rowLength * element_bytes,
				.height = from->op.ptr.layerHeight};
	return CUDA_SUCCESS;
}

CUresult copy_of_operand(const CUDA_MEMCPY3D_BATCH_OP *from, struct copy_shape *shape)
{
	const CUmemcpy3DOperand *sides[] = {&from->src, &from->dst};
	uint64_t element_bytes = 1;
	struct place dst, src;
	CUresult result;
	int i;

	/* Extents count elements: an array says how large those are, a pointer bytes.
	 */
	for (i = 0; i < 2; i++) {
		const struct sim_array *array;

		if (sides[i]->type != CU_MEMCPY_OPERAND_TYPE_ARRAY)
			continue;
		array = handle_check(sides[i]->op.array.array, HANDLE_ARRAY);
		if (!array)
			return CUDA_ERROR_INVALID_VALUE;
		element_bytes = array->element_bytes;
	}
	result = operand(&from->dst, element_bytes, &dst);
	if (result == CUDA_SUCCESS)
		result = operand(&from->src, element_bytes, &src);
	if (result != CUDA_SUCCESS)
		return result;
	return shape_of(&dst, &src, from->extent.width * element_bytes,
			from->extent.height, from->extent.depth, shape);
}

uint64_t copy_in_array(CUarray value, uint64_t offset_bytes, uint64_t size_bytes)
{
	const struct sim_array *array = handle_check(value, HANDLE_ARRAY);
	uint64_t whole_bytes;

	if (!array)
		return 0;
	whole_bytes = array->width_bytes * array->height * array->depth;
	if (offset_bytes > whole_bytes || size_bytes > whole_bytes - offset_bytes)
		return 0;
	return array->base + offset_bytes;
}
