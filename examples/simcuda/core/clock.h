/* SPDX-License-Identifier: Apache-2.0
 *
 * clock.h - waiting for a moment.
 */
#ifndef SIMCUDA_CLOCK_H
#define SIMCUDA_CLOCK_H

#include "sim.h"

/* A sleep ends up to one timer slack (50 us by default) late, and waking takes its
 * time: the last part of every wait is spun away. */
#define SPIN_NS 100000
/* What is shorter is spun away whole, as a driver does. */
#define SPIN_ONLY_NS 160000

/* Let others run for a while; for what is looked at again and again. */
static inline void clock_sleep(uint64_t dur_ns)
{
	struct timespec dur = {.tv_nsec = (long)dur_ns};

	clock_nanosleep(CLOCK_MONOTONIC, 0, &dur, NULL);
}

static inline void clock_wait_until(uint64_t deadline_ns)
{
	uint64_t now;

	while ((now = sim_now_ns()) < deadline_ns) {
		if (deadline_ns - now > SPIN_ONLY_NS) {
			uint64_t wake = deadline_ns - SPIN_NS;
			struct timespec at = {.tv_sec = (time_t)(wake / 1000000000u),
					      .tv_nsec = (long)(wake % 1000000000u)};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		} else {
			__builtin_ia32_pause();
		}
	}
}

#endif
