/* SPDX-License-Identifier: Apache-2.0
 *
 * device.c - settling when ops run, and doing what they do (see device.h).
 */
#define _GNU_SOURCE
#include "device.h"
#include "clock.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Smaller copies take less time than waking up does: they are left to the waiter until
 * they are due. Larger ones begin when they start. */
#define SMALL_BYTES ((uint64_t)256 << 10)

pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;

static pthread_cond_t settled_cond = PTHREAD_COND_INITIALIZER;

/* Ops that wait for one that is not settled, oldest first. */
static struct {
	struct sim_op **ops;
	size_t count, room;
} unsettled;

/* Effects to come: a heap by (start, sequence). */
static struct {
	struct sim_op **ops;
	size_t count, room;
	uint64_t wake_ns; /* when the device's thread looks next */
	int has_thread;
	pthread_cond_t cond;
} effects;

/* Effects run one at a time, in order. Taken before sim_lock. */
static pthread_mutex_t effects_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t last_sequence;

void shared_get(struct sim_shared *shared)
{
	if (shared)
		__atomic_fetch_add(&shared->refs, 1, __ATOMIC_RELAXED);
}

void shared_put(struct sim_shared *shared)
{
	if (shared && __atomic_sub_fetch(&shared->refs, 1, __ATOMIC_ACQ_REL) == 0)
		shared->release(shared);
}

struct sim_op *op_new(enum truth_op kind, uint64_t dur_ns)
{
	struct sim_op *op = calloc(1, sizeof(*op));
	struct sim_call *call = truth_current();

	if (!op)
		return NULL;
	op->refs = 1;
	op->kind = (uint8_t)kind;
	op->dur_ns = dur_ns;
	if (call) {
		op->correlation_id = call->correlation_id;
		op->copy_kind = call->copy_kind;
		op->host_memory = call->host_memory;
	}
	return op;
}

static void op_get(struct sim_op *op)
{
	__atomic_fetch_add(&op->refs, 1, __ATOMIC_RELAXED);
}

