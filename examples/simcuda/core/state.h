/* SPDX-License-Identifier: Apache-2.0
 *
 * state.h - whether the driver is initialised, and what is current on this thread.
 */
#ifndef SIMCUDA_STATE_H
#define SIMCUDA_STATE_H

#include "device.h"
#include "profile.h"

/* cuInit's work; may be called again. */
CUresult state_init(void);
/* CUDA_SUCCESS if a call may go on. */
CUresult state_check(void);

/* The current context of this thread, NULL if there is none. */
struct sim_context *context_current(void);
CUresult context_push(struct sim_context *context);
struct sim_context *context_pop(void);
CUresult context_set(struct sim_context *context);
CUresult context_create(int device, uint32_t flags, struct sim_context **created);
CUresult context_destroy(struct sim_context *context);
/* The device's primary context, made at the first retain. */
CUresult context_retain_primary(int device, struct sim_context **primary);
CUresult context_release_primary(int device, int all);
/* Its flags, and whether it is active. */
int context_primary_state(int device, uint32_t *flags);

/* What a stream argument means here: a handle, the legacy stream, or this thread's. */
CUresult stream_find(CUstream value, int per_thread, struct sim_stream **found);
CUresult stream_create(struct sim_context *context, uint32_t flags, int priority,
		       struct sim_stream **created);
/* Its queued work still runs. Not for the legacy stream. */
void stream_destroy(struct sim_stream *stream);
/* As stream_find, and an error while it is being captured. */
CUresult stream_find_idle(CUstream value, int per_thread, struct sim_stream **found);

#endif
