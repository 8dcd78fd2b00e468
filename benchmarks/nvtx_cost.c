/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_cost.c - nanoseconds per NVTX event, in C, on one pinned core.
 *
 * Run it uninjected, with noop_injection.c, and under the recorder; the
 * difference to the no-op is what the agent costs. Between batches it pauses
 * long enough for a recorder to empty the ring, so that drops, which are
 * cheaper than writes, are not measured.
 *
 *   cc -O2 -isystem NVTX nvtx_cost.c -o nvtx_cost -ldl
 *   nvtx_cost [-c CORE] [-b BATCHES] [-n EVENTS] [-p PAUSE_MS]
 *
 * Prints one JSON object per kind of event. An event is one push with its pop,
 * one start with its end, or one mark.
 */
#define _GNU_SOURCE
#include <nvtx3/nvToolsExt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static nvtxDomainHandle_t domain;
static nvtxEventAttributes_t attributes;

static void push_pop_registered(int events)
{
	for (int i = 0; i < events; i++) {
		nvtxDomainRangePushEx(domain, &attributes);
		nvtxDomainRangePop(domain);
	}
}

static void push_pop_payload(int events)
{
	nvtxEventAttributes_t own = attributes;

	own.category = 2;
	own.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
	for (int i = 0; i < events; i++) {
		own.payload.ullValue = (uint64_t)i;
		nvtxDomainRangePushEx(domain, &own);
		nvtxDomainRangePop(domain);
	}
}

static void push_pop_text(int events)
{
	for (int i = 0; i < events; i++) {
		nvtxRangePushA("model.layers.17.self_attn");
		nvtxRangePop();
	}
}

/* The worst case of names seen before: more of them than the agent's cache of
 * recent ones holds, so each is hashed and looked up. */
static void push_pop_1024_texts(int events)
{
	static char texts[1024][32];

	if (texts[0][0] == 0)
		for (int i = 0; i < 1024; i++)
			snprintf(texts[i], sizeof(texts[i]),
				 "model.layers.%d.self_attn", i);
	for (int i = 0; i < events; i++) {
		nvtxRangePushA(texts[i & 1023]);
		nvtxRangePop();
	}
}

static void start_end_registered(int events)
{
	for (int i = 0; i < events; i++)
		nvtxDomainRangeEnd(domain, nvtxDomainRangeStartEx(domain, &attributes));
}

static void mark_registered(int events)
{
	for (int i = 0; i < events; i++)
		nvtxDomainMarkEx(domain, &attributes);
}

static void mark_text(int events)
{
	for (int i = 0; i < events; i++)
		nvtxMarkA("model.layers.17.self_attn");
}

static const struct {
	const char *name;
	void (*run)(int events);
} kinds[] = {
    {"push_pop_registered", push_pop_registered},
    {"push_pop_payload", push_pop_payload},
    {"push_pop_text", push_pop_text},
    {"push_pop_1024_texts", push_pop_1024_texts},
    {"start_end_registered", start_end_registered},
    {"mark_registered", mark_registered},
    {"mark_text", mark_text},
};

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return (x > y) - (x < y);
}

static void measure(size_t kind, int batches, int events, int pause_ms)
{
	double *cost = calloc((size_t)batches, sizeof(*cost));

	if (cost == NULL)
		exit(1);
	for (int i = 0; i < batches; i++) {
		double start_ns;

		usleep((useconds_t)pause_ms * 1000);
		kinds[kind].run(events / 10); /* wake the core up */
		start_ns = now_ns();
		kinds[kind].run(events);
		cost[i] = (now_ns() - start_ns) / events;
	}
	qsort(cost, (size_t)batches, sizeof(*cost), ascending);
	printf("{\"kind\": \"%s\", \"best_ns\": %.2f, \"median_ns\": %.2f, "
	       "\"batches\": %d, \"events\": %d}\n",
	       kinds[kind].name, cost[0], cost[batches / 2], batches, events);
	free(cost);
}

int main(int argc, char **argv)
{
	int batches = 41, core = 0, events = 5000, pause_ms = 30, option;
	cpu_set_t cores;

	while ((option = getopt(argc, argv, "b:c:n:p:")) != -1) {
		if (option == '?')
			return 2;
		*(option == 'b'   ? &batches
		  : option == 'c' ? &core
		  : option == 'n' ? &events
				  : &pause_ms) = atoi(optarg);
	}
	CPU_ZERO(&cores);
	CPU_SET((size_t)core, &cores);
	if (sched_setaffinity(0, sizeof(cores), &cores) != 0) {
		perror("nvtx_cost: cannot pin to one core");
		return 1;
	}
	domain = nvtxDomainCreateA("cost");
	attributes.version = NVTX_VERSION;
	attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
	attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
	attributes.message.registered =
	    nvtxDomainRegisterStringA(domain, "model.layers.17.self_attn");
	for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++)
		measure(kind, batches, events, pause_ms);
	return 0;
}
