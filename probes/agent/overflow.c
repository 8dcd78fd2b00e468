/* SPDX-License-Identifier: Apache-2.0
 *
 * overflow.c - pushes that find the open stack full: counted, and their domains
 * kept, so that the pops that follow find their own.
 */
#include <string.h>

#include "events.h"

static uint32_t kept(const struct cct_thread *thread)
{
	return thread->overflow < CCT_OVERFLOW_MAX ? thread->overflow
						   : CCT_OVERFLOW_MAX;
}

/* Counts a push that found the stack full. Its domain is remembered, so that
 * its pop is not taken for that of a range below. */
int cct_push_overflow(struct cct_thread *thread, uint32_t domain, int depth)
{
	cct_lose(thread->slot->losses, CCT_LOSS_STACK_OVERFLOW, 0);
	if (thread->overflow_domains == NULL) {
		struct cct_hold hold;

		cct_lock(&hold);
		thread->overflow_domains =
		    cct_alloc(CCT_OVERFLOW_MAX * sizeof(uint32_t));
		cct_unlock(&hold);
		if (thread->overflow_domains == NULL)
			return -1;
	}
	for (uint32_t i = 0; i < kept(thread); i++)
		depth += thread->overflow_domains[i] == domain;
	if (thread->overflow < CCT_OVERFLOW_MAX)
		thread->overflow_domains[thread->overflow] = domain;
	thread->overflow++;
	thread->push_limit = 0; /* what comes now lies above it */
	return depth;
}

/* Takes back the domain's last push beyond the stack; -1: there is none. */
int cct_pop_overflow(struct cct_thread *thread, uint32_t domain)
{
	uint32_t *domains = thread->overflow_domains;
	int64_t parent = cct_find_open(thread, domain);
	int depth = parent < 0 ? 0 : thread->stack[parent].depth + 1;
	int64_t last = -1;

	if (thread->overflow > CCT_OVERFLOW_MAX) {
		thread->overflow--; /* of which domain is not known */
		return CCT_OVERFLOW_MAX;
	}
	for (uint32_t i = 0; i < thread->overflow; i++) {
		if (domains[i] != domain)
			continue;
		if (last >= 0)
			depth++;
		last = i;
	}
	if (last < 0)
		return -1;
	if (--thread->overflow == 0)
		thread->push_limit = thread->stack_frames;
	memmove(&domains[last], &domains[last + 1],
		(thread->overflow - (uint32_t)last) * sizeof(*domains));
	return depth;
}
