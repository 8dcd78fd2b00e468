/* SPDX-License-Identifier: Apache-2.0
 *
 * work.c - what functions of more than one version or suffix have in common.
 */
#define _GNU_SOURCE
#include "../core/clock.h"
#include "driver.h"

#include <pthread.h>
#include <stdlib.h>

/* A body looks this often whether memory has the value it waits for. */
#define POLL_NS 20000

CUresult batch_copy(struct sim_call *call, CUdeviceptr *dsts, CUdeviceptr *srcs,
		    size_t *sizes, size_t count, size_t *fail_index, CUstream stream,
		    int per_thread)
{
	struct copy_shape *shapes;
	CUresult result;
	size_t i;

	if (fail_index)
		*fail_index = SIZE_MAX;
	if (!dsts || !srcs || !sizes || !count)
		return CUDA_ERROR_INVALID_VALUE;
	shapes = calloc(count, sizeof(*shapes));
	if (!shapes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	for (i = 0; i < count; i++)
		shapes[i] = copy_linear(dsts[i], srcs[i], sizes[i]);
	result = copy_run(call, shapes, count, SIM_COPY_NONE, COPY_ASYNC, stream,
			  per_thread);
	free(shapes);
	return result;
}

CUresult batch_copy_3d(struct sim_call *call, size_t count, CUDA_MEMCPY3D_BATCH_OP *ops,
		       size_t *fail_index, CUstream stream, int per_thread)
{
	struct copy_shape *shapes;
	CUresult result = CUDA_SUCCESS;
	size_t i;

	if (fail_index)
		*fail_index = SIZE_MAX;
	if (!ops || !count)
		return CUDA_ERROR_INVALID_VALUE;
	shapes = calloc(count, sizeof(*shapes));
	if (!shapes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	for (i = 0; i < count && result == CUDA_SUCCESS; i++) {
		result = copy_of_operand(&ops[i], &shapes[i]);
		if (result != CUDA_SUCCESS && fail_index)
			*fail_index = i;
	}
	if (result == CUDA_SUCCESS)
		result = copy_run(call, shapes, count, SIM_COPY_NONE, COPY_ASYNC,
				  stream, per_thread);
	free(shapes);
	return result;
}

CUresult prefetch(struct sim_call *call, CUdeviceptr at, size_t size_bytes,
		  CUstream value, int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_COPY,
				.copy_kind = SIM_COPY_H2D,
				.host_memory = SIM_MEM_MANAGED,
				.is_bridge = 1,
				.size_bytes = size_bytes};
	const struct copy_figures *figures = &sim_profile.bridge[DIR_H2D][HOST_MANAGED];
	struct sim_stream *stream;
	struct range range;
	CUresult result;

	call->stream = address_of(value);
	call->size_bytes = size_bytes;
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!memory_find(at, &range) || range.memory != SIM_MEM_MANAGED ||
	    !memory_holds(&range, at, size_bytes))
		return CUDA_ERROR_INVALID_VALUE;
	work.dur_ns =
	    figures->latency_ns + profile_transfer_ns(size_bytes, figures->gb_per_s);
	clock_wait_until(call->entry_ns + profile_jitter(figures->host_ns));
	return work_submit(stream, &work, 0, NULL);
}

struct host_call {
	struct sim_shared shared;
	CUhostFn function;
	void *data;
};

static void plain_release(struct sim_shared *shared)
{
	free(shared);
}

static uint64_t host_body(struct sim_shared *shared, uint64_t ready_ns)
{
	struct host_call *host = (struct host_call *)shared;

	(void)ready_ns;
	host->function(host->data);
	return sim_now_ns();
}

CUresult host_function(struct sim_call *call, CUstream value, CUhostFn function,
		       void *data, int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_HOST_FUNC, .body = host_body};
	struct sim_stream *stream;
	struct host_call *host;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	host = calloc(1, sizeof(*host));
	if (!host)
		return CUDA_ERROR_OUT_OF_MEMORY;
	host->shared.refs = 1;
	host->shared.release = plain_release;
	host->function = function;
	host->data = data;
	work.arg = &host->shared;
	if (!stream->capture)
		clock_wait_until(call->entry_ns +
				 profile_jitter(sim_profile.launch_host_ns));
	result = work_submit(stream, &work, sim_profile.launch_latency_ns, NULL);
	shared_put(&host->shared);
	return result;
}

struct value_wait {
	struct sim_shared shared;
	uint64_t address, value;
	unsigned value_bytes, condition;
};

static int is_there(const struct value_wait *wait)
{
	const void *at = (const void *)(uintptr_t)wait->address;
	uint64_t mask = wait->value_bytes == 8 ? UINT64_MAX : UINT32_MAX, now, half;

	now = wait->value_bytes == 8
		  ? __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE)
		  : __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
	half = (mask >> 1) + 1;
	switch (wait->condition) {
	case CU_STREAM_WAIT_VALUE_EQ:
		return now == wait->value;
	case CU_STREAM_WAIT_VALUE_AND:
		return (now & wait->value) != 0;
	case CU_STREAM_WAIT_VALUE_NOR:
		return (~(now | wait->value) & mask) != 0;
	default: /* GEQ, on a circle: the difference is not negative */
		return ((now - wait->value) & mask) < half;
	}
}

static uint64_t value_body(struct sim_shared *shared, uint64_t ready_ns)
{
	(void)ready_ns;
	while (!is_there((struct value_wait *)shared)) {
		/* Another stream's copy may be what it waits for. */
		effects_try_until(sim_now_ns());
		clock_sleep(POLL_NS);
	}
	return sim_now_ns();
}

