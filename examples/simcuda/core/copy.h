/* SPDX-License-Identifier: Apache-2.0
 *
 * copy.h - copies and memsets: what they move, how long they take, whom they keep.
 */
#ifndef SIMCUDA_COPY_H
#define SIMCUDA_COPY_H

#include "graph.h"
#include "state.h"

/* A box of bytes: rows of `width` bytes, `height` rows a slice, `depth` slices. */
struct copy_shape {
	uint64_t dst, src;
	uint64_t width_bytes, height, depth;
	uint64_t dst_pitch_bytes, src_pitch_bytes; /* from row to row */
	uint64_t dst_slice_bytes, src_slice_bytes; /* from slice to slice */
};

/* A two- or three-dimensional array, as an opaque handle. */
struct sim_array {
	struct handle handle;
	uint64_t base;
	uint64_t width_bytes, height, depth;
	uint64_t element_bytes;
	int device;
};

enum copy_wait {
	COPY_SYNC,
	COPY_ASYNC,
};

static inline struct copy_shape copy_linear(uint64_t dst, uint64_t src,
					    uint64_t size_bytes)
{
	return (struct copy_shape){
	    .dst = dst, .src = src, .width_bytes = size_bytes, .height = 1, .depth = 1};
}

/* Copy boxes, one after the other, on a stream. `kind` is what the function's name
 * says, SIM_COPY_NONE where the addresses have to say it. */
CUresult copy_run(struct sim_call *call, const struct copy_shape *shapes, size_t count,
		  enum sim_copy_kind kind, enum copy_wait wait, CUstream stream,
		  int per_thread);
/* The same box as a node of a graph. */
CUresult copy_add_node(struct sim_graph *graph, const struct copy_shape *shape);

/* Fill rows with a value of 1, 2 or 4 bytes. */
CUresult memset_run(struct sim_call *call, uint64_t dst, uint64_t pitch_bytes,
		    uint32_t value, unsigned value_bytes, uint64_t width,
		    uint64_t height, CUstream stream, int per_thread);

/* What CUDA's copy structures describe. */
CUresult copy_of_2d(const CUDA_MEMCPY2D *from, struct copy_shape *shape);
CUresult copy_of_3d(const CUDA_MEMCPY3D *from, struct copy_shape *shape);
CUresult copy_of_3d_peer(const CUDA_MEMCPY3D_PEER *from, struct copy_shape *shape);
CUresult copy_of_operand(const CUDA_MEMCPY3D_BATCH_OP *from, struct copy_shape *shape);
/* Where in an array an offset of bytes lies; 0 if it does not hold so many. */
uint64_t copy_in_array(CUarray array, uint64_t offset_bytes, uint64_t size_bytes);

#endif
