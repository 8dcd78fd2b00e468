/* SPDX-License-Identifier: Apache-2.0
 *
 * truth.c - the log of calls and device work (see truth.h).
 */
#define _GNU_SOURCE
#include "truth.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE_BYTES ((uint64_t)1 << 30)
#define GROW_BYTES ((uint64_t)1 << 20)
#define LIBRARIES_MAX 8
#define LAYERS 4

_Static_assert(sizeof(struct truth_api) == TRUTH_RECORD_BYTES, "a record's size");
_Static_assert(sizeof(struct truth_device) == TRUTH_RECORD_BYTES, "a record's size");
_Static_assert(sizeof(struct truth_name) == TRUTH_NAME_BYTES, "a name's size");
_Static_assert(sizeof(struct truth_header) <= TRUTH_NAMES_AT, "names come after");

static struct {
	pthread_mutex_t lock;
	char *base; /* NULL: no log */
	int fd;
	uint64_t file_bytes;
	struct {
		struct sim_api *first, *end;
	} libraries[LIBRARIES_MAX];
	unsigned library_count;
	uint32_t next_id;
	atomic_int is_tried; /* whether there is to be a file has been found out */
	char profile[64];
} log_ = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

static atomic_uint generation = 1; /* changes with every fork */
static atomic_uint_fast64_t last_correlation;

static __thread struct {
	char *next, *end;
	struct sim_call *innermost;
	unsigned generation;
	uint32_t pid, tid;
	uint8_t depth;
	uint8_t layer_depth[LAYERS];
} mine __attribute__((tls_model("initial-exec")));

static struct truth_header *header(void)
{
	return (struct truth_header *)log_.base;
}

static void name_library(unsigned library)
{
	struct sim_api *api;

	for (api = log_.libraries[library].first; api < log_.libraries[library].end;
	     api++) {
		struct truth_name *entry;

		if (api->id >= TRUTH_NAMES_MAX)
			continue;
		entry = (struct truth_name *)(log_.base + TRUTH_NAMES_AT) + api->id;
		entry->layer = (uint8_t)api->layer;
		snprintf(entry->name, sizeof(entry->name), "%s", api->name);
		if (header()->names < api->id + 1)
			header()->names = api->id + 1;
	}
}

void truth_register(struct sim_api *first, struct sim_api *end)
{
	struct sim_api *api;

	pthread_mutex_lock(&log_.lock);
	if (log_.library_count < LIBRARIES_MAX) {
		/* Number 0 is nobody's, so that a zeroed record names no function. */
		for (api = first; api < end; api++)
			api->id = ++log_.next_id;
		log_.libraries[log_.library_count].first = first;
		log_.libraries[log_.library_count].end = end;
		log_.library_count++;
		if (log_.base)
			name_library(log_.library_count - 1);
	}
	pthread_mutex_unlock(&log_.lock);
}

static int complain(const char *what, const char *path)
{
	fprintf(stderr,
		"simcuda: %s %s: %s; no truth is logged\n"
		"hint: SIMCUDA_TRUTH must name a directory that can be written to\n",
		what, path, strerror(errno));
	return -1;
}

static int open_file(const char *directory, char *path, size_t path_bytes)
{
	int fd = -1, attempt;

	/* A process that execs keeps its pid: each image has a file of its own. */
	for (attempt = 0; attempt < 1000 && fd < 0; attempt++) {
		snprintf(path, path_bytes, "%s/truth-%d-%d.bin", directory,
			 (int)getpid(), attempt);
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (fd < 0 && errno != EEXIST)
			break;
	}
	return fd;
}

/* Open the log, at the first record, if SIMCUDA_TRUTH asks for one. */
static void open_log(void)
{
	const char *directory = getenv("SIMCUDA_TRUTH");
	char path[4096];
	struct truth_header *head;
	unsigned library;
	char *base;

	pthread_mutex_lock(&log_.lock);
	if (atomic_load(&log_.is_tried) || !directory || !*directory)
		goto out;
	if (mkdir(directory, 0755) < 0 && errno != EEXIST) {
		complain("cannot make the directory", directory);
		goto out;
	}
	log_.fd = open_file(directory, path, sizeof(path));
	if (log_.fd < 0) {
		complain("cannot create", path);
		goto out;
	}
	log_.file_bytes = GROW_BYTES;
	if (ftruncate(log_.fd, (off_t)log_.file_bytes) < 0) {
		complain("cannot size", path);
		goto out;
	}
	/* All of it that there can ever be: what lies beyond the file's end is not
	 * touched before the file has grown. */
	base = mmap(NULL, MAX_FILE_BYTES, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_NORESERVE, log_.fd, 0);
	if (base == MAP_FAILED) {
		complain("cannot map", path);
		goto out;
	}
	head = (struct truth_header *)base;
	head->version = TRUTH_VERSION;
	head->header_bytes = TRUTH_HEADER_BYTES;
	head->record_bytes = TRUTH_RECORD_BYTES;
	head->chunk_bytes = TRUTH_CHUNK_BYTES;
	head->pid = (uint32_t)getpid();
	head->ppid = (uint32_t)getppid();
	head->start_ns = sim_now_ns();
	head->names_max = TRUTH_NAMES_MAX;
	memcpy(head->profile, log_.profile, sizeof(head->profile));
	memcpy(head->magic, TRUTH_MAGIC, sizeof(head->magic));
	log_.base = base;
	for (library = 0; library < log_.library_count; library++)
		name_library(library);
out:
	atomic_store(&log_.is_tried, 1);
	pthread_mutex_unlock(&log_.lock);
}

