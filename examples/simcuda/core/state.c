/* SPDX-License-Identifier: Apache-2.0
 *
 * state.c - contexts, streams, and what is current on a thread (see state.h).
 */
#define _GNU_SOURCE
#include "state.h"
#include "graph.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define DEVICES_MAX 64
#define STACK_MAX 32
#define THREAD_STREAMS_MAX 16

enum {
	STATE_NEW,
	STATE_READY,
	STATE_FAILED,
	STATE_FORKED, /* the parent had initialised CUDA: it is of no use to a child */
};

static atomic_int state;
static struct sim_context *primaries[DEVICES_MAX];
static atomic_uint_fast64_t last_id;

static __thread struct {
	struct sim_context *stack[STACK_MAX];
	int depth;
	struct {
		uint64_t context_id;
		struct sim_stream *stream;
	} streams[THREAD_STREAMS_MAX];
} thread;

static void in_child(void)
{
	pthread_mutex_init(&sim_lock, NULL);
	truth_forked();
	memset(&thread, 0, sizeof(thread));
	if (atomic_load(&state) == STATE_READY)
		atomic_store(&state, STATE_FORKED);
}

static void init_once(void)
{
	if (profile_load() < 0) {
		atomic_store(&state, STATE_FAILED);
		return;
	}
	truth_profile(sim_profile.name);
	atomic_store(&state, STATE_READY);
}

static pthread_once_t init_control = PTHREAD_ONCE_INIT;

CUresult state_init(void)
{
	if (atomic_load(&state) == STATE_NEW)
		pthread_once(&init_control, init_once);
	switch (atomic_load(&state)) {
	case STATE_READY:
		return CUDA_SUCCESS;
	case STATE_FORKED:
		return CUDA_ERROR_NOT_INITIALIZED;
	default:
		return CUDA_ERROR_SYSTEM_NOT_READY;
	}
}

CUresult state_check(void)
{
	if (atomic_load_explicit(&state, memory_order_relaxed) != STATE_READY)
		return CUDA_ERROR_NOT_INITIALIZED;
	if (worker_is_this_thread())
		return CUDA_ERROR_NOT_PERMITTED;
	return CUDA_SUCCESS;
}

__attribute__((constructor)) static void load(void)
{
	truth_register(__start_sim_apis, __stop_sim_apis);
	pthread_atfork(NULL, NULL, in_child);
}

struct sim_context *context_current(void)
{
	struct sim_context *context;

	if (!thread.depth)
		return NULL;
	context = thread.stack[thread.depth - 1];
	/* It may have been destroyed by another thread. */
	return handle_check(context, HANDLE_CONTEXT);
}

CUresult context_push(struct sim_context *context)
{
	if (thread.depth == STACK_MAX)
		return CUDA_ERROR_OUT_OF_MEMORY;
	thread.stack[thread.depth++] = context;
	return CUDA_SUCCESS;
}

struct sim_context *context_pop(void)
{
	return thread.depth ? thread.stack[--thread.depth] : NULL;
}

CUresult context_set(struct sim_context *context)
{
	if (!context) {
		if (thread.depth)
			thread.depth--;
		return CUDA_SUCCESS;
	}
	if (!thread.depth)
		return context_push(context);
	thread.stack[thread.depth - 1] = context;
	return CUDA_SUCCESS;
}

CUresult stream_create(struct sim_context *context, uint32_t flags, int priority,
		       struct sim_stream **created)
{
	struct sim_stream *stream = handle_new(HANDLE_STREAM);

	if (!stream)
		return CUDA_ERROR_OUT_OF_MEMORY;
	stream->context = context;
	stream->flags = flags;
	stream->priority = priority;
	stream->id = 1 + atomic_fetch_add(&last_id, 1);
	stream->log_id = (uint64_t)(uintptr_t)stream;
	pthread_mutex_lock(&sim_lock);
	stream->next = context->streams;
	if (context->streams)
		context->streams->previous = stream;
	context->streams = stream;
	pthread_mutex_unlock(&sim_lock);
	*created = stream;
	return CUDA_SUCCESS;
}