void op_put(struct sim_op *op)
{
	if (!op || __atomic_sub_fetch(&op->refs, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	shared_put(op->arg);
	free(op->dependencies);
	free(op);
}

static int append(struct sim_op ***ops, size_t *count, size_t *room, struct sim_op *op)
{
	if (*count == *room) {
		size_t wanted = *room ? *room * 2 : 64;
		struct sim_op **more = realloc(*ops, wanted * sizeof(**ops));

		if (!more)
			return 0;
		*ops = more;
		*room = wanted;
	}
	(*ops)[(*count)++] = op;
	return 1;
}

void op_depend(struct sim_op *op, struct sim_op *on)
{
	struct sim_op **more;

	if (!on)
		return;
	if (on->is_resolved) {
		if (on->end_ns > op->floor_ns)
			op->floor_ns = on->end_ns;
		return;
	}
	more = realloc(op->dependencies,
		       (op->dependency_count + 1) * sizeof(*op->dependencies));
	if (!more)
		abort(); /* a dependency forgotten is a wrong result */
	op->dependencies = more;
	op_get(on);
	more[op->dependency_count++] = on;
}

static int comes_before(const struct sim_op *a, const struct sim_op *b)
{
	if (a->start_ns != b->start_ns)
		return a->start_ns < b->start_ns;
	return a->sequence < b->sequence;
}

static void heap_push(struct sim_op *op)
{
	size_t at, parent;

	if (!append(&effects.ops, &effects.count, &effects.room, op))
		abort(); /* as above */
	for (at = effects.count - 1; at > 0; at = parent) {
		parent = (at - 1) / 2;
		if (comes_before(effects.ops[parent], op))
			break;
		effects.ops[at] = effects.ops[parent];
		effects.ops[parent] = op;
	}
}

static struct sim_op *heap_pop(void)
{
	struct sim_op *first = effects.ops[0], *last = effects.ops[--effects.count];
	size_t at = 0, child;

	while ((child = 2 * at + 1) < effects.count) {
		if (child + 1 < effects.count &&
		    comes_before(effects.ops[child + 1], effects.ops[child]))
			child++;
		if (comes_before(last, effects.ops[child]))
			break;
		effects.ops[at] = effects.ops[child];
		at = child;
	}
	effects.ops[at] = last;
	return first;
}

static void run_until(uint64_t until_ns)
{
	for (;;) {
		struct sim_op *op = NULL;

		pthread_mutex_lock(&sim_lock);
		if (effects.count && effects.ops[0]->start_ns <= until_ns)
			op = heap_pop();
		pthread_mutex_unlock(&sim_lock);
		if (!op)
			break;
		op->effect(op->arg);
		if (op->done_at)
			__atomic_store_n(op->done_at, sim_now_ns(), __ATOMIC_RELAXED);
		__atomic_store_n(&op->is_done, 1, __ATOMIC_RELEASE);
		op_put(op);
	}
}

void effects_run_until(uint64_t until_ns)
{
	pthread_mutex_lock(&effects_lock);
	run_until(until_ns);
	pthread_mutex_unlock(&effects_lock);
}

void effects_try_until(uint64_t until_ns)
{
	if (pthread_mutex_trylock(&effects_lock))
		return;
	run_until(until_ns);
	pthread_mutex_unlock(&effects_lock);
}

static uint64_t wake_for(const struct sim_op *op)
{
	return op->size_bytes < SMALL_BYTES ? op->end_ns : op->start_ns;
}

static void *device_thread(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&sim_lock);
	for (;;) {
		struct timespec at;
		uint64_t wake_ns;

		if (!effects.count) {
			effects.wake_ns = UINT64_MAX;
			pthread_cond_wait(&effects.cond, &sim_lock);
			continue;
		}
		wake_ns = wake_for(effects.ops[0]);
		if (wake_ns > sim_now_ns()) {
			effects.wake_ns = wake_ns;
			at.tv_sec = (time_t)(wake_ns / 1000000000u);
			at.tv_nsec = (long)(wake_ns % 1000000000u);
			pthread_cond_timedwait(&effects.cond, &sim_lock, &at);
			continue;
		}
		effects.wake_ns = 0;
		pthread_mutex_unlock(&sim_lock);
		effects_run_until(sim_now_ns());
		pthread_mutex_lock(&sim_lock);
	}
	return NULL;
}

static void schedule_effect(struct sim_op *op)
{
	op_get(op);
	heap_push(op);
	if (!effects.has_thread) {
		pthread_condattr_t attributes;

		pthread_condattr_init(&attributes);
		pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
		pthread_cond_init(&effects.cond, &attributes);
		effects.has_thread =
		    worker_thread(device_thread, NULL, "simcuda-device");
	} else if (wake_for(op) < effects.wake_ns) {
		pthread_cond_signal(&effects.cond);
	}
}

static void log_op(struct sim_op *op)
{
	struct truth_device record = {
	    .enqueue_ns = op->enqueue_ns,
	    .start_ns = op->start_ns,
	    .end_ns = op->end_ns,
	    .done_ns = op->body     ? sim_now_ns()
		       : op->effect ? 0
				    : op->end_ns,
	    .size_bytes = op->size_bytes,
	    .stream = op->stream_id,
	    .correlation_id = op->correlation_id,
	    .device = op->device,
	    .op = op->kind,
	    .copy_kind = op->copy_kind,
	    .host_memory = op->host_memory,
	};

	op->done_at = truth_device_op(&record);
}

/* All that the op waits for is over, or at least its end is known. */
static void settle(struct sim_op *op)
{
	if (op->body) {
		worker_give(op->worker, op);
		return;
	}
	op->start_ns =
	    op->lanes ? lanes_take(op->lanes, op->floor_ns, op->dur_ns) : op->floor_ns;
	op->end_ns = op->start_ns + op->dur_ns;
	op->is_resolved = 1;
	log_op(op);
	if (op->effect)
		schedule_effect(op);
	else
		__atomic_store_n(&op->is_done, 1, __ATOMIC_RELEASE);
}

/* Drop the dependencies that are settled by now; whether all are. */
static int is_ready(struct sim_op *op)
{
	uint32_t i, left = 0;

	for (i = 0; i < op->dependency_count; i++) {
		struct sim_op *on = op->dependencies[i];

		if (!on->is_resolved) {
			op->dependencies[left++] = on;
			continue;
		}
		if (on->end_ns > op->floor_ns)
			op->floor_ns = on->end_ns;
		op_put(on);
	}
	op->dependency_count = left;
	return left == 0;
}

static void settle_what_waited(void)
{
	size_t i, left = 0;

	/* Oldest first: an op waits only for older ones, so that one pass is enough. */
	for (i = 0; i < unsettled.count; i++) {
		struct sim_op *op = unsettled.ops[i];

		if (is_ready(op)) {
			settle(op);
			op_put(op);
		} else {
			unsettled.ops[left++] = op;
		}
	}
	unsettled.count = left;
}

void op_ended(struct sim_op *op, uint64_t ready_ns, uint64_t end_ns)
{
	pthread_mutex_lock(&sim_lock);
	op->start_ns = ready_ns;
	op->end_ns = end_ns > ready_ns ? end_ns : ready_ns;
	op->is_resolved = 1;
	log_op(op);
	__atomic_store_n(&op->is_done, 1, __ATOMIC_RELEASE);
	settle_what_waited();
	pthread_cond_broadcast(&settled_cond);
	pthread_mutex_unlock(&sim_lock);
}

void op_enqueue(struct sim_stream *stream, struct sim_op *op)
{
	struct sim_context *context = stream->context;
	struct sim_stream *other;

	op->sequence = ++last_sequence;
	op->stream_id = stream->log_id;
	op->device = (uint16_t)context->device;
	if (!op->enqueue_ns)
		op->enqueue_ns = sim_now_ns();
	if (op->floor_ns < op->enqueue_ns)
		op->floor_ns = op->enqueue_ns;
	if (op->body) {
		if (!stream->worker)
			stream->worker = worker_new();
		if (!stream->worker)
			abort(); /* as below */
		worker_get(stream->worker);
		op->worker = stream->worker;
	}
	op_depend(op, stream->tail);
	/* The legacy stream and the blocking ones wait for each other. */
	if (stream == context->legacy) {
		for (other = context->streams; other; other = other->next)
			if (!(other->flags & CU_STREAM_NON_BLOCKING))
				op_depend(op, other->tail);
	} else if (!(stream->flags & CU_STREAM_NON_BLOCKING)) {
		op_depend(op, context->legacy->tail);
	}
	op_put(stream->tail);
	stream->tail = op;
	op_get(op);
	if (!op->dependency_count) {
		settle(op);
		return;
	}
	op_get(op);
	if (!append(&unsettled.ops, &unsettled.count, &unsettled.room, op))
		abort(); /* as above */
}

void op_wait(struct sim_op *op)
{
	pthread_mutex_lock(&sim_lock);
	while (!op->is_resolved)
		pthread_cond_wait(&settled_cond, &sim_lock);
	pthread_mutex_unlock(&sim_lock);
	clock_wait_until(op->end_ns);
	/* Also where the op itself is done: copies queued before it may not be. */
	do
		effects_run_until(op->end_ns);
	while (!__atomic_load_n(&op->is_done, __ATOMIC_ACQUIRE));
}

int op_is_over(struct sim_op *op)
{
	int over;

	pthread_mutex_lock(&sim_lock);
	over = op->is_resolved && op->end_ns <= sim_now_ns();
	pthread_mutex_unlock(&sim_lock);
	if (over) {
		do
			effects_run_until(op->end_ns);
		while (!__atomic_load_n(&op->is_done, __ATOMIC_ACQUIRE));
	}
	return over;
}

/* What a stream's caller has to wait for: its end and, for the legacy stream, that of
 * every blocking one. Returns how many; each holds a reference. */
static size_t tails_of(struct sim_stream *stream, int all, struct sim_op ***tails)
{
	struct sim_context *context = stream->context;
	struct sim_stream *other;
	size_t count = 0, room = 0;

	*tails = NULL;
	pthread_mutex_lock(&sim_lock);
	for (other = context->streams; other; other = other->next) {
		int wanted = all || other == stream ||
			     (stream == context->legacy &&
			      !(other->flags & CU_STREAM_NON_BLOCKING));

		if (wanted && other->tail && append(tails, &count, &room, other->tail))
			op_get(other->tail);
	}
	pthread_mutex_unlock(&sim_lock);
	return count;
}

static void wait_for_all(struct sim_op **tails, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		op_wait(tails[i]);
		op_put(tails[i]);
	}
	free(tails);
}

void stream_wait(struct sim_stream *stream)
{
	struct sim_op **tails;
	size_t count = tails_of(stream, 0, &tails);

	wait_for_all(tails, count);
}

void context_wait(struct sim_context *context)
{
	struct sim_op **tails;
	size_t count = tails_of(context->legacy, 1, &tails);

	wait_for_all(tails, count);
}

int stream_is_idle(struct sim_stream *stream)
{
	struct sim_op **tails;
	size_t i, count = tails_of(stream, 0, &tails);
	int idle = 1;

	for (i = 0; i < count; i++) {
		if (!op_is_over(tails[i]))
			idle = 0;
		op_put(tails[i]);
	}
	free(tails);
	return idle;
}
