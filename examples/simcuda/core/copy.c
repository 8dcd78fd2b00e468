/* SPDX-License-Identifier: Apache-2.0
 *
 * copy.c - copies and memsets as work of a stream (see copy.h).
 */
#define _GNU_SOURCE
#include "copy.h"
#include "clock.h"
#include "memory.h"

#include <stdlib.h>
#include <string.h>

struct copy_job {
	struct sim_shared shared;
	struct copy_shape shape;
	char *staging; /* the source's bytes, rows without gaps; or NULL */
};

struct memset_job {
	struct sim_shared shared;
	uint64_t dst, pitch_bytes, width, height;
	uint32_t value;
	unsigned value_bytes;
};

static void *address(uint64_t value)
{
	return (void *)(uintptr_t)value;
}

static void job_release(struct sim_shared *shared)
{
	free(((struct copy_job *)shared)->staging);
	free(shared);
}

static void memset_release(struct sim_shared *shared)
{
	free(shared);
}

static uint64_t bytes_of(const struct copy_shape *shape)
{
	return shape->width_bytes * shape->height * shape->depth;
}

static void copy_box(const struct copy_shape *shape)
{
	uint64_t row, slice;

	for (slice = 0; slice < shape->depth; slice++)
		for (row = 0; row < shape->height; row++)
			memmove(address(shape->dst + slice * shape->dst_slice_bytes +
					row * shape->dst_pitch_bytes),
				address(shape->src + slice * shape->src_slice_bytes +
					row * shape->src_pitch_bytes),
				shape->width_bytes);
}

static void job_effect(struct sim_shared *shared)
{
	copy_box(&((struct copy_job *)shared)->shape);
}

/* Read the source now: a caller may use a pageable buffer again as soon as the call
 * returns. */
static int stage(struct copy_job *job)
{
	struct copy_shape *shape = &job->shape, to_staging = *shape;

	job->staging = malloc(bytes_of(shape));
	if (!job->staging)
		return 0;
	to_staging.dst = (uint64_t)(uintptr_t)job->staging;
	to_staging.dst_pitch_bytes = shape->width_bytes;
	to_staging.dst_slice_bytes = shape->width_bytes * shape->height;
	copy_box(&to_staging);
	shape->src = to_staging.dst;
	shape->src_pitch_bytes = to_staging.dst_pitch_bytes;
	shape->src_slice_bytes = to_staging.dst_slice_bytes;
	return 1;
}

/* The last byte of a box, from its base. */
static uint64_t extent(const struct copy_shape *shape, uint64_t pitch, uint64_t slice)
{
	return (shape->depth - 1) * slice + (shape->height - 1) * pitch +
	       shape->width_bytes;
}

struct side {
	enum sim_memory memory;
	int device;
};

static CUresult look_at(uint64_t base, uint64_t extent_bytes, struct side *side)
{
	struct range range;

	side->memory = SIM_MEM_PAGEABLE;
	side->device = -1;
	if (!base)
		return CUDA_ERROR_INVALID_VALUE;
	if (!memory_find(base, &range))
		return CUDA_SUCCESS;
	if (!memory_holds(&range, base, extent_bytes))
		return CUDA_ERROR_INVALID_VALUE;
	side->memory = (enum sim_memory)range.memory;
	side->device = range.device;
	return CUDA_SUCCESS;
}

static int may_be_device(const struct side *side)
{
	return side->memory == SIM_MEM_DEVICE || side->memory == SIM_MEM_MANAGED;
}

/* Which way it goes, and what the host's side is. */
static CUresult classify(const struct side *dst, const struct side *src,
			 enum sim_copy_kind asked, enum sim_copy_kind *kind,
			 enum sim_memory *host)
{
	int to_device = may_be_device(dst), from_device = may_be_device(src);

	*host = SIM_MEM_NONE;
	if ((asked == SIM_COPY_H2D && !to_device) ||
	    (asked == SIM_COPY_D2H && !from_device) ||
	    (asked == SIM_COPY_D2D && (!to_device || !from_device)))
		return CUDA_ERROR_INVALID_VALUE;
	/* Managed memory is the host's where the other side is the device's own. */
	if (to_device && from_device && src->memory != dst->memory &&
	    asked != SIM_COPY_D2D) {
		to_device = dst->memory == SIM_MEM_DEVICE;
		from_device = src->memory == SIM_MEM_DEVICE;
	}
	if (asked == SIM_COPY_H2D && src->memory != SIM_MEM_DEVICE)
		from_device = 0;
	if (asked == SIM_COPY_D2H && dst->memory != SIM_MEM_DEVICE)
		to_device = 0;
	if (to_device && from_device) {
		*kind = src->device == dst->device ? SIM_COPY_D2D : SIM_COPY_P2P;
	} else if (to_device) {
		*kind = SIM_COPY_H2D;
		*host = src->memory;
	} else if (from_device) {
		*kind = SIM_COPY_D2H;
		*host = dst->memory;
	} else {
		*kind = SIM_COPY_H2H;
		*host = src->memory;
	}
	return CUDA_SUCCESS;
}

