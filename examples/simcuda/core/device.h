/* SPDX-License-Identifier: Apache-2.0
 *
 * device.h - the device: work queued on streams, and when each piece of it runs.
 *
 * Device time is computed, not measured: an op starts at the latest of its stream's
 * end, its submission and the end of whatever else it waits for, and ends its duration
 * later. Both are known the moment it is queued, unless something before it runs for an
 * unknown time (a host function, a collective with other processes); then it is settled
 * as soon as that ends. Whoever waits sleeps until the computed moment. What an op does
 * to memory is done by then by whichever comes first, a waiter or the device's own
 * thread.
 */
#ifndef SIMCUDA_DEVICE_H
#define SIMCUDA_DEVICE_H

#include <cuda.h>

#include "handles.h"
#include "sim.h"
#include "truth.h"

struct lanes;
struct sim_graph;
struct sim_worker;

/* The head of what an op works on. Graphs launch the same over and over, so it is
 * shared by counting. */
struct sim_shared {
	uint32_t refs;
	void (*release)(struct sim_shared *shared);
};

struct sim_op {
	uint32_t refs;
	uint8_t kind; /* enum truth_op */
	uint8_t copy_kind;
	uint8_t host_memory;
	uint8_t is_resolved; /* start and end are known; under the lock */
	uint8_t is_done;     /* and its effect is there; atomic */
	uint16_t device;
	uint64_t sequence;
	uint64_t correlation_id;
	uint64_t stream_id;
	uint64_t size_bytes;
	uint64_t enqueue_ns;
	uint64_t floor_ns; /* not before: submission and what it waited for */
	uint64_t dur_ns;
	uint64_t start_ns;
	uint64_t end_ns;
	struct lanes *lanes; /* the copy engines it needs, or NULL */
	struct sim_op **dependencies;
	uint32_t dependency_count;
	/* What it does to memory, once, between its start and its end. */
	void (*effect)(struct sim_shared *arg);
	/* Or: work of unknown length, on the stream's thread; returns when it ended. */
	uint64_t (*body)(struct sim_shared *arg, uint64_t ready_ns);
	struct sim_worker *worker;
	struct sim_shared *arg;
	uint64_t *done_at; /* into the log */
	struct sim_op *next;
};

struct sim_context {
	struct handle handle;
	int device;
	uint32_t flags;
	int is_primary;
	int retained;
	uint64_t id;
	struct sim_stream *legacy;
	struct sim_stream *streams; /* list, legacy among them */
	struct lanes *lanes;
};

struct sim_stream {
	struct handle handle;
	struct sim_context *context;
	uint32_t flags; /* CU_STREAM_NON_BLOCKING */
	int priority;
	uint64_t id;     /* CUDA's number of it */
	uint64_t log_id; /* what device records say: its handle, 0 for legacy */
	struct sim_op *tail;
	struct sim_stream *next, *previous;
	struct sim_worker *worker;
	struct sim_graph *capture;
	int capture_is_origin;
};

struct sim_event {
	struct handle handle;
	uint32_t flags;
	struct sim_op *op; /* what it recorded last */
	struct sim_graph *capture;
};

extern pthread_mutex_t sim_lock;

void shared_get(struct sim_shared *shared);
void shared_put(struct sim_shared *shared);

/* A new op with one reference; NULL without memory. */
struct sim_op *op_new(enum truth_op kind, uint64_t dur_ns);
void op_put(struct sim_op *op);
/* Make an op wait for another (NULL: for nothing). Under the lock. */
void op_depend(struct sim_op *op, struct sim_op *on);
/* Queue it at the end of its stream. Under the lock. The caller keeps its reference. */
void op_enqueue(struct sim_stream *stream, struct sim_op *op);
/* Wait until it has ended and what it does to memory is done. */
void op_wait(struct sim_op *op);
/* Whether it has. Its effect is done here if it is due. */
int op_is_over(struct sim_op *op);

/* Everything queued so far on a stream, or in a context, or on all. */
void stream_wait(struct sim_stream *stream);
int stream_is_idle(struct sim_stream *stream);
void context_wait(struct sim_context *context);

/* Copy engines: so many copies at once. */
struct lanes *lanes_new(unsigned count);
/* Take one for so long, not before ready_ns; returns from when. Under the lock. */
uint64_t lanes_take(struct lanes *lanes, uint64_t ready_ns, uint64_t dur_ns);

/* Threads that run bodies. */
struct sim_worker *worker_new(void);
void worker_get(struct sim_worker *worker); /* under the lock, as are the next two */
void worker_put(struct sim_worker *worker);
/* Hand it an op whose dependencies are over; it has a reference for each to come. */
void worker_give(struct sim_worker *worker, struct sim_op *op);
/* Do all that is due by then, in order; returns when it is done. */
void effects_run_until(uint64_t until_ns);
/* The same, unless another thread is at it. */
void effects_try_until(uint64_t until_ns);
/* Called by a worker: the op ended then. Takes the lock. */
void op_ended(struct sim_op *op, uint64_t ready_ns, uint64_t end_ns);
/* Whether this thread is running a body (CUDA calls are not permitted there). */
int worker_is_this_thread(void);
/* Start a thread of the simulator's own: no signals, a name. */
int worker_thread(void *(*run)(void *), void *arg, const char *name);

#endif
