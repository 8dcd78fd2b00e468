/* SPDX-License-Identifier: Apache-2.0
 *
 * events.h - the hot path: from an NVTX call to a record in the thread's ring.
 *
 * No system call, no lock, no allocation. The thread writes to its own slot
 * only. Every function runs between cct_enter and cct_leave, which mark the
 * thread as busy: an event from a signal handler that interrupted an event is
 * dropped and counted instead of meeting a half-written record.
 */
#ifndef CCTRACE_EVENTS_H
#define CCTRACE_EVENTS_H

#include <time.h>

#include "agent.h"

/* Ids that RangeStart gives out carry this in their top byte, so that an end
 * can tell them from a chained tool's ids. */
#define CCT_RANGE_TAG (0xCCULL << 56)
#define CCT_RANGE_LOST (CCT_RANGE_TAG | ((1ULL << 56) - 1))

static inline struct cct_thread *cct_enter(void)
{
	struct cct_thread *thread = cct_tls;
	uint32_t epoch = atomic_load_explicit(&cct_image->epoch, memory_order_relaxed);

	uintptr_t here = (uintptr_t)__builtin_frame_address(0);

	if (CCT_UNLIKELY(thread->armed != epoch))
		return cct_enter_slow(here);
	thread->entry = here;
	atomic_signal_fence(memory_order_seq_cst);
	thread->armed = CCT_BUSY;
	atomic_signal_fence(memory_order_seq_cst);
	return thread;
}

static inline void cct_leave(struct cct_thread *thread)
{
	atomic_signal_fence(memory_order_seq_cst);
	thread->armed = thread->epoch;
}

/* Times of one thread never repeat, whatever the clock's grain. */
static inline uint64_t cct_tick(struct cct_thread *thread)
{
	struct timespec now;
	uint64_t now_ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	if (CCT_UNLIKELY(now_ns <= thread->last_ns))
		now_ns = thread->last_ns + 1;
	thread->last_ns = now_ns;
	return now_ns;
}

static inline bool cct_write(struct cct_thread *thread, const struct cct_record *record,
			     uint64_t now_ns)
{
	if (CCT_UNLIKELY(thread->head == thread->limit)) {
		uint64_t tail = __atomic_load_n(&thread->slot->tail, __ATOMIC_ACQUIRE);

		/* A tail that makes no sense reads as a full ring. */
		if (thread->head - tail > thread->mask) {
			cct_lose(thread->slot->losses, CCT_LOSS_RING_FULL, now_ns);
			return false;
		}
		thread->limit = tail + thread->mask + 1;
	}
	thread->ring[thread->head & thread->mask] = *record;
	__atomic_store_n(&thread->slot->head, ++thread->head, __ATOMIC_RELEASE);
	return true;
}

static inline uint32_t cct_domain_id(struct cct_thread *thread,
				     struct cct_domain *domain)
{
	uint64_t cached;

	if (domain == NULL)
		return 0;
	cached = atomic_load_explicit(&domain->cached, memory_order_relaxed);
	if (CCT_LIKELY(cached >> 32 == thread->epoch))
		return (uint32_t)cached;
	return cct_domain_id_slow(domain);
}

static inline void cct_set_depth(struct cct_thread *thread, uint32_t depth)
{
	thread->depth = depth;
	__atomic_store_n(&thread->slot->depth, depth, __ATOMIC_RELEASE);
}

/* Index of the domain's innermost open range, or -1. */
static inline int64_t cct_find_open(const struct cct_thread *thread, uint32_t domain)
{
	int64_t i = (int64_t)thread->depth - 1;

	while (i >= 0 && (thread->stack[i].domain != domain || thread->stack[i].closed))
		i--;
	return i;
}

int cct_push_overflow(struct cct_thread *thread, uint32_t domain, int depth);
int cct_pop_overflow(struct cct_thread *thread, uint32_t domain);

static inline int cct_push(struct cct_thread *thread, struct cct_domain *domain,
			   uint32_t key, uint64_t payload, uint8_t payload_type)
{
	uint32_t id = cct_domain_id(thread, domain);
	int64_t parent = cct_find_open(thread, id);
	uint32_t depth = parent < 0 ? 0 : thread->stack[parent].depth + 1u;
	struct cct_frame *frame;

	if (CCT_UNLIKELY(thread->depth >= thread->push_limit))
		return cct_push_overflow(thread, id, (int)depth);
	frame = &thread->stack[thread->depth];
	frame->payload = payload;
	frame->key = key;
	frame->domain = id;
	frame->depth = (uint16_t)(depth > UINT16_MAX ? UINT16_MAX : depth);
	frame->payload_type = payload_type;
	frame->closed = 0;
	frame->ts_ns = cct_tick(thread); /* last: our own work is not in the range */
	cct_set_depth(thread, thread->depth + 1);
	return (int)depth;
}

static inline int cct_pop(struct cct_thread *thread, struct cct_domain *domain)
{
	uint64_t now_ns = cct_tick(thread); /* first, for the same reason */
	uint32_t id = cct_domain_id(thread, domain);
	struct cct_frame *frame;
	struct cct_record record;
	int64_t top;

	if (CCT_UNLIKELY(thread->overflow != 0)) {
		int depth = cct_pop_overflow(thread, id);

		if (depth >= 0)
			return depth;
	}
	top = cct_find_open(thread, id);
	if (CCT_UNLIKELY(top < 0)) {
		cct_lose(thread->slot->losses, CCT_LOSS_UNMATCHED_POP, now_ns);
		return -1;
	}
	frame = &thread->stack[top];
	record.ts_ns = frame->ts_ns;
	record.value = now_ns - frame->ts_ns;
	record.payload = frame->payload;
	record.key = frame->key;
	record.depth = frame->depth;
	record.kind = CCT_REC_PUSH_POP;
	record.payload_type = frame->payload_type;
	/* The record first: a process killed in between leaves the range twice,
	 * which its time tells, rather than not at all. */
	cct_write(thread, &record, now_ns);
	if (CCT_LIKELY(top == (int64_t)thread->depth - 1)) {
		while (top > 0 && CCT_UNLIKELY(thread->stack[top - 1].closed))
			top--;
		cct_set_depth(thread, (uint32_t)top);
	} else {
		frame->closed = 1;
	}
	return record.depth;
}

static inline bool cct_point(struct cct_thread *thread, enum cct_record_kind kind,
			     uint64_t value, uint32_t key, uint64_t payload,
			     uint8_t payload_type)
{
	struct cct_record record = {
	    .ts_ns = cct_tick(thread),
	    .value = value,
	    .payload = payload,
	    .key = key,
	    .kind = (uint8_t)kind,
	    .payload_type = payload_type,
	};

	return cct_write(thread, &record, record.ts_ns);
}

/* Unique in the process and its forked children: a thread's claim of a slot
 * has a serial of its own. */
static inline uint64_t cct_range_id(struct cct_thread *thread)
{
	return CCT_RANGE_TAG | (uint64_t)(thread->serial & 0xffffff) << 32 |
	       (uint32_t)++thread->ranges;
}

#endif /* CCTRACE_EVENTS_H */
