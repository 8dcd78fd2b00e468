/* SPDX-License-Identifier: Apache-2.0
 *
 * handles.c - the arena of handles (see handles.h).
 */
#define _GNU_SOURCE
#include "handles.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define SLOTS ((uint32_t)1 << 20)

static struct {
	pthread_mutex_t lock;
	char *base;
	uint32_t used;  /* slots ever given out */
	uint32_t first; /* free list, as index + 1 */
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER};

void *handle_new(enum handle_type type)
{
	struct handle *slot = NULL;

	pthread_mutex_lock(&arena.lock);
	if (!arena.base) {
		char *base =
		    mmap(NULL, (size_t)SLOTS * HANDLE_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (base == MAP_FAILED)
			goto out;
		__atomic_store_n(&arena.base, base, __ATOMIC_RELEASE);
	}
	if (arena.first) {
		slot = (struct handle *)(arena.base +
					 (size_t)(arena.first - 1) * HANDLE_BYTES);
		arena.first = slot->next_free;
	} else if (arena.used < SLOTS) {
		slot =
		    (struct handle *)(arena.base + (size_t)arena.used * HANDLE_BYTES);
		arena.used++;
	} else {
		goto out;
	}
	memset(slot, 0, HANDLE_BYTES);
	__atomic_store_n(&slot->type, type, __ATOMIC_RELEASE);
out:
	pthread_mutex_unlock(&arena.lock);
	return slot;
}

void handle_free(void *value)
{
	struct handle *slot = value;

	pthread_mutex_lock(&arena.lock);
	__atomic_store_n(&slot->type, HANDLE_FREE, __ATOMIC_RELEASE);
	slot->next_free = arena.first;
	arena.first = (uint32_t)(((char *)value - arena.base) / HANDLE_BYTES) + 1;
	pthread_mutex_unlock(&arena.lock);
}

void *handle_check(const void *value, enum handle_type type)
{
	char *base = __atomic_load_n(&arena.base, __ATOMIC_ACQUIRE);
	uintptr_t offset = (uintptr_t)value - (uintptr_t)base;

	if (!base || offset >= (uintptr_t)SLOTS * HANDLE_BYTES || offset % HANDLE_BYTES)
		return NULL;
	if (__atomic_load_n(&((const struct handle *)value)->type, __ATOMIC_ACQUIRE) !=
	    type)
		return NULL;
	return (void *)(uintptr_t)value;
}