static struct copy_figures figures_of(enum sim_copy_kind kind, enum sim_memory host)
{
	enum host_kind column = HOST_PINNED;
	struct copy_figures figures;

	if (host == SIM_MEM_PAGEABLE)
		column = HOST_PAGEABLE;
	else if (host == SIM_MEM_MANAGED)
		column = HOST_MANAGED;
	switch (kind) {
	case SIM_COPY_H2D:
		return sim_profile.bridge[DIR_H2D][column];
	case SIM_COPY_D2H:
		return sim_profile.bridge[DIR_D2H][column];
	case SIM_COPY_P2P:
		return sim_profile.p2p;
	case SIM_COPY_H2H:
		/* A memcpy by the host, which waits for it whatever it called. */
		figures = sim_profile.bridge[DIR_H2D][HOST_PAGEABLE];
		figures.mode = MODE_HOST_SYNCHRONOUS;
		return figures;
	default:
		return sim_profile.d2d;
	}
}

static int is_bridge(enum sim_copy_kind kind)
{
	return kind == SIM_COPY_H2D || kind == SIM_COPY_D2H;
}

static CUresult prepare(const struct copy_shape *shape, enum sim_copy_kind asked,
			struct sim_work *work, struct copy_figures *figures,
			int *is_host_concerned)
{
	struct side dst, src;
	enum sim_copy_kind kind;
	enum sim_memory host;
	struct copy_job *job;
	CUresult result;

	if (shape->width_bytes > UINT64_MAX / shape->height / shape->depth)
		return CUDA_ERROR_INVALID_VALUE;
	result = look_at(shape->dst,
			 extent(shape, shape->dst_pitch_bytes, shape->dst_slice_bytes),
			 &dst);
	if (result == CUDA_SUCCESS)
		result = look_at(
		    shape->src,
		    extent(shape, shape->src_pitch_bytes, shape->src_slice_bytes),
		    &src);
	if (result == CUDA_SUCCESS)
		result = classify(&dst, &src, asked, &kind, &host);
	if (result != CUDA_SUCCESS)
		return result;
	*figures = figures_of(kind, host);
	*is_host_concerned =
	    dst.memory != SIM_MEM_DEVICE || src.memory != SIM_MEM_DEVICE;
	job = calloc(1, sizeof(*job));
	if (!job)
		return CUDA_ERROR_OUT_OF_MEMORY;
	job->shared.refs = 1;
	job->shared.release = job_release;
	job->shape = *shape;
	*work = (struct sim_work){
	    .kind = TRUTH_OP_COPY,
	    .copy_kind = (uint8_t)kind,
	    .host_memory = (uint8_t)host,
	    .is_bridge = (uint8_t)is_bridge(kind),
	    .size_bytes = bytes_of(shape),
	    .dur_ns = figures->latency_ns +
		      profile_transfer_ns(bytes_of(shape), figures->gb_per_s),
	    .effect = job_effect,
	    .arg = &job->shared,
	};
	return CUDA_SUCCESS;
}

static CUresult copy_one(struct sim_call *call, const struct copy_shape *shape,
			 enum sim_copy_kind asked, enum copy_wait wait,
			 struct sim_stream *stream, uint64_t *host_free_ns)
{
	struct copy_figures figures;
	struct sim_op *op = NULL;
	struct sim_work work;
	int must_wait, first, is_host_concerned;
	CUresult result;

