/* SPDX-License-Identifier: Apache-2.0
 *
 * driver.h - how an exported function of libcuda is written.
 *
 *	CUresult NAME(arguments)
 *	{
 *		ENTER(NAME);
 *		LEAVE(what it does);
 *	}
 *
 * Files *.inc.h are read twice. Functions that know a default stream come in two: as
 * they are, and with a suffix for the per-thread default stream (_ptds where they wait,
 * _ptsz where they take a stream). DS() and SZ() name them, PER_THREAD says which it
 * is.
 */
#ifndef SIMCUDA_DRIVER_H
#define SIMCUDA_DRIVER_H

/* All versions of all functions under their own names. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

#include "../core/copy.h"
#include "../core/graph.h"
#include "../core/memory.h"
#include "../core/state.h"

#define ENTER(name)                                                                    \
	SIM_ENTER(SIM_DRIVER, name);                                                   \
	truth_begin(SIM_CALL)

#define LEAVE(result) return driver_leave(SIM_CALL, result)

/* Leave at once if the driver is not initialised. */
#define LEAVE_UNLESS_READY()                                                           \
	do {                                                                           \
		CUresult ready_ = state_check();                                       \
		if (ready_ != CUDA_SUCCESS)                                            \
			LEAVE(ready_);                                                 \
	} while (0)

static inline CUresult driver_leave(struct sim_call *call, CUresult result)
{
	truth_end(call, (int32_t)result);
	return result;
}

static inline uint64_t address_of(const void *pointer)
{
	return (uint64_t)(uintptr_t)pointer;
}

/* The work behind functions of more than one version. */
CUresult batch_copy(struct sim_call *call, CUdeviceptr *dsts, CUdeviceptr *srcs,
		    size_t *sizes, size_t count, size_t *fail_index, CUstream stream,
		    int per_thread);
CUresult batch_copy_3d(struct sim_call *call, size_t count, CUDA_MEMCPY3D_BATCH_OP *ops,
		       size_t *fail_index, CUstream stream, int per_thread);
CUresult prefetch(struct sim_call *call, CUdeviceptr at, size_t size_bytes,
		  CUstream stream, int per_thread);
CUresult host_function(struct sim_call *call, CUstream stream, CUhostFn function,
		       void *data, int per_thread);
CUresult wait_value(struct sim_call *call, CUstream stream, CUdeviceptr address,
		    uint64_t value, unsigned value_bytes, unsigned flags,
		    int per_thread);
CUresult event_record(struct sim_call *call, CUevent event, CUstream stream,
		      int per_thread);
CUresult event_wait_in_stream(struct sim_call *call, CUstream stream, CUevent event,
			      int per_thread);
CUresult stream_synchronize(struct sim_call *call, CUstream stream, int per_thread);
CUresult stream_query(struct sim_call *call, CUstream stream, int per_thread);
CUresult alloc_async(struct sim_call *call, CUdeviceptr *address, size_t size_bytes,
		     CUstream stream, int per_thread);
CUresult free_async(struct sim_call *call, CUdeviceptr address, CUstream stream,
		    int per_thread);
CUresult capture_info(struct sim_call *call, CUstream stream, int per_thread,
		      CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph);

#endif
