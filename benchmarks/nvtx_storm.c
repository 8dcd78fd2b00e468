/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_storm.c - NVTX events at a steady rate, and a count of what was emitted.
 *
 *   cc -O2 -isystem NVTX nvtx_storm.c -o nvtx_storm -ldl -lpthread
 *   nvtx_storm [-r EVENTS_PER_S] [-t THREADS] [-s SECONDS]
 *
 * The rate is that of all threads together. Of 8 events of a thread 6 are
 * push/pop ranges (nested in threes) and 2 are marks. Prints one JSON object:
 * exactly what was emitted, and the rate it was emitted at.
 */
#define _GNU_SOURCE
#include <nvtx3/nvToolsExt.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { NAMES = 13, BURST_NS = 1000000 };

static double rate_per_thread;
static double seconds = 5;
static nvtxDomainHandle_t domain;
static nvtxStringHandle_t names[NAMES];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void emit_eight(uint64_t n)
{
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
	    .message.registered = names[n % NAMES],
	    .payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64,
	};

	attributes.payload.ullValue = n;
	for (int twice = 0; twice < 2; twice++) {
		nvtxDomainRangePushEx(domain, &attributes);
		nvtxDomainRangePushEx(domain, &attributes);
		nvtxDomainRangePushEx(domain, &attributes);
		nvtxDomainMarkEx(domain, &attributes);
		nvtxDomainRangePop(domain);
		nvtxDomainRangePop(domain);
		nvtxDomainRangePop(domain);
	}
}

/* Emits what is due, then sleeps for a millisecond. Returns eights of events. */
static void *storm(void *argument)
{
	uint64_t *emitted = argument;
	uint64_t start_ns = now_ns();
	uint64_t end = (uint64_t)(rate_per_thread * seconds / 8);
	uint64_t n = 0;

	while (n < end) {
		uint64_t elapsed_ns = now_ns() - start_ns;
		uint64_t due =
		    (uint64_t)((double)elapsed_ns * 1e-9 * rate_per_thread / 8);
		struct timespec nap = {.tv_nsec = BURST_NS};

		for (; n < due && n < end; n++)
			emit_eight(n);
		if (n < end)
			nanosleep(&nap, NULL);
	}
	*emitted = n;
	return NULL;
}

int main(int argc, char **argv)
{
	double rate = 100000;
	int option, threads = 2;
	uint64_t eights = 0, start_ns;
	pthread_t *thread;
	uint64_t *emitted;

	while ((option = getopt(argc, argv, "r:s:t:")) != -1) {
		if (option == '?')
			return 2;
		if (option == 'r')
			rate = atof(optarg);
		else if (option == 's')
			seconds = atof(optarg);
		else
			threads = atoi(optarg);
	}
	thread = calloc((size_t)threads, sizeof(*thread));
	emitted = calloc((size_t)threads, sizeof(*emitted));
	if (threads < 1 || thread == NULL || emitted == NULL)
		return 2;
	rate_per_thread = rate / threads;
	domain = nvtxDomainCreateA("storm");
	for (int i = 0; i < NAMES; i++) {
		char name[32];

		snprintf(name, sizeof(name), "storm.%d", i);
		names[i] = nvtxDomainRegisterStringA(domain, name);
	}
	start_ns = now_ns();
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, storm, &emitted[i]) != 0)
			return 1;
	for (int i = 0; i < threads; i++) {
		pthread_join(thread[i], NULL);
		eights += emitted[i];
	}
	printf("{\"threads\": %d, \"ranges\": %llu, \"marks\": %llu, \"events\": %llu, "
	       "\"events_per_s\": %.0f}\n",
	       threads, (unsigned long long)(6 * eights),
	       (unsigned long long)(2 * eights), (unsigned long long)(8 * eights),
	       (double)(8 * eights) * 1e9 / (double)(now_ns() - start_ns));
	return 0;
}
