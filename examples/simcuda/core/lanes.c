/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes.c - copy engines: when one is free.
 *
 * Each engine is a lane with the times it is taken. A copy takes the lane where it can
 * begin first, in a gap between others if it fits there: it may have been queued after
 * them, and still run before.
 */
#define _GNU_SOURCE
#include "device.h"

#include <stdlib.h>
#include <string.h>

/* The lanes of copy engines: for each the times it is taken, in order. */
struct lane {
	struct {
		uint64_t begin_ns, end_ns;
	} *taken;
	size_t count, room;
};

struct lanes {
	unsigned count;
	struct lane lane[];
};

struct lanes *lanes_new(unsigned count)
{
	struct lanes *lanes = calloc(1, sizeof(*lanes) + count * sizeof(struct lane));

	if (lanes)
		lanes->count = count;
	return lanes;
}

/* Where in the lane, and from when, so much time is free; not before ready_ns. */
static uint64_t lane_fit(const struct lane *lane, uint64_t ready_ns, uint64_t dur_ns,
			 size_t *at)
{
	size_t i;

	if (!lane->count || lane->taken[lane->count - 1].end_ns <= ready_ns) {
		*at = lane->count;
		return ready_ns;
	}
	for (i = 0; i < lane->count; i++) {
		if (ready_ns + dur_ns <= lane->taken[i].begin_ns)
			break;
		if (lane->taken[i].end_ns > ready_ns)
			ready_ns = lane->taken[i].end_ns;
	}
	*at = i;
	return ready_ns;
}

static void lane_prune(struct lane *lane, uint64_t before_ns)
{
	size_t gone = 0;

	while (gone < lane->count && lane->taken[gone].end_ns <= before_ns)
		gone++;
	if (!gone || (gone < 16 && gone < lane->count))
		return; /* nothing, or not worth the move */
	lane->count -= gone;
	memmove(lane->taken, lane->taken + gone, lane->count * sizeof(*lane->taken));
}

uint64_t lanes_take(struct lanes *lanes, uint64_t ready_ns, uint64_t dur_ns)
{
	uint64_t best_ns = UINT64_MAX, now_ns = sim_now_ns();
	size_t at = 0, best_at = 0;
	struct lane *best = NULL;
	unsigned i;

	for (i = 0; i < lanes->count; i++) {
		uint64_t start_ns;

		lane_prune(&lanes->lane[i], ready_ns < now_ns ? ready_ns : now_ns);
		start_ns = lane_fit(&lanes->lane[i], ready_ns, dur_ns, &at);
		if (start_ns < best_ns) {
			best_ns = start_ns;
			best_at = at;
			best = &lanes->lane[i];
		}
	}
	if (best->count == best->room) {
		size_t room = best->room ? best->room * 2 : 64;
		void *taken = realloc(best->taken, room * sizeof(*best->taken));

		if (!taken)
			return best_ns;
		best->taken = taken;
		best->room = room;
	}
	memmove(best->taken + best_at + 1, best->taken + best_at,
		(best->count - best_at) * sizeof(*best->taken));
	best->taken[best_at].begin_ns = best_ns;
	best->taken[best_at].end_ns = best_ns + dur_ns;
	best->count++;
	return best_ns;
}
