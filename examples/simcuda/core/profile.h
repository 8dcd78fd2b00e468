/* SPDX-License-Identifier: Apache-2.0
 *
 * profile.h - the figures of the bridge between host and device, read from a TOML file.
 */
#ifndef SIMCUDA_PROFILE_H
#define SIMCUDA_PROFILE_H

#include <stdint.h>

/* How long an asynchronous copy keeps its caller. */
enum copy_mode {
	MODE_ASYNC,            /* until it is submitted */
	MODE_STAGED,           /* until the source is read into a staging buffer */
	MODE_HOST_SYNCHRONOUS, /* until it and all before it on its stream is done */
};

struct copy_figures {
	enum copy_mode mode;
	uint64_t host_ns;    /* host time to submit */
	uint64_t latency_ns; /* fixed part of the device time */
	double gb_per_s;     /* 1e9 bytes per second */
};

enum direction {
	DIR_H2D,
	DIR_D2H,
	DIRECTIONS,
};

enum host_kind {
	HOST_PINNED,
	HOST_PAGEABLE,
	HOST_MANAGED,
	HOST_KINDS,
};

struct profile {
	char name[64];
	int confidential;

	char device_name[128];
	uint64_t device_count;
	uint64_t device_memory_bytes;
	uint64_t capability_major, capability_minor;

	uint64_t launch_host_ns;
	uint64_t launch_latency_ns;
	uint64_t graph_host_ns;
	uint64_t kernel_ns;

	uint64_t sync_host_ns;
	uint64_t query_host_ns;
	uint64_t event_host_ns;

	uint64_t alloc_device_ns, alloc_host_ns, alloc_async_ns, free_ns;
	uint64_t first_copy_ns;

	uint64_t copies_at_once;
	struct copy_figures bridge[DIRECTIONS][HOST_KINDS];
	struct copy_figures d2d, p2p;
	uint64_t memset_host_ns;
	double memset_gb_per_s;

	uint64_t collective_latency_ns;
	double collective_gb_per_s;

	double jitter;
	uint64_t seed;
};

/* The profile of this process; valid after profile_load() returned 0. */
extern struct profile sim_profile;

/* Read what SIMCUDA_PROFILE names, once. Returns 0, or -1 after saying on stderr what
 * is wrong and where. */
int profile_load(void);

/* A time of the profile with this run's jitter on it. */
uint64_t profile_jitter(uint64_t dur_ns);

/* How long so many bytes take at a bandwidth. */
uint64_t profile_transfer_ns(uint64_t size_bytes, double gb_per_s);

#endif
