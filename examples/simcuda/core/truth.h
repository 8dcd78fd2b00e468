/* SPDX-License-Identifier: Apache-2.0
 *
 * truth.h - the simulator's log of what was called and what the device did.
 *
 * One file per process, mapped shared and grown in steps. Threads claim chunks of it
 * and store whole records into them; the type byte goes in last. Stores into a shared
 * mapping outlive the process however it ends, so that _exit and kill -9 lose at most
 * the calls that had not returned yet. README.md describes the format, truth.py reads
 * it.
 */
#ifndef SIMCUDA_TRUTH_H
#define SIMCUDA_TRUTH_H

#include "sim.h"

#define TRUTH_MAGIC "SIMCUDA1"
#define TRUTH_VERSION 1
#define TRUTH_HEADER_BYTES 65536
#define TRUTH_NAMES_AT 4096
#define TRUTH_NAME_BYTES 64
#define TRUTH_NAMES_MAX ((TRUTH_HEADER_BYTES - TRUTH_NAMES_AT) / TRUTH_NAME_BYTES)
#define TRUTH_CHUNK_BYTES 16384
#define TRUTH_RECORD_BYTES 64

enum truth_type {
	TRUTH_EMPTY = 0,
	TRUTH_API = 1,
	TRUTH_DEVICE = 2,
};

enum truth_op {
	TRUTH_OP_KERNEL = 1,
	TRUTH_OP_COPY = 2,
	TRUTH_OP_MEMSET = 3,
	TRUTH_OP_GRAPH = 4,
	TRUTH_OP_HOST_FUNC = 5,
	TRUTH_OP_EVENT = 6,
	TRUTH_OP_WAIT = 7,
	TRUTH_OP_COLLECTIVE = 8,
	TRUTH_OP_ALLOC = 9,
};

struct truth_header {
	char magic[8];
	uint32_t version;
	uint32_t header_bytes;
	uint32_t record_bytes;
	uint32_t chunk_bytes;
	uint32_t pid;
	uint32_t ppid;
	uint64_t start_ns;
	uint64_t chunks;  /* claimed */
	uint64_t dropped; /* records that found the file full */
	uint32_t names;
	uint32_t names_max;
	char profile[64];
};

struct truth_name {
	uint8_t layer;
	char name[TRUTH_NAME_BYTES - 1];
};

struct truth_api {
	uint64_t entry_ns;
	uint64_t exit_ns;
	uint64_t size_bytes;
	uint64_t stream;
	uint64_t correlation_id;
	uint32_t pid;
	uint32_t tid;
	int32_t result;
	uint16_t api;
	uint8_t copy_kind;
	uint8_t host_memory;
	uint8_t depth;
	uint8_t layer_depth;
	uint8_t layer;
	uint8_t reserved[4];
	uint8_t type;
};

struct truth_device {
	uint64_t enqueue_ns;
	uint64_t start_ns;
	uint64_t end_ns;
	uint64_t done_ns;
	uint64_t size_bytes;
	uint64_t stream;
	uint64_t correlation_id;
	uint16_t device;
	uint8_t op;
	uint8_t copy_kind;
	uint8_t host_memory;
	uint8_t reserved[2];
	uint8_t type;
};

/* Say which profile the device runs by. The log opens itself at the first record. */
void truth_profile(const char *profile);
/* In a forked child: the parent's file is not ours. */
void truth_forked(void);
void truth_register(struct sim_api *first, struct sim_api *end);
void truth_begin(struct sim_call *call);
void truth_end(struct sim_call *call, int32_t result);
/* The call in progress on this thread, NULL outside of any. */
struct sim_call *truth_current(void);
/* Write a record of the device; returns where its done_ns is to be stored once it is
 * known, or NULL without a log. */
uint64_t *truth_device_op(const struct truth_device *record);

#endif
