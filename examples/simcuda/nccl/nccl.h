/* SPDX-License-Identifier: Apache-2.0
 *
 * nccl.h - the part of NCCL's API that is simulated, and what stands behind it.
 *
 * The prototypes and values are those of NCCL 2's public ABI. Ranks, in one process or
 * in many, meet in a shared-memory segment named by the unique id: there they wait for
 * each other and exchange their data, on the thread of the stream that they were called
 * on.
 */
#ifndef SIMCUDA_NCCL_H
#define SIMCUDA_NCCL_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <pthread.h>

#include "../core/sim.h"

#define NCCL_VERSION 22700 /* 2.27.0: what the simulated part is of */
#define UNIQUE_ID_BYTES 128
#define RANKS_MAX 64

typedef struct sim_comm *ncclComm_t;
typedef struct {
	char internal[UNIQUE_ID_BYTES];
} ncclUniqueId;

typedef enum {
	ncclSuccess = 0,
	ncclUnhandledCudaError = 1,
	ncclSystemError = 2,
	ncclInternalError = 3,
	ncclInvalidArgument = 4,
	ncclInvalidUsage = 5,
	ncclRemoteError = 6,
} ncclResult_t;

typedef enum {
	ncclInt8 = 0,
	ncclUint8 = 1,
	ncclInt32 = 2,
	ncclUint32 = 3,
	ncclInt64 = 4,
	ncclUint64 = 5,
	ncclFloat16 = 6,
	ncclFloat32 = 7,
	ncclFloat64 = 8,
	ncclBfloat16 = 9,
} ncclDataType_t;

typedef enum {
	ncclSum = 0,
	ncclProd = 1,
	ncclMax = 2,
	ncclMin = 3,
	ncclAvg = 4,
} ncclRedOp_t;

/* What the ranks of a communicator share. Zeroed when it is made. */
struct segment {
	uint32_t rank_count; /* 0 until the first rank comes */
	uint32_t joined;
	uint32_t is_broken; /* a rank died: nobody waits any more */
	uint32_t arrived;   /* at the barrier */
	uint32_t phase;     /* of the barrier; what is waited on */
	uint32_t pids[RANKS_MAX];
	uint64_t ready_ns[RANKS_MAX];
};

/* One rank's room for a piece of its data. */
#define SLOT_BYTES ((uint64_t)1 << 20)
/* From one rank to another. */
#define MAIL_BYTES ((uint64_t)1 << 16)

struct mailbox {
	uint32_t is_full;
	uint32_t size_bytes;
	uint64_t sender_ready_ns;
	uint64_t receiver_ready_ns;
	char data[MAIL_BYTES];
};

struct sim_comm {
	uint64_t magic;
	int rank, rank_count;
	int device;
	CUcontext context;
	struct segment *segment;
	char *slots;
	struct mailbox *mailboxes;
	uint64_t mapped_bytes;
	char name[UNIQUE_ID_BYTES];
	pthread_mutex_t lock; /* one collective at a time */
	ncclResult_t async_error;
	uint32_t refs; /* the program's, and one of each piece of work */
};

enum work_kind {
	WORK_ALL_REDUCE,
	WORK_ALL_GATHER,
	WORK_REDUCE_SCATTER,
	WORK_BROADCAST,
	WORK_REDUCE,
	WORK_SEND,
	WORK_RECV,
};

/* One call, put aside until its group ends. */
struct work {
	enum work_kind kind;
	struct sim_comm *comm;
	CUstream stream;
	const char *send;
	char *recv;
	uint64_t count;
	ncclDataType_t type;
	ncclRedOp_t reduction;
	int root; /* or the peer */
	struct work *next;
};

/* The driver, as far as it is needed. */
struct nccl_driver {
	const struct sim_services *sim;
	__typeof__(&cuInit) cuInit;
	__typeof__(&cuCtxGetCurrent) cuCtxGetCurrent;
	__typeof__(&cuCtxGetDevice) cuCtxGetDevice;
	__typeof__(&cuCtxPushCurrent_v2) cuCtxPushCurrent;
	__typeof__(&cuCtxPopCurrent_v2) cuCtxPopCurrent;
	__typeof__(&cuDevicePrimaryCtxRetain) cuDevicePrimaryCtxRetain;
	__typeof__(&cuLaunchKernelEx) cuLaunchKernelEx;
	CUfunction collective, transfer; /* the two kernels of this library */
};
extern struct nccl_driver nccl;

/* comm.c */
struct sim_comm *comm_check(ncclComm_t value);
/* Map the segment and arrive in it; comm_await waits for the others. */
ncclResult_t comm_join(const ncclUniqueId *id, int rank, int rank_count, int device,
		       struct sim_comm **made);
ncclResult_t comm_await(struct sim_comm *comm);
void comm_put(struct sim_comm *comm);
/* Wait until all ranks are here; 0 if one of them is gone. */
int comm_barrier(struct sim_comm *comm);
/* Whether every rank's process is there; says so once if not. */
int comm_is_whole(struct sim_comm *comm);

/* exchange.c: the bodies of the two kernels; the argument is a list of struct work. */
uint64_t collective_body(void *arg, uint64_t ready_ns);
uint64_t transfer_body(void *arg, uint64_t ready_ns);
void work_release(void *arg);

/* reduce.c */
unsigned type_bytes(ncclDataType_t type); /* 0: not simulated */
void reduce_into(char *into, const char *from, uint64_t count, ncclDataType_t type,
		 ncclRedOp_t reduction);
void divide_by(char *values, uint64_t count, ncclDataType_t type, int divisor);

#endif
