/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_log.h - NVTX calls that write down what they did.
 *
 * Each process appends to LOGDIR/PID.log, one line per finished event, in the
 * order the events finish on their thread:
 *
 *   tid kind domain name category payload_type payload depth color id lo hi lo2 hi2
 *
 * separated by tabs; "-" is none. [lo, hi] holds the event's start on
 * CLOCK_MONOTONIC, [lo2, hi2] its end. kind is push_pop, mark, start, end, open
 * (pushed, never popped) or unmatched (a pop of nothing). It is the tests' truth:
 * nothing in here looks at what the agent does, except for the depth NVTX
 * returns, which must be the one the program itself counted.
 */
#ifndef NVTX_LOG_H
#define NVTX_LOG_H

#define _GNU_SOURCE
#include <nvtx3/nvToolsExt.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

enum form { REGISTERED, ASCII, WIDE, PLAIN_ASCII, PLAIN_WIDE, NO_MESSAGE };

struct event {
	const char *domain; /* NULL: default */
	const char *name;
	enum form form;
	uint32_t category; /* odd ones are named "cat-N" */
	nvtxPayloadType_t payload_type;
	uint64_t payload; /* bits */
	bool has_color;
	uint32_t color;
};

static const char *log_directory = ".";
static int log_fd = -1;
static pid_t log_pid;

enum { OPEN_MAX_LOGGED = 256, HANDLES = 64 };

static __thread struct {
	struct event event;
	uint64_t lo, hi;
	int depth;
	bool closed;
} open_ranges[OPEN_MAX_LOGGED];
static __thread int open_count;

static void fail(const char *what)
{
	fprintf(stderr, "nvtx_workload: %s\n", what);
	_exit(99);
}

static uint64_t log_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* errno must survive every call; the value is one no call sets by itself. */
#define CALL(lo, hi, call)                                                             \
	do {                                                                           \
		lo = log_now_ns();                                                     \
		errno = 4242;                                                          \
		call;                                                                  \
		if (errno != 4242)                                                     \
			fail("errno was not preserved by " #call);                     \
		hi = log_now_ns();                                                     \
	} while (0)

/* Before threads are made: each opening it for itself would be a race. */
static void log_begin(void)
{
	char path[512];

	if (log_fd >= 0 && log_pid == getpid())
		return;
	log_pid = getpid();
	snprintf(path, sizeof(path), "%s/%d.log", log_directory, (int)log_pid);
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0)
		fail("cannot open the log");
}

static void log_line(const char *kind, const struct event *event, int depth,
		     uint64_t id, const uint64_t times[4])
{
	char line[2048], category[32], color[16], identity[24];
	int bytes;

	log_begin();
	snprintf(category, sizeof(category), event->category % 2 ? "cat-%u" : "%u",
		 event->category);
	snprintf(color, sizeof(color), event->has_color ? "%u" : "-", event->color);
	snprintf(identity, sizeof(identity), id != 0 ? "%" PRIu64 : "-", id);
	bytes = snprintf(line, sizeof(line),
			 "%d\t%s\t%s\t%s\t%s\t%d\t%" PRIu64 "\t%d\t%s\t%s\t%" PRIu64
			 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n",
			 (int)syscall(SYS_gettid), kind,
			 event->domain != NULL ? event->domain : "-",
			 event->form != NO_MESSAGE ? event->name : "-", category,
			 (int)event->payload_type, event->payload, depth, color,
			 identity, times[0], times[1], times[2], times[3]);
	if (write(log_fd, line, (size_t)bytes) != bytes)
		fail("cannot write the log");
}

