/* SPDX-License-Identifier: Apache-2.0
 *
 * api.c - the exported functions of libnccl: groups, and launching through the driver.
 */
#define _GNU_SOURCE
#include "nccl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct nccl_driver nccl;

#define ENTER(name)                                                                    \
	SIM_ENTER(SIM_NCCL, name);                                                     \
	begin(SIM_CALL)

#define LEAVE(result) return leave(SIM_CALL, result)

/* What a thread has put aside until its group ends. */
static __thread struct {
	int depth;
	struct work *first, *last;
	struct sim_comm *joining[RANKS_MAX];
	int joining_count;
	ncclResult_t failed;
} group;

static int ask(const char *name, void *into)
{
	static CUresult (*proc_address)(const char *, void **, int, cuuint64_t,
					CUdriverProcAddressQueryResult *);
	CUdriverProcAddressQueryResult status;

	if (!proc_address)
		proc_address = (__typeof__(proc_address))dlsym(
		    dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2");
	return proc_address &&
	       proc_address(name, into, CUDA_VERSION, 0, &status) == CUDA_SUCCESS;
}

static void find_driver(void)
{
	const struct sim_services *(*services)(void) = NULL;
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);

	if (library)
		services = (const struct sim_services *(*)(void))dlsym(
		    library, "simcuda_services");
	if (!services || services()->version != SIM_SERVICES_VERSION ||
	    !ask("cuInit", &nccl.cuInit) ||
	    !ask("cuCtxGetCurrent", &nccl.cuCtxGetCurrent) ||
	    !ask("cuCtxGetDevice", &nccl.cuCtxGetDevice) ||
	    !ask("cuCtxPushCurrent", &nccl.cuCtxPushCurrent) ||
	    !ask("cuCtxPopCurrent", &nccl.cuCtxPopCurrent) ||
	    !ask("cuDevicePrimaryCtxRetain", &nccl.cuDevicePrimaryCtxRetain) ||
	    !ask("cuLaunchKernelEx", &nccl.cuLaunchKernelEx)) {
		fprintf(stderr, "simcuda: NCCL: no libcuda.so.1 of this simulator\n"
				"hint: put the simulator's directory first in "
				"LD_LIBRARY_PATH\n");
		return;
	}
	nccl.sim = services();
	nccl.sim->register_apis(__start_sim_apis, __stop_sim_apis);
	nccl.collective =
	    nccl.sim->special_kernel("ncclDevKernel", collective_body, work_release);
	nccl.transfer = nccl.sim->special_kernel("ncclDevKernel_SendRecv",
						 transfer_body, work_release);
}

static void begin(struct sim_call *call)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_driver);
	if (nccl.sim)
		nccl.sim->begin(call);
}

static ncclResult_t leave(struct sim_call *call, ncclResult_t result)
{
	if (nccl.sim)
		nccl.sim->end(call, (int32_t)result);
	return result;
}

/* Launch a kernel on the work's list, in the context of its communicator. */
static ncclResult_t launch(struct work *list)
{
	int is_transfer = list->kind == WORK_SEND || list->kind == WORK_RECV;
	CUfunction function = is_transfer ? nccl.transfer : nccl.collective;
	CUlaunchConfig config = {.gridDimX = 1,
				 .gridDimY = 1,
				 .gridDimZ = 1,
				 .blockDimX = 512,
				 .blockDimY = 1,
				 .blockDimZ = 1,
				 .hStream = list->stream};
	void *params[] = {list, NULL};
	CUcontext popped;
	CUresult result;

	if (nccl.cuCtxPushCurrent(list->comm->context) != CUDA_SUCCESS)
		return ncclUnhandledCudaError;
	result = nccl.cuLaunchKernelEx(&config, function, params, NULL);
	nccl.cuCtxPopCurrent(&popped);
	return result == CUDA_SUCCESS ? ncclSuccess : ncclUnhandledCudaError;
}

/* Take the first work out, and with a transfer all others of its communicator and
 * stream: they depend on each other and must run at once. */
static struct work *take_next(void)
{
	struct work *first = group.first, **at, *last = first;

	group.first = first->next;
	first->next = NULL;
	if (first->kind == WORK_SEND || first->kind == WORK_RECV) {
		for (at = &group.first; *at;) {
			struct work *other = *at;

			if ((other->kind == WORK_SEND || other->kind == WORK_RECV) &&
			    other->comm == first->comm &&
			    other->stream == first->stream) {
				*at = other->next;
				other->next = NULL;
				last->next = other;
				last = other;
			} else {
				at = &other->next;
			}
		}
	}
	return first;
}

