/* SPDX-License-Identifier: Apache-2.0
 *
 * sim.h - what the three libraries share: the clock, and the log of every API call.
 *
 * libcuda.so.1 holds the device and the log. libcudart and libnccl find it at run time,
 * as NVIDIA's do, and reach the log through simcuda_services().
 */
#ifndef SIMCUDA_SIM_H
#define SIMCUDA_SIM_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define SIM_SERVICES_VERSION 1
#define SIM_LIKELY(x) __builtin_expect(!!(x), 1)

enum sim_layer {
	SIM_RUNTIME = 1,
	SIM_DRIVER = 2,
	SIM_NCCL = 3,
};

enum sim_copy_kind {
	SIM_COPY_NONE = 0,
	SIM_COPY_H2D = 1,
	SIM_COPY_D2H = 2,
	SIM_COPY_D2D = 3,
	SIM_COPY_P2P = 4,
	SIM_COPY_H2H = 5,
};

enum sim_memory {
	SIM_MEM_NONE = 0,
	SIM_MEM_PAGEABLE = 1,
	SIM_MEM_PINNED = 2,
	SIM_MEM_REGISTERED = 3,
	SIM_MEM_MANAGED = 4,
	SIM_MEM_DEVICE = 5, /* never in a log's host_memory */
};

/* One exported function. All of a library lie side by side in its section sim_apis. */
struct sim_api {
	const char *name;
	uint32_t layer;
	uint32_t id;
};

/* One call in progress; lives on the caller's stack from entry to exit. */
struct sim_call {
	uint64_t entry_ns;
	uint64_t correlation_id;
	uint64_t size_bytes;
	uint64_t stream;
	struct sim_api *api;
	struct sim_call *outer;
	uint8_t copy_kind;
	uint8_t host_memory;
	uint8_t depth;
	uint8_t layer_depth;
};

struct sim_services {
	uint32_t version;
	void (*register_apis)(struct sim_api *first, struct sim_api *end);
	void (*begin)(struct sim_call *call);
	void (*end)(struct sim_call *call, int32_t result);
	/* A kernel that is more than a duration: body runs on the stream's own thread
	 * and says when it ended. Such a function is launched like any other; its one
	 * parameter is the body's argument, released after the last run. */
	void *(*special_kernel)(const char *name,
				uint64_t (*body)(void *arg, uint64_t ready_ns),
				void (*release)(void *arg));
	/* Figures of the profile that NCCL wants: latency, and time of so many bytes.
	 */
	uint64_t (*collective_ns)(uint64_t size_bytes);
	/* Whether a range lies in device memory (or managed, or host memory known). */
	int (*is_device_range)(const void *address, uint64_t size_bytes);
};

/* The first declaration of simcuda's own calls; exported by libcuda.so.1. */
const struct sim_services *simcuda_services(void);
int simcuda_set_kernel_ns(const void *function, uint64_t dur_ns);

static inline uint64_t sim_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Open the call of an exported function: the very first thing in it. The name goes
 * through one more macro, so that a suffix is pasted on before it becomes text. */
#define SIM_ENTER(layer_, name) SIM_ENTER_NAMED(layer_, name)
#define SIM_ENTER_NAMED(layer_, name_)                                                 \
	static struct sim_api sim_api_of_this                                          \
	    __attribute__((section("sim_apis"), used, aligned(16))) = {#name_, layer_, \
								       0};             \
	struct sim_call sim_call_of_this = {.entry_ns = sim_now_ns(),                  \
					    .api = &sim_api_of_this}

#define SIM_CALL (&sim_call_of_this)

extern struct sim_api __start_sim_apis[] __attribute__((visibility("hidden")));
extern struct sim_api __stop_sim_apis[] __attribute__((visibility("hidden")));

#endif