static nvtxDomainHandle_t domain_handle(const char *name)
{
	static struct {
		const char *name;
		nvtxDomainHandle_t handle;
	} handles[HANDLES];
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	nvtxDomainHandle_t handle = NULL;

	if (name == NULL)
		return NULL;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < HANDLES && handle == NULL; i++) {
		if (handles[i].name == NULL) {
			handles[i].handle = nvtxDomainCreateA(name);
			handles[i].name = name;
			for (uint32_t category = 1; category < 8; category += 2) {
				char text[16];

				snprintf(text, sizeof(text), "cat-%u", category);
				nvtxDomainNameCategoryA(handles[i].handle, category,
							text);
			}
		}
		if (strcmp(handles[i].name, name) == 0)
			handle = handles[i].handle;
	}
	pthread_mutex_unlock(&lock);
	return handle;
}

/* Each use registers anew, which must give the same handle. */
static nvtxEventAttributes_t attributes_of(const struct event *event, wchar_t *wide)
{
	nvtxDomainHandle_t domain = domain_handle(event->domain);
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .category = event->category,
	    .colorType = event->has_color ? NVTX_COLOR_ARGB : NVTX_COLOR_UNKNOWN,
	    .color = event->color,
	    .payloadType = (int32_t)event->payload_type,
	};

	attributes.payload.ullValue = event->payload;
	switch (event->form) {
	case REGISTERED:
		attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
		attributes.message.registered =
		    nvtxDomainRegisterStringA(domain, event->name);
		break;
	case WIDE:
	case PLAIN_WIDE:
		mbstowcs(wide, event->name, 256);
		attributes.messageType = NVTX_MESSAGE_TYPE_UNICODE;
		attributes.message.unicode = wide;
		break;
	case NO_MESSAGE:
		break;
	default:
		attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
		attributes.message.ascii = event->name;
	}
	return attributes;
}

static int depth_in(const char *domain)
{
	int depth = 0;

	for (int i = 0; i < open_count; i++) {
		const char *other = open_ranges[i].event.domain;

		if (!open_ranges[i].closed &&
		    (other == domain ||
		     (other != NULL && domain != NULL && strcmp(other, domain) == 0)))
			depth++;
	}
	return depth;
}

static void log_push(struct event event)
{
	nvtxDomainHandle_t domain = domain_handle(event.domain);
	int expected = depth_in(event.domain);
	nvtxEventAttributes_t attributes;
	wchar_t wide[256];
	uint64_t lo, hi;
	int depth;

	attributes = attributes_of(&event, wide);
	if (event.form == PLAIN_ASCII)
		CALL(lo, hi, depth = nvtxRangePushA(event.name));
	else if (event.form == PLAIN_WIDE)
		CALL(lo, hi, depth = nvtxRangePushW(wide));
	else if (domain == NULL)
		CALL(lo, hi, depth = nvtxRangePushEx(&attributes));
	else
		CALL(lo, hi, depth = nvtxDomainRangePushEx(domain, &attributes));
	if (depth >= 0 && depth != expected)
		fail("a push returned the wrong depth");
	open_ranges[open_count].event = event;
	open_ranges[open_count].lo = lo;
	open_ranges[open_count].hi = hi;
	open_ranges[open_count].depth = expected;
	open_ranges[open_count].closed = false;
	open_count++;
}

static void log_pop(const char *domain_name)
{
	nvtxDomainHandle_t domain = domain_handle(domain_name);
	uint64_t times[4] = {0};
	int i = open_count - 1, depth;

	if (domain == NULL)
		CALL(times[2], times[3], depth = nvtxRangePop());
	else
		CALL(times[2], times[3], depth = nvtxDomainRangePop(domain));
	while (i >= 0) {
		const char *other = open_ranges[i].event.domain;

		if (!open_ranges[i].closed &&
		    (other == domain_name || (other != NULL && domain_name != NULL &&
					      strcmp(other, domain_name) == 0)))
			break;
		i--;
	}
	if (i < 0) {
		struct event none = {.domain = domain_name, .form = NO_MESSAGE};

		if (depth >= 0)
			fail("a pop of nothing returned a depth");
		log_line("unmatched", &none, 0, 0, times);
		return;
	}
	if (depth >= 0 && depth != open_ranges[i].depth)
		fail("a pop returned the wrong depth");
	times[0] = open_ranges[i].lo;
	times[1] = open_ranges[i].hi;
	log_line("push_pop", &open_ranges[i].event, open_ranges[i].depth, 0, times);
	open_ranges[i].closed = true;
	while (open_count > 0 && open_ranges[open_count - 1].closed)
		open_count--;
}

