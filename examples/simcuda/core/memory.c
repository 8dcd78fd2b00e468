/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.c - the table of ranges, sorted by address (see memory.h).
 */
#define _GNU_SOURCE
#include "memory.h"
#include "profile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPING_FROM_BYTES 65536 /* smaller ones come from the heap */
#define ALIGNMENT_BYTES 512      /* what cudaMalloc gives at least 256 of */
#define DEVICES_MAX 64

static struct {
	pthread_rwlock_t lock;
	struct range *ranges;
	size_t count, room;
} table = {.lock = PTHREAD_RWLOCK_INITIALIZER};

static atomic_uint_fast64_t used_bytes[DEVICES_MAX];

/* How many ranges begin at or below the address. */
static size_t upper_bound(uint64_t address)
{
	size_t low = 0, high = table.count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table.ranges[middle].begin <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

CUresult memory_enter(const struct range *range)
{
	CUresult result = CUDA_SUCCESS;
	size_t at;

	pthread_rwlock_wrlock(&table.lock);
	if (table.count == table.room) {
		size_t room = table.room ? table.room * 2 : 256;
		struct range *ranges = realloc(table.ranges, room * sizeof(*ranges));

		if (!ranges) {
			result = CUDA_ERROR_OUT_OF_MEMORY;
			goto out;
		}
		table.ranges = ranges;
		table.room = room;
	}
	at = upper_bound(range->begin);
	if ((at > 0 && table.ranges[at - 1].begin + table.ranges[at - 1].size_bytes >
			   range->begin) ||
	    (at < table.count &&
	     range->begin + range->size_bytes > table.ranges[at].begin)) {
		result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
		goto out;
	}
	memmove(table.ranges + at + 1, table.ranges + at,
		(table.count - at) * sizeof(*table.ranges));
	table.ranges[at] = *range;
	table.count++;
out:
	pthread_rwlock_unlock(&table.lock);
	return result;
}

CUresult memory_remove(uint64_t begin, enum sim_memory memory, enum sim_memory other,
		       struct range *removed)
{
	CUresult result = CUDA_ERROR_INVALID_VALUE;
	size_t at;

	pthread_rwlock_wrlock(&table.lock);
	at = upper_bound(begin);
	if (at > 0 && table.ranges[at - 1].begin == begin &&
	    (table.ranges[at - 1].memory == memory ||
	     table.ranges[at - 1].memory == other)) {
		*removed = table.ranges[at - 1];
		memmove(table.ranges + at - 1, table.ranges + at,
			(table.count - at) * sizeof(*table.ranges));
		table.count--;
		result = CUDA_SUCCESS;
	}
	pthread_rwlock_unlock(&table.lock);
	return result;
}

int memory_find(uint64_t address, struct range *found)
{
	size_t at;
	int ok = 0;

	pthread_rwlock_rdlock(&table.lock);
	at = upper_bound(address);
	if (at > 0 &&
	    address - table.ranges[at - 1].begin < table.ranges[at - 1].size_bytes) {
		*found = table.ranges[at - 1];
		ok = 1;
	}
	pthread_rwlock_unlock(&table.lock);
	return ok;
}

int memory_holds(const struct range *range, uint64_t address, uint64_t size_bytes)
{
	return address >= range->begin &&
	       size_bytes <= range->size_bytes - (address - range->begin);
}

int memory_take_fresh(uint64_t address)
{
	size_t at;
	int fresh = 0;

	pthread_rwlock_rdlock(&table.lock);
	at = upper_bound(address);
	if (at > 0 &&
	    address - table.ranges[at - 1].begin < table.ranges[at - 1].size_bytes)
		fresh = __atomic_exchange_n(&table.ranges[at - 1].fresh, 0,
					    __ATOMIC_RELAXED);
	pthread_rwlock_unlock(&table.lock);
	return fresh;
}

uint64_t memory_used_bytes(int device)
{
	return atomic_load(&used_bytes[device]);
}

int memory_charge(int device, uint64_t size_bytes)
{
	uint64_t before = atomic_fetch_add(&used_bytes[device], size_bytes);

	if (size_bytes <= sim_profile.device_memory_bytes &&
	    before <= sim_profile.device_memory_bytes - size_bytes)
		return 1;
	atomic_fetch_sub(&used_bytes[device], size_bytes);
	return 0;
}

void memory_discharge(int device, uint64_t size_bytes)
{
	atomic_fetch_sub(&used_bytes[device], size_bytes);
}

static int is_charged(enum sim_memory memory)
{
	return memory == SIM_MEM_DEVICE || memory == SIM_MEM_MANAGED;
}

void *memory_alloc(uint64_t size_bytes, enum sim_memory memory, int device,
		   uint32_t flags)
{
	struct range range = {.size_bytes = size_bytes,
			      .flags = flags,
			      .device = (int16_t)device,
			      .memory = (uint8_t)memory,
			      .fresh = 1};
	void *base = NULL;

	if (is_charged(memory) && !memory_charge(device, size_bytes))
		return NULL;
	if (size_bytes < MAPPING_FROM_BYTES) {
		range.owner = OWNER_HEAP;
		if (posix_memalign(&base, ALIGNMENT_BYTES, size_bytes))
			base = NULL;
	} else {
		range.owner = OWNER_MAPPING;
		base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (base == MAP_FAILED)
			base = NULL;
	}
	range.begin = (uint64_t)(uintptr_t)base;
	if (base && memory_enter(&range) == CUDA_SUCCESS)
		return base;
	if (base && range.owner == OWNER_HEAP)
		free(base);
	else if (base)
		munmap(base, size_bytes);
	if (is_charged(memory))
		memory_discharge(device, size_bytes);
	return NULL;
}

void memory_release(const struct range *range)
{
	void *base = (void *)(uintptr_t)range->begin;

	if (is_charged((enum sim_memory)range->memory) &&
	    range->owner != OWNER_RESERVED)
		memory_discharge(range->device, range->size_bytes);
	if (range->owner == OWNER_HEAP)
		free(base);
	else if (range->owner == OWNER_MAPPING)
		munmap(base, range->size_bytes);
}