void stream_destroy(struct sim_stream *stream)
{
	graph_stream_gone(stream);
	pthread_mutex_lock(&sim_lock);
	if (stream->previous)
		stream->previous->next = stream->next;
	else
		stream->context->streams = stream->next;
	if (stream->next)
		stream->next->previous = stream->previous;
	/* The legacy stream must still wait for what is queued here. */
	if (stream->tail && stream != stream->context->legacy &&
	    !(stream->flags & CU_STREAM_NON_BLOCKING) &&
	    !__atomic_load_n(&stream->tail->is_done, __ATOMIC_ACQUIRE)) {
		struct sim_op *op = op_new(TRUTH_OP_WAIT, 0);

		if (op) {
			op_depend(op, stream->tail);
			op_enqueue(stream->context->legacy, op);
			op_put(op);
		}
	}
	op_put(stream->tail);
	worker_put(stream->worker);
	pthread_mutex_unlock(&sim_lock);
	handle_free(stream);
}

CUresult context_create(int device, uint32_t flags, struct sim_context **created)
{
	struct sim_context *context;
	CUresult result;

	if (device < 0 || (uint64_t)device >= sim_profile.device_count)
		return CUDA_ERROR_INVALID_DEVICE;
	context = handle_new(HANDLE_CONTEXT);
	if (!context)
		return CUDA_ERROR_OUT_OF_MEMORY;
	context->device = device;
	context->flags = flags;
	context->id = 1 + atomic_fetch_add(&last_id, 1);
	context->lanes = lanes_new((unsigned)sim_profile.copies_at_once);
	if (!context->lanes) {
		handle_free(context);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	result = stream_create(context, 0, 0, &context->legacy);
	if (result != CUDA_SUCCESS) {
		free(context->lanes);
		handle_free(context);
		return result;
	}
	context->legacy->log_id = 0;
	*created = context;
	return CUDA_SUCCESS;
}

CUresult context_destroy(struct sim_context *context)
{
	context_wait(context);
	while (context->streams)
		stream_destroy(context->streams);
	/* Its lanes stay: an op that is over may still name them. */
	handle_free(context);
	return CUDA_SUCCESS;
}

static pthread_mutex_t primary_lock = PTHREAD_MUTEX_INITIALIZER;

CUresult context_retain_primary(int device, struct sim_context **primary)
{
	CUresult result = CUDA_SUCCESS;

	if (device < 0 || (uint64_t)device >= sim_profile.device_count)
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&primary_lock);
	if (!primaries[device]) {
		result = context_create(device, 0, &primaries[device]);
		if (result == CUDA_SUCCESS)
			primaries[device]->is_primary = 1;
	}
	if (result == CUDA_SUCCESS) {
		primaries[device]->retained++;
		*primary = primaries[device];
	}
	pthread_mutex_unlock(&primary_lock);
	return result;
}

CUresult context_release_primary(int device, int all)
{
	struct sim_context *gone = NULL;

	if (device < 0 || (uint64_t)device >= sim_profile.device_count)
		return CUDA_ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&primary_lock);
	if (primaries[device] && (all || --primaries[device]->retained == 0)) {
		gone = primaries[device];
		primaries[device] = NULL;
	}
	pthread_mutex_unlock(&primary_lock);
	return gone ? context_destroy(gone) : CUDA_SUCCESS;
}

int context_primary_state(int device, uint32_t *flags)
{
	int active;

	pthread_mutex_lock(&primary_lock);
	active = primaries[device] != NULL;
	*flags = active ? primaries[device]->flags : 0;
	pthread_mutex_unlock(&primary_lock);
	return active;
}

/* This thread's own default stream in the context. */
static CUresult thread_stream(struct sim_context *context, struct sim_stream **found)
{
	CUresult result;
	int i;

	for (i = 0; i < THREAD_STREAMS_MAX && thread.streams[i].stream; i++) {
		if (thread.streams[i].context_id != context->id)
			continue;
		*found = thread.streams[i].stream;
		return CUDA_SUCCESS;
	}
	if (i == THREAD_STREAMS_MAX)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = stream_create(context, 0, 0, &thread.streams[i].stream);
	if (result == CUDA_SUCCESS) {
		thread.streams[i].context_id = context->id;
		*found = thread.streams[i].stream;
	}
	return result;
}

CUresult stream_find(CUstream value, int per_thread, struct sim_stream **found)
{
	struct sim_context *context;
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	context = context_current();
	if (!context)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (value == CU_STREAM_PER_THREAD || (!value && per_thread))
		return thread_stream(context, found);
	if (!value || value == CU_STREAM_LEGACY) {
		*found = context->legacy;
		return CUDA_SUCCESS;
	}
	*found = handle_check(value, HANDLE_STREAM);
	return *found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult stream_find_idle(CUstream value, int per_thread, struct sim_stream **found)
{
	CUresult result = stream_find(value, per_thread, found);

	if (result == CUDA_SUCCESS && (*found)->capture) {
		graph_invalidate((*found)->capture);
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	return result;
}