static ncclResult_t end_group(void)
{
	ncclResult_t result = group.failed;
	int i;

	for (i = 0; i < group.joining_count; i++) {
		ncclResult_t joined = comm_await(group.joining[i]);

		if (result == ncclSuccess)
			result = joined;
	}
	group.joining_count = 0;
	while (group.first) {
		struct work *list = take_next();

		if (result == ncclSuccess) {
			result = launch(list);
			if (result == ncclSuccess)
				continue;
		}
		work_release(list);
	}
	group.last = NULL;
	group.failed = ncclSuccess;
	return result;
}

static ncclResult_t put_aside(struct sim_call *call, const struct work *what)
{
	struct sim_comm *comm = comm_check(what->comm);
	uint64_t bytes = what->count * type_bytes(what->type);
	struct work *work;

	call->stream = (uint64_t)(uintptr_t)what->stream;
	call->size_bytes = bytes;
	if (!nccl.sim)
		return ncclSystemError;
	if (!comm || !type_bytes(what->type) || (unsigned)what->reduction > ncclAvg ||
	    what->root < 0 || what->root >= comm->rank_count)
		return ncclInvalidArgument;
	if (!what->count)
		return ncclSuccess;
	if ((what->send && !nccl.sim->is_device_range(what->send, bytes)) ||
	    (what->recv && !nccl.sim->is_device_range(what->recv, bytes)))
		return ncclInvalidArgument;
	work = malloc(sizeof(*work));
	if (!work)
		return ncclSystemError;
	*work = *what;
	work->next = NULL;
	__atomic_fetch_add(&comm->refs, 1, __ATOMIC_RELAXED);
	if (group.first)
		group.last->next = work;
	else
		group.first = work;
	group.last = work;
	return group.depth ? ncclSuccess : end_group();
}

static ncclResult_t submit(struct sim_call *call, const struct work *what)
{
	ncclResult_t result = put_aside(call, what);

	if (result != ncclSuccess && group.depth && group.failed == ncclSuccess)
		group.failed = result;
	return result;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count,
			   ncclDataType_t type, ncclRedOp_t reduction, ncclComm_t comm,
			   CUstream stream)
{
	ENTER(ncclAllReduce);
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_ALL_REDUCE,
					      .comm = comm,
					      .stream = stream,
					      .send = send,
					      .recv = recv,
					      .count = count,
					      .type = type,
					      .reduction = reduction}));
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count,
			   ncclDataType_t type, ncclComm_t comm, CUstream stream)
{
	ENTER(ncclAllGather);
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_ALL_GATHER,
					      .comm = comm,
					      .stream = stream,
					      .send = send,
					      .recv = recv,
					      .count = count,
					      .type = type}));
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count,
			       ncclDataType_t type, ncclRedOp_t reduction,
			       ncclComm_t comm, CUstream stream)
{
	ENTER(ncclReduceScatter);
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_REDUCE_SCATTER,
					      .comm = comm,
					      .stream = stream,
					      .send = send,
					      .recv = recv,
					      .count = count,
					      .type = type,
					      .reduction = reduction}));
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count,
			   ncclDataType_t type, int root, ncclComm_t comm,
			   CUstream stream)
{
	ENTER(ncclBroadcast);
	int is_root = comm_check(comm) && comm->rank == root;
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_BROADCAST,
					      .comm = comm,
					      .stream = stream,
					      .send = is_root ? send : NULL,
					      .recv = recv,
					      .count = count,
					      .type = type,
					      .root = root}));
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
			ncclRedOp_t reduction, int root, ncclComm_t comm,
			CUstream stream)
{
	ENTER(ncclReduce);
	int is_root = comm_check(comm) && comm->rank == root;
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_REDUCE,
					      .comm = comm,
					      .stream = stream,
					      .send = send,
					      .recv = is_root ? recv : NULL,
					      .count = count,
					      .type = type,
					      .reduction = reduction,
					      .root = root}));
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
		      ncclComm_t comm, CUstream stream)
{
	ENTER(ncclSend);
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_SEND,
					      .comm = comm,
					      .stream = stream,
					      .send = send,
					      .count = count,
					      .type = type,
					      .root = peer}));
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer,
		      ncclComm_t comm, CUstream stream)
{
	ENTER(ncclRecv);
	LEAVE(submit(SIM_CALL, &(struct work){.kind = WORK_RECV,
					      .comm = comm,
					      .stream = stream,
					      .recv = recv,
					      .count = count,
					      .type = type,
					      .root = peer}));
}

ncclResult_t ncclGroupStart(void)
{
	ENTER(ncclGroupStart);
	group.depth++;
	LEAVE(ncclSuccess);
}

