/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel.c - kernels: what is launched by a pointer and lasts some time.
 *
 * Nothing is computed. Any pointer will do as a function; simcuda_set_kernel_ns says
 * how long it lasts, or else the profile does.
 */
#define _GNU_SOURCE
#include "clock.h"
#include "graph.h"
#include "state.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct special_function {
	struct handle handle;
	char name[64];
	uint64_t (*body)(void *arg, uint64_t ready_ns);
	void (*release)(void *arg);
};

struct special_arg {
	struct sim_shared shared;
	struct special_function *function;
	void *user;
};

/* Durations by function: open addressing, never shrinks. */
static struct {
	pthread_rwlock_t lock;
	struct {
		const void *function;
		uint64_t dur_ns;
	} *slots;
	size_t count, room;
} table = {.lock = PTHREAD_RWLOCK_INITIALIZER};

static size_t slot_of(const void *function)
{
	size_t at = ((uintptr_t)function * 0x9e3779b97f4a7c15u) >> 20;

	for (at &= table.room - 1;
	     table.slots[at].function && table.slots[at].function != function;
	     at = (at + 1) & (table.room - 1))
		;
	return at;
}

static int grow(void)
{
	__typeof__(table.slots) old = table.slots;
	size_t i, old_room = table.room, room = old_room ? old_room * 2 : 256;
	void *slots = calloc(room, sizeof(*table.slots));

	if (!slots)
		return 0;
	table.slots = slots;
	table.room = room;
	for (i = 0; i < old_room; i++)
		if (old[i].function)
			table.slots[slot_of(old[i].function)] = old[i];
	free(old);
	return 1;
}

__attribute__((visibility("default"))) int simcuda_set_kernel_ns(const void *function,
								 uint64_t dur_ns)
{
	int ok = 0;
	size_t at;

	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_rwlock_wrlock(&table.lock);
	if (table.count * 2 >= table.room && !grow())
		goto out;
	at = slot_of(function);
	if (!table.slots[at].function)
		table.count++;
	table.slots[at].function = function;
	table.slots[at].dur_ns = dur_ns;
	ok = 1;
out:
	pthread_rwlock_unlock(&table.lock);
	return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

uint64_t kernel_ns(const void *function)
{
	uint64_t dur_ns = sim_profile.kernel_ns;

	pthread_rwlock_rdlock(&table.lock);
	if (table.count) {
		size_t at = slot_of(function);

		if (table.slots[at].function)
			dur_ns = table.slots[at].dur_ns;
	}
	pthread_rwlock_unlock(&table.lock);
	return dur_ns;
}

void *kernel_new_special(const char *name,
			 uint64_t (*body)(void *arg, uint64_t ready_ns),
			 void (*release)(void *arg))
{
	struct special_function *function = handle_new(HANDLE_FUNCTION);

	if (!function)
		return NULL;
	strncpy(function->name, name, sizeof(function->name) - 1);
	function->body = body;
	function->release = release;
	return function;
}

static void special_release(struct sim_shared *shared)
{
	struct special_arg *arg = (struct special_arg *)shared;

	arg->function->release(arg->user);
	free(arg);
}

static uint64_t special_body(struct sim_shared *shared, uint64_t ready_ns)
{
	struct special_arg *arg = (struct special_arg *)shared;

	return arg->function->body(arg->user, ready_ns);
}

CUresult kernel_launch(struct sim_call *call, const void *function, CUstream value,
		       int per_thread, void **params)
{
	struct special_function *special = handle_check(function, HANDLE_FUNCTION);
	struct sim_work work = {.kind = TRUTH_OP_KERNEL, .function = function};
	struct special_arg *arg = NULL;
	struct sim_stream *stream;
	CUresult result;

	call->stream = (uint64_t)(uintptr_t)value;
	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (special && special->body) {
		if (!params || !params[0])
			return CUDA_ERROR_INVALID_VALUE;
		arg = calloc(1, sizeof(*arg));
		if (!arg)
			return CUDA_ERROR_OUT_OF_MEMORY;
		arg->shared.refs = 1;
		arg->shared.release = special_release;
		arg->function = special;
		arg->user = params[0];
		work.kind = TRUTH_OP_COLLECTIVE;
		work.function = NULL;
		work.body = special_body;
		work.arg = &arg->shared;
	}
	if (!stream->capture)
		clock_wait_until(call->entry_ns +
				 profile_jitter(sim_profile.launch_host_ns));
	result = work_submit(stream, &work, sim_profile.launch_latency_ns, NULL);
	if (arg)
		shared_put(&arg->shared);
	return result;
}