void truth_profile(const char *profile)
{
	pthread_mutex_lock(&log_.lock);
	snprintf(log_.profile, sizeof(log_.profile), "%s", profile);
	if (log_.base)
		memcpy(header()->profile, log_.profile, sizeof(log_.profile));
	pthread_mutex_unlock(&log_.lock);
}

void truth_forked(void)
{
	pthread_mutex_init(&log_.lock, NULL);
	if (log_.base)
		munmap(log_.base, MAX_FILE_BYTES);
	if (log_.fd >= 0)
		close(log_.fd);
	log_.base = NULL;
	log_.fd = -1;
	atomic_store(&log_.is_tried, 0);
	atomic_fetch_add(&generation, 1);
	/* A fork inside of a call (a host function) ends no call of the child's. */
	mine.innermost = NULL;
	mine.depth = 0;
	memset(mine.layer_depth, 0, sizeof(mine.layer_depth));
}

static void renew_thread(void)
{
	unsigned now = atomic_load_explicit(&generation, memory_order_relaxed);

	if (SIM_LIKELY(mine.generation == now))
		return;
	mine.generation = now;
	mine.next = mine.end = NULL;
	mine.pid = (uint32_t)getpid();
	mine.tid = (uint32_t)gettid();
}

/* Claim a chunk; 0 if the file is full. */
static int claim_chunk(void)
{
	uint64_t index, begin, end;
	int ok = 0;

	pthread_mutex_lock(&log_.lock);
	index = header()->chunks;
	begin = TRUTH_HEADER_BYTES + index * TRUTH_CHUNK_BYTES;
	end = begin + TRUTH_CHUNK_BYTES;
	if (end > MAX_FILE_BYTES)
		goto out;
	if (end > log_.file_bytes) {
		if (ftruncate(log_.fd, (off_t)(log_.file_bytes + GROW_BYTES)) < 0)
			goto out;
		log_.file_bytes += GROW_BYTES;
	}
	header()->chunks = index + 1;
	mine.next = log_.base + begin;
	mine.end = log_.base + end;
	ok = 1;
out:
	pthread_mutex_unlock(&log_.lock);
#ifdef MADV_POPULATE_WRITE
	/* Page faults here, between calls, rather than inside of one that is timed. */
	if (ok)
		madvise(mine.next, TRUTH_CHUNK_BYTES, MADV_POPULATE_WRITE);
#endif
	return ok;
}

static char *claim_record(void)
{
	char *record;

	if (!atomic_load_explicit(&log_.is_tried, memory_order_acquire))
		open_log();
	if (!log_.base)
		return NULL;
	renew_thread();
	if (mine.next == mine.end && !claim_chunk()) {
		__atomic_fetch_add(&header()->dropped, 1, __ATOMIC_RELAXED);
		return NULL;
	}
	record = mine.next;
	mine.next += TRUTH_RECORD_BYTES;
	return record;
}

/* Store all but the last byte, the type, and then that. */
static void publish(char *where, const void *record)
{
	memcpy(where, record, TRUTH_RECORD_BYTES - 1);
	__atomic_store_n((uint8_t *)where + TRUTH_RECORD_BYTES - 1,
			 ((const uint8_t *)record)[TRUTH_RECORD_BYTES - 1],
			 __ATOMIC_RELEASE);
}

struct sim_call *truth_current(void)
{
	return mine.innermost;
}

void truth_begin(struct sim_call *call)
{
	call->correlation_id =
	    1 + atomic_fetch_add_explicit(&last_correlation, 1, memory_order_relaxed);
	call->outer = mine.innermost;
	call->depth = mine.depth++;
	call->layer_depth = mine.layer_depth[call->api->layer]++;
	mine.innermost = call;
}

void truth_end(struct sim_call *call, int32_t result)
{
	struct truth_api record = {
	    .entry_ns = call->entry_ns,
	    .size_bytes = call->size_bytes,
	    .stream = call->stream,
	    .correlation_id = call->correlation_id,
	    .result = result,
	    .api = (uint16_t)call->api->id,
	    .copy_kind = call->copy_kind,
	    .host_memory = call->host_memory,
	    .depth = call->depth,
	    .layer_depth = call->layer_depth,
	    .layer = (uint8_t)call->api->layer,
	    .type = TRUTH_API,
	};
	char *where;

	mine.innermost = call->outer;
	mine.depth = call->depth;
	mine.layer_depth[call->api->layer] = call->layer_depth;
	where = claim_record();
	if (!where)
		return;
	record.pid = mine.pid;
	record.tid = mine.tid;
	record.exit_ns = sim_now_ns();
	publish(where, &record);
}

uint64_t *truth_device_op(const struct truth_device *record)
{
	struct truth_device stored = *record;
	char *where = claim_record();

	if (!where)
		return NULL;
	stored.type = TRUTH_DEVICE;
	publish(where, &stored);
	return &((struct truth_device *)where)->done_ns;
}