CUresult wait_value(struct sim_call *call, CUstream handle, CUdeviceptr address,
		    uint64_t value, unsigned value_bytes, unsigned flags,
		    int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_WAIT, .body = value_body};
	struct sim_stream *stream;
	struct value_wait *wait;
	struct range range;
	CUresult result;

	call->stream = address_of(handle);
	result = stream_find(handle, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!memory_find(address, &range) ||
	    !memory_holds(&range, address, value_bytes) || address % value_bytes)
		return CUDA_ERROR_INVALID_VALUE;
	wait = calloc(1, sizeof(*wait));
	if (!wait)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*wait = (struct value_wait){.shared = {.refs = 1, .release = plain_release},
				    .address = address,
				    .value = value,
				    .value_bytes = value_bytes,
				    .condition = flags & 3};
	work.arg = &wait->shared;
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.event_host_ns));
	result = work_submit(stream, &work, 0, NULL);
	shared_put(&wait->shared);
	return result;
}

CUresult event_record(struct sim_call *call, CUevent handle, CUstream value,
		      int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_EVENT};
	struct sim_event *event = handle_check(handle, HANDLE_EVENT);
	struct sim_stream *stream;
	struct sim_op *op, *old;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (stream->capture) {
		/* Marks a place in the graph; the event itself records nothing. */
		event->capture = stream->capture;
		return CUDA_SUCCESS;
	}
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.event_host_ns));
	result = work_submit(stream, &work, 0, &op);
	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&sim_lock);
	event->capture = NULL;
	old = event->op;
	event->op = op;
	pthread_mutex_unlock(&sim_lock);
	op_put(old);
	return CUDA_SUCCESS;
}

CUresult event_wait_in_stream(struct sim_call *call, CUstream value, CUevent handle,
			      int per_thread)
{
	struct sim_event *event = handle_check(handle, HANDLE_EVENT);
	struct sim_stream *stream;
	struct sim_op *op;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!event)
		return CUDA_ERROR_INVALID_HANDLE;
	if (event->capture && event->capture->origin) {
		if (stream->capture && stream->capture != event->capture)
			return CUDA_ERROR_STREAM_CAPTURE_MERGE;
		capture_join(stream, event->capture);
		return CUDA_SUCCESS;
	}
	if (stream->capture)
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.event_host_ns));
	op = op_new(TRUTH_OP_WAIT, 0);
	if (!op)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&sim_lock);
	op_depend(op, event->op);
	op_enqueue(stream, op);
	pthread_mutex_unlock(&sim_lock);
	op_put(op);
	return CUDA_SUCCESS;
}

CUresult stream_synchronize(struct sim_call *call, CUstream value, int per_thread)
{
	struct sim_stream *stream;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find_idle(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	stream_wait(stream);
	clock_wait_until(sim_now_ns() + profile_jitter(sim_profile.sync_host_ns));
	return CUDA_SUCCESS;
}

CUresult stream_query(struct sim_call *call, CUstream value, int per_thread)
{
	struct sim_stream *stream;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find_idle(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.query_host_ns));
	return stream_is_idle(stream) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult alloc_async(struct sim_call *call, CUdeviceptr *address, size_t size_bytes,
		     CUstream value, int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_ALLOC, .size_bytes = size_bytes};
	struct sim_stream *stream;
	CUresult result;
	void *base;

	call->stream = address_of(value);
	call->size_bytes = size_bytes;
	result = stream_find_idle(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!address || !size_bytes)
		return CUDA_ERROR_INVALID_VALUE;
	base = memory_alloc(size_bytes, SIM_MEM_DEVICE, stream->context->device, 0);
	if (!base)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*address = address_of(base);
	memory_take_fresh(*address); /* a pool's memory is known to the device */
	clock_wait_until(call->entry_ns + profile_jitter(sim_profile.alloc_async_ns));
	return work_submit(stream, &work, 0, NULL);
}

struct free_job {
	struct sim_shared shared;
	struct range range;
};

static void free_effect(struct sim_shared *shared)
{
	memory_release(&((struct free_job *)shared)->range);
}

CUresult free_async(struct sim_call *call, CUdeviceptr address, CUstream value,
		    int per_thread)
{
	struct sim_work work = {.kind = TRUTH_OP_ALLOC, .effect = free_effect};
	struct sim_stream *stream;
	struct free_job *job;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find_idle(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	job = calloc(1, sizeof(*job));
	if (!job)
		return CUDA_ERROR_OUT_OF_MEMORY;
	job->shared.refs = 1;
	job->shared.release = plain_release;
	work.arg = &job->shared;
	result = memory_remove(address, SIM_MEM_DEVICE, SIM_MEM_DEVICE, &job->range);
	if (result == CUDA_SUCCESS) {
		work.size_bytes = call->size_bytes = job->range.size_bytes;
		clock_wait_until(call->entry_ns +
				 profile_jitter(sim_profile.alloc_async_ns));
		result = work_submit(stream, &work, 0, NULL);
	}
	shared_put(&job->shared);
	return result;
}

CUresult capture_info(struct sim_call *call, CUstream value, int per_thread,
		      CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph)
{
	struct sim_stream *stream;
	CUresult result;

	call->stream = address_of(value);
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!status)
		return CUDA_ERROR_INVALID_VALUE;
	*status = CU_STREAM_CAPTURE_STATUS_NONE;
	if (!stream->capture)
		return CUDA_SUCCESS;
	*status = stream->capture->is_invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
					      : CU_STREAM_CAPTURE_STATUS_ACTIVE;
	if (id)
		*id = stream->capture->id;
	if (graph)
		*graph = (CUgraph)stream->capture;
	return CUDA_SUCCESS;
}
