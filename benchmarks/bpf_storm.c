/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpf_storm: call a probed function at a steady rate from several threads.
 *
 * Usage: bpf_storm LIBRARY RATE SECONDS THREADS
 *
 * LIBRARY is a libcudart of which cudaMemcpyAsync is called; RATE is calls a second of
 * all threads together. Each thread calls in bursts of a millisecond's worth and sleeps
 * in between, so that the processor is left to the recorder too. Prints as JSON how
 * many calls were made, how long it took, and how long the calls took.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define BURST_NS 1000000ull
#define MAX_THREADS 64

typedef int (*memcpy_async_t)(void *, const void *, size_t, int, void *);

static memcpy_async_t memcpy_async;
static uint64_t burst_calls, bursts;

struct worker {
	pthread_t thread;
	uint64_t calls;
	uint64_t busy_ns;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	uint64_t due_ns = now_ns();

	for (uint64_t burst = 0; burst < bursts; burst++) {
		uint64_t begun_ns = now_ns();

		for (uint64_t call = 0; call < burst_calls; call++)
			memcpy_async((void *)0x1000, (void *)0x2000, 64 + call, 1,
				     (void *)7);
		worker->calls += burst_calls;
		worker->busy_ns += now_ns() - begun_ns;
		due_ns += BURST_NS;
		struct timespec due = {(time_t)(due_ns / NS_PER_S),
				       (long)(due_ns % NS_PER_S)};
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static struct worker workers[MAX_THREADS];
	uint64_t rate, threads, calls = 0, busy_ns = 0, begun_ns;
	void *library;

	if (argc != 5) {
		fprintf(stderr, "usage: bpf_storm LIBRARY RATE SECONDS THREADS\n");
		return 2;
	}
	rate = strtoull(argv[2], NULL, 10);
	bursts = strtoull(argv[3], NULL, 10) * (NS_PER_S / BURST_NS);
	threads = strtoull(argv[4], NULL, 10);
	if (!threads || threads > MAX_THREADS) {
		fprintf(stderr, "bpf_storm: 1 to %d threads\n", MAX_THREADS);
		return 2;
	}
	burst_calls = rate / threads / (NS_PER_S / BURST_NS);
	library = dlopen(argv[1], RTLD_NOW);
	if (library)
		memcpy_async = (memcpy_async_t)dlsym(library, "cudaMemcpyAsync");
	if (!memcpy_async) {
		fprintf(stderr, "bpf_storm: %s\n", dlerror());
		return 1;
	}
	begun_ns = now_ns();
	for (uint64_t i = 0; i < threads; i++)
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	for (uint64_t i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		calls += workers[i].calls;
		busy_ns += workers[i].busy_ns;
	}
	printf("{\"calls\": %llu, \"seconds\": %.3f, \"ns_per_call\": %.1f}\n",
	       (unsigned long long)calls, (double)(now_ns() - begun_ns) / NS_PER_S,
	       (double)busy_ns / (double)calls);
	return 0;
}