ncclResult_t ncclGroupEnd(void)
{
	ENTER(ncclGroupEnd);
	if (!group.depth)
		LEAVE(ncclInvalidUsage);
	if (--group.depth)
		LEAVE(ncclSuccess);
	LEAVE(end_group());
}

ncclResult_t ncclGetVersion(int *version)
{
	if (!version)
		return ncclInvalidArgument;
	*version = NCCL_VERSION;
	return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
	ENTER(ncclGetUniqueId);
	static uint32_t counter;
	if (!id)
		LEAVE(ncclInvalidArgument);
	memset(id, 0, sizeof(*id));
	snprintf(id->internal, sizeof(id->internal), "/simcuda-%d-%llx-%u",
		 (int)getpid(), (unsigned long long)sim_now_ns(),
		 __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED));
	LEAVE(ncclSuccess);
}

static ncclResult_t join(ncclComm_t *made, int rank_count, const ncclUniqueId *id,
			 int rank, int device)
{
	CUcontext context = NULL;
	ncclResult_t result;

	if (!nccl.sim)
		return ncclSystemError;
	if (!made || rank_count < 1 || rank_count > RANKS_MAX || rank < 0 ||
	    rank >= rank_count)
		return ncclInvalidArgument;
	if (nccl.cuInit(0) != CUDA_SUCCESS)
		return ncclUnhandledCudaError;
	if (device < 0) { /* the thread's current one */
		if (nccl.cuCtxGetCurrent(&context) != CUDA_SUCCESS)
			return ncclUnhandledCudaError;
		if (!context || nccl.cuCtxGetDevice(&device) != CUDA_SUCCESS)
			device = 0;
	}
	if (!context && nccl.cuDevicePrimaryCtxRetain(&context, device) != CUDA_SUCCESS)
		return ncclUnhandledCudaError;
	result = comm_join(id, rank, rank_count, device, made);
	if (result == ncclSuccess)
		(*made)->context = context;
	return result;
}

ncclResult_t ncclCommInitRank(ncclComm_t *made, int rank_count, ncclUniqueId id,
			      int rank)
{
	ENTER(ncclCommInitRank);
	ncclResult_t result = join(made, rank_count, &id, rank, -1);
	if (result != ncclSuccess)
		LEAVE(result);
	if (!group.depth)
		LEAVE(comm_await(*made));
	if (group.joining_count == RANKS_MAX)
		LEAVE(ncclInvalidUsage);
	group.joining[group.joining_count++] = *made;
	LEAVE(ncclSuccess);
}

ncclResult_t ncclCommInitAll(ncclComm_t *made, int count, const int *devices)
{
	ENTER(ncclCommInitAll);
	ncclResult_t result = ncclSuccess;
	ncclUniqueId id = {""};
	int rank;
	if (!made || count < 1 || count > RANKS_MAX)
		LEAVE(ncclInvalidArgument);
	snprintf(id.internal, sizeof(id.internal), "/simcuda-%d-%llx-all",
		 (int)getpid(), (unsigned long long)sim_now_ns());
	for (rank = 0; rank < count && result == ncclSuccess; rank++)
		result =
		    join(&made[rank], count, &id, rank, devices ? devices[rank] : rank);
	for (rank = 0; rank < count && result == ncclSuccess; rank++)
		result = comm_await(made[rank]);
	LEAVE(result);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
	ENTER(ncclCommDestroy);
	if (!comm_check(comm))
		LEAVE(ncclInvalidArgument);
	comm->magic = 0; /* what is queued still runs, and frees it */
	comm_put(comm);
	LEAVE(ncclSuccess);
}

ncclResult_t ncclCommCount(ncclComm_t comm, int *count)
{
	if (!comm_check(comm) || !count)
		return ncclInvalidArgument;
	*count = comm->rank_count;
	return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int *rank)
{
	if (!comm_check(comm) || !rank)
		return ncclInvalidArgument;
	*rank = comm->rank;
	return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(ncclComm_t comm, int *device)
{
	if (!comm_check(comm) || !device)
		return ncclInvalidArgument;
	*device = comm->device;
	return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
	if (!comm_check(comm) || !error)
		return ncclInvalidArgument;
	*error = comm->async_error;
	return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
	static const char *const texts[] = {
	    "no error",
	    "unhandled cuda error",
	    "unhandled system error",
	    "internal error",
	    "invalid argument",
	    "invalid usage",
	    "remote process exited",
	};

	return (unsigned)result < sizeof(texts) / sizeof(*texts)
		   ? texts[result]
		   : "unknown result code";
}
