/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_cost.c - nanoseconds per call of a probed function, on one pinned core.
 *
 *   cc -O2 -fcf-protection=none probe_cost.c -o probe_cost
 *   probe_cost [CORE]
 *
 * For each line "NAME CALLS" on stdin it calls the function NAME so many times and
 * prints the nanoseconds per call, so that the one who asks can change what is attached
 * in between. The functions begin with `push %rbp`, as those of CUDA's libraries do,
 * and have names and arguments of CUDA's, so that cctrace probes this very program.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORTED __attribute__((noinline, visibility("default")))

/* Asking for the frame makes the compiler set one up. */
#define BEGIN_WITH_PUSH() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))

static volatile int answer;

EXPORTED int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t size,
				  void *stream)
{
	BEGIN_WITH_PUSH();
	__asm__ volatile("" : : "r"(dst), "r"(src), "r"(size), "r"(stream));
	return answer;
}

EXPORTED int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y,
			    unsigned grid_z, unsigned block_x, unsigned block_y,
			    unsigned block_z, unsigned shared_bytes, void *stream,
			    void **parameters, void **extra)
{
	BEGIN_WITH_PUSH();
	__asm__ volatile(""
			 :
			 : "r"(function), "r"(stream), "r"(parameters), "r"(extra));
	__asm__ volatile("" : : "r"(grid_x + grid_y + grid_z), "r"(shared_bytes));
	__asm__ volatile("" : : "r"(block_x + block_y + block_z));
	return answer;
}

EXPORTED int cuStreamSynchronize(void *stream)
{
	BEGIN_WITH_PUSH();
	__asm__ volatile("" : : "r"(stream));
	return answer;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void pin(int core)
{
	cpu_set_t cores;

	CPU_ZERO(&cores);
	CPU_SET(core, &cores);
	if (sched_setaffinity(0, sizeof(cores), &cores)) {
		perror("probe_cost: sched_setaffinity");
		exit(1);
	}
	/* Undisturbed by what else runs, where that is allowed. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
}

int main(int argc, char **argv)
{
	char name[64];
	long calls;

	if (argc > 1)
		pin(atoi(argv[1]));
	while (scanf("%63s %ld", name, &calls) == 2) {
		uint64_t start_ns = now_ns();

		if (!strcmp(name, "copy"))
			for (long i = 0; i < calls; i++)
				cuMemcpyHtoDAsync_v2(0x7000, name, 4096, NULL);
		else if (!strcmp(name, "launch"))
			for (long i = 0; i < calls; i++)
				cuLaunchKernel(name, 1, 1, 1, 32, 1, 1, 0, NULL, NULL,
					       NULL);
		else
			for (long i = 0; i < calls; i++)
				cuStreamSynchronize(NULL);
		printf("%.3f\n", (double)(now_ns() - start_ns) / (double)calls);
		fflush(stdout);
	}
	return 0;
}
