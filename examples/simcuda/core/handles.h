/* SPDX-License-Identifier: Apache-2.0
 *
 * handles.h - what CUDA's opaque handles point at.
 *
 * All of them are slots of one arena, so that any value a program passes can be checked
 * without being followed: an invalid handle is an error, as in CUDA, and not a crash.
 */
#ifndef SIMCUDA_HANDLES_H
#define SIMCUDA_HANDLES_H

#include <stdint.h>

#define HANDLE_BYTES 512

enum handle_type {
	HANDLE_FREE = 0,
	HANDLE_CONTEXT,
	HANDLE_STREAM,
	HANDLE_EVENT,
	HANDLE_GRAPH,
	HANDLE_GRAPH_EXEC,
	HANDLE_ARRAY,
	HANDLE_POOL,
	HANDLE_MODULE,
	HANDLE_FUNCTION,
	HANDLE_ALLOCATION,
};

/* The first member of each of them. */
struct handle {
	uint32_t type;
	uint32_t next_free;
};

/* A zeroed slot of that type, or NULL if there are too many. */
void *handle_new(enum handle_type type);
/* Give a slot back. */
void handle_free(void *slot);
/* The slot, if the value is a live handle of that type; else NULL. */
void *handle_check(const void *value, enum handle_type type);

#endif
