/* SPDX-License-Identifier: Apache-2.0
 *
 * stack_cost.c - calls a probed function that does nothing, from so many frames deep.
 *
 * Usage: stack_cost CPU. Reads "DEPTH CALLS" and prints nanoseconds per call, until its
 * input ends.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define KEEP __attribute__((noinline, noclone))

/* Begins with push %rbp, as nearly all of NVIDIA's functions do. */
KEEP int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t size, void *stream)
{
	asm volatile(""
		     :
		     : "r"(dst), "r"(src), "r"(size), "r"(stream)
		     : "rbx", "memory");
	return 0;
}

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

KEEP double at_depth(int depth, long calls)
{
	double result;

	if (depth > 0) {
		result = at_depth(depth - 1, calls);
	} else {
		result = now_ns();
		for (long i = 0; i < calls; i++)
			cuMemcpyHtoDAsync_v2(4096, &result, 64, NULL);
		result = (now_ns() - result) / calls;
	}
	asm volatile("" : : "g"(&result) : "memory");
	return result;
}

int main(int argc, char **argv)
{
	cpu_set_t cpus;
	int depth;
	long calls;

	if (argc > 1) {
		CPU_ZERO(&cpus);
		CPU_SET(atoi(argv[1]), &cpus);
		sched_setaffinity(0, sizeof(cpus), &cpus);
	}
	while (scanf("%d %ld", &depth, &calls) == 2) {
		printf("%f\n", at_depth(depth, calls));
		fflush(stdout);
	}
	return 0;
}
