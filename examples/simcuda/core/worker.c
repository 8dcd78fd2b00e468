/* SPDX-License-Identifier: Apache-2.0
 *
 * worker.c - the threads that run what takes an unknown time: host functions, and
 * collectives that wait for other processes.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "device.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>

struct sim_worker {
	pthread_cond_t cond;
	uint32_t refs; /* the stream's, and one of each op that will come here */
	int has_thread;
	struct sim_op *first, *last;
};

static __thread int is_worker;

int worker_is_this_thread(void)
{
	return is_worker;
}

int worker_thread(void *(*run)(void *), void *arg, const char *name)
{
	sigset_t all, old;
	pthread_t thread;
	int failed;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	failed = pthread_create(&thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (failed)
		return 0;
	pthread_setname_np(thread, name);
	pthread_detach(thread);
	return 1;
}

struct sim_worker *worker_new(void)
{
	struct sim_worker *worker = calloc(1, sizeof(*worker));

	if (!worker)
		return NULL;
	worker->refs = 1;
	pthread_cond_init(&worker->cond, NULL);
	return worker;
}

void worker_get(struct sim_worker *worker)
{
	worker->refs++;
}

void worker_put(struct sim_worker *worker)
{
	if (!worker || --worker->refs)
		return;
	if (worker->has_thread) {
		pthread_cond_signal(&worker->cond); /* it frees itself */
		return;
	}
	pthread_cond_destroy(&worker->cond);
	free(worker);
}

static void *worker_run(void *arg)
{
	struct sim_worker *worker = arg;

	is_worker = 1;
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	pthread_mutex_lock(&sim_lock);
	for (;;) {
		struct sim_op *op = worker->first;
		uint64_t end_ns;

		if (!op) {
			if (!worker->refs)
				break;
			pthread_cond_wait(&worker->cond, &sim_lock);
			continue;
		}
		worker->first = op->next;
		if (!worker->first)
			worker->last = NULL;
		pthread_mutex_unlock(&sim_lock);
		clock_wait_until(op->floor_ns);
		effects_run_until(op->floor_ns);
		end_ns = op->body(op->arg, op->floor_ns);
		op_ended(op, op->floor_ns, end_ns);
		op_put(op);
		pthread_mutex_lock(&sim_lock);
		worker->refs--;
	}
	pthread_mutex_unlock(&sim_lock);
	pthread_cond_destroy(&worker->cond);
	free(worker);
	return NULL;
}

void worker_give(struct sim_worker *worker, struct sim_op *op)
{
	__atomic_fetch_add(&op->refs, 1, __ATOMIC_RELAXED);
	op->next = NULL;
	if (worker->last)
		worker->last->next = op;
	else
		worker->first = op;
	worker->last = op;
	if (!worker->has_thread) {
		worker->has_thread =
		    worker_thread(worker_run, worker, "simcuda-stream");
		if (!worker->has_thread)
			abort(); /* the stream would never go on */
	} else {
		pthread_cond_signal(&worker->cond);
	}
}