	if (!bytes_of(shape))
		return CUDA_SUCCESS;
	result = prepare(shape, asked, &work, &figures, &is_host_concerned);
	if (result != CUDA_SUCCESS)
		return result;
	call->copy_kind = work.copy_kind;
	call->host_memory = work.host_memory;
	call->size_bytes += work.size_bytes;
	if (stream->capture) {
		if (wait == COPY_SYNC) {
			graph_invalidate(stream->capture);
			result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
		} else {
			result = work_submit(stream, &work, 0, NULL);
		}
		goto out;
	}
	must_wait = figures.mode == MODE_HOST_SYNCHRONOUS ||
		    (wait == COPY_SYNC && is_host_concerned);
	*host_free_ns += profile_jitter(figures.host_ns);
	first = is_bridge((enum sim_copy_kind)work.copy_kind) &&
		(memory_take_fresh(shape->dst) | memory_take_fresh(shape->src));
	if (first)
		*host_free_ns += profile_jitter(sim_profile.first_copy_ns);
	if (!must_wait && figures.mode == MODE_STAGED &&
	    !stage((struct copy_job *)work.arg)) {
		result = CUDA_ERROR_OUT_OF_MEMORY;
		goto out;
	}
	clock_wait_until(*host_free_ns);
	result = work_submit(stream, &work, 0, &op);
	if (result != CUDA_SUCCESS)
		goto out;
	if (must_wait) {
		op_wait(op);
		*host_free_ns = sim_now_ns();
	} else if (figures.mode == MODE_STAGED) {
		*host_free_ns += op->dur_ns;
		if (*host_free_ns > figures.latency_ns)
			*host_free_ns -= figures.latency_ns;
		clock_wait_until(*host_free_ns);
	}
	op_put(op);
out:
	shared_put(work.arg);
	return result;
}

CUresult copy_run(struct sim_call *call, const struct copy_shape *shapes, size_t count,
		  enum sim_copy_kind kind, enum copy_wait wait, CUstream value,
		  int per_thread)
{
	uint64_t host_free_ns = call->entry_ns;
	struct sim_stream *stream;
	CUresult result;
	size_t i;

	call->stream = (uint64_t)(uintptr_t)value;
	result = stream_find(value, per_thread, &stream);
	for (i = 0; i < count && result == CUDA_SUCCESS; i++)
		result = copy_one(call, &shapes[i], kind, wait, stream, &host_free_ns);
	return result;
}

CUresult copy_add_node(struct sim_graph *graph, const struct copy_shape *shape)
{
	struct copy_figures figures;
	struct sim_work work;
	int is_host_concerned;
	CUresult result =
	    prepare(shape, SIM_COPY_NONE, &work, &figures, &is_host_concerned);

	if (result != CUDA_SUCCESS)
		return result;
	result = graph_append(graph, &work);
	shared_put(work.arg);
	return result;
}

static void memset_effect(struct sim_shared *shared)
{
	struct memset_job *job = (struct memset_job *)shared;
	uint64_t row, column;

	for (row = 0; row < job->height; row++) {
		char *to = address(job->dst + row * job->pitch_bytes);

		if (job->value_bytes == 1) {
			memset(to, (int)job->value, job->width);
			continue;
		}
		for (column = 0; column < job->width; column++)
			memcpy(to + column * job->value_bytes, &job->value,
			       job->value_bytes);
	}
}

CUresult memset_run(struct sim_call *call, uint64_t dst, uint64_t pitch_bytes,
		    uint32_t value, unsigned value_bytes, uint64_t width,
		    uint64_t height, CUstream handle, int per_thread)
{
	uint64_t row_bytes = width * value_bytes, size_bytes = row_bytes * height;
	struct sim_stream *stream;
	struct memset_job *job;
	struct sim_work work;
	struct range range;
	CUresult result;

	call->stream = (uint64_t)(uintptr_t)handle;
	call->size_bytes = size_bytes;
	result = stream_find(handle, per_thread, &stream);
	if (result != CUDA_SUCCESS || !size_bytes)
		return result;
	if (!memory_find(dst, &range) || (height > 1 && pitch_bytes < row_bytes) ||
	    !memory_holds(&range, dst, (height - 1) * pitch_bytes + row_bytes))
		return CUDA_ERROR_INVALID_VALUE;
	job = calloc(1, sizeof(*job));
	if (!job)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*job = (struct memset_job){
	    .shared = {.refs = 1, .release = memset_release},
	    .dst = dst,
	    .pitch_bytes = pitch_bytes,
	    .width = width,
	    .height = height,
	    .value = value,
	    .value_bytes = value_bytes,
	};
	work = (struct sim_work){
	    .kind = TRUTH_OP_MEMSET,
	    .size_bytes = size_bytes,
	    .dur_ns = profile_transfer_ns(size_bytes, sim_profile.memset_gb_per_s),
	    .effect = memset_effect,
	    .arg = &job->shared,
	};
	if (!stream->capture)
		clock_wait_until(call->entry_ns +
				 profile_jitter(sim_profile.memset_host_ns));
	result = work_submit(stream, &work, sim_profile.launch_latency_ns, NULL);
	shared_put(&job->shared);
	return result;
}