static void log_mark(struct event event)
{
	nvtxDomainHandle_t domain = domain_handle(event.domain);
	nvtxEventAttributes_t attributes;
	uint64_t times[4] = {0};
	wchar_t wide[256];

	attributes = attributes_of(&event, wide);
	if (event.form == PLAIN_ASCII)
		CALL(times[0], times[1], nvtxMarkA(event.name));
	else if (event.form == PLAIN_WIDE)
		CALL(times[0], times[1], nvtxMarkW(wide));
	else if (domain == NULL)
		CALL(times[0], times[1], nvtxMarkEx(&attributes));
	else
		CALL(times[0], times[1], nvtxDomainMarkEx(domain, &attributes));
	log_line("mark", &event, 0, 0, times);
}

static nvtxRangeId_t log_start(struct event event)
{
	nvtxDomainHandle_t domain = domain_handle(event.domain);
	nvtxEventAttributes_t attributes;
	uint64_t times[4] = {0};
	nvtxRangeId_t id;
	wchar_t wide[256];

	attributes = attributes_of(&event, wide);
	if (event.form == PLAIN_ASCII)
		CALL(times[0], times[1], id = nvtxRangeStartA(event.name));
	else if (event.form == PLAIN_WIDE)
		CALL(times[0], times[1], id = nvtxRangeStartW(wide));
	else if (domain == NULL)
		CALL(times[0], times[1], id = nvtxRangeStartEx(&attributes));
	else
		CALL(times[0], times[1],
		     id = nvtxDomainRangeStartEx(domain, &attributes));
	log_line("start", &event, 0, id, times);
	return id;
}

static void log_end(const char *domain_name, nvtxRangeId_t id)
{
	nvtxDomainHandle_t domain = domain_handle(domain_name);
	struct event none = {.form = NO_MESSAGE};
	uint64_t times[4] = {0};

	if (domain == NULL)
		CALL(times[0], times[1], nvtxRangeEnd(id));
	else
		CALL(times[0], times[1], nvtxDomainRangeEnd(domain, id));
	log_line("end", &none, 0, id, times);
}

/* What the calling thread leaves open, outermost first. */
static void log_open(void)
{
	for (int i = 0; i < open_count; i++) {
		uint64_t times[4] = {open_ranges[i].lo, open_ranges[i].hi, 0, 0};

		if (!open_ranges[i].closed)
			log_line("open", &open_ranges[i].event, open_ranges[i].depth, 0,
				 times);
	}
}

/* 23 ranges in nests of up to three, 7 marks and 5 start/ends, in one domain. */
static void log_burst(const char *domain, const char *name)
{
	struct event event = {.domain = domain, .name = name, .form = REGISTERED};

	for (int i = 0; i < 23; i++) {
		event.payload_type = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
		event.payload = (uint64_t)i;
		event.category = domain == NULL ? 0 : (uint32_t)(i % 4);
		log_push(event);
		if (i % 3 == 2)
			for (int nested = 0; nested < 3; nested++)
				log_pop(domain);
	}
	while (depth_in(domain) > 0)
		log_pop(domain);
	event.payload_type = NVTX_PAYLOAD_UNKNOWN;
	event.payload = 0;
	event.form = ASCII;
	for (int i = 0; i < 7; i++)
		log_mark(event);
	for (int i = 0; i < 5; i++)
		log_end(domain, log_start(event));
}

#endif /* NVTX_LOG_H */
