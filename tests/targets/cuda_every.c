/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_every.c - calls every function of CUDA and NCCL that cctrace probes.
 *
 *   cuda_every THREADS TIMES
 *
 * Each of THREADS threads calls each function TIMES times, with sizes that are prime
 * and differ, by position (cuda_calls.h). The simulated device, whose functions have
 * the real prototypes, says what it understood; what it does not say, the thread's one
 * event, is printed: TID EVENT.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuda_calls.h"

#define BUFFER_BYTES (1u << 20)
#define VIRTUAL_BYTES (2u << 20)

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t all_are_open;
static int times;
static const uint64_t primes[] = {4099, 257, 8209, 1031, 16411, 521, 2053};

/* What one thread works with. */
struct bench {
	uint64_t device, other, host, more, pinned, managed, stream, event, array, pool,
	    graph;
	uint64_t value, comm, context, n;
	uint64_t dsts[3], srcs[3], sizes[3];
	CUDA_MEMCPY2D flat;
	CUDA_MEMCPY3D cube;
	CUDA_MEMCPY3D_PEER peer;
	struct cudaMemcpy3DParms runtime_cube;
	struct cudaMemcpy3DPeerParms peer_cube;
	CUDA_MEMCPY3D_BATCH_OP operations[2];
	CUmemcpyAttributes attributes;
	CUmemLocation location;
	uint64_t location_index, fail;
	CUlaunchConfig config;
};

static int kernel_stub;

static void driver_copies(struct bench *b)
{
	uint64_t d = b->device, e = b->other, h = b->host, s = b->stream, n = b->n;

	DS("cuMemcpyHtoD_v2", d, h, n);
	SZ("cuMemcpyHtoDAsync_v2", d, b->pinned, n, s);
	DS("cuMemcpyDtoH_v2", h, d, n);
	SZ("cuMemcpyDtoHAsync_v2", b->more, d, n, s);
	DS("cuMemcpyDtoD_v2", d, e, n);
	SZ("cuMemcpyDtoDAsync_v2", d, e, n, s);
	DS("cuMemcpyHtoA_v2", b->array, 3, h, n);
	SZ("cuMemcpyHtoAAsync_v2", b->array, 3, h, n, s);
	DS("cuMemcpyAtoH_v2", h, b->array, 5, n);
	SZ("cuMemcpyAtoHAsync_v2", h, b->array, 5, n, s);
	DS("cuMemcpyDtoA_v2", b->array, 7, d, n);
	DS("cuMemcpyAtoD_v2", d, b->array, 7, n);
	DS("cuMemcpyAtoA_v2", b->array, 0, b->array, 32768, n);
	DS("cuMemcpy", d, h, n);
	DS("cuMemcpy", h, b->pinned, n);
	SZ("cuMemcpyAsync", h, d, n, s);
	SZ("cuMemcpyAsync", e, b->managed, n, s);
	DS("cuMemcpyPeer", d, 0, e, 0, n);
	SZ("cuMemcpyPeerAsync", d, 0, e, 0, n, s);
	DS("cuMemcpy2D_v2", A(&b->flat));
	DS("cuMemcpy2DUnaligned_v2", A(&b->flat));
	SZ("cuMemcpy2DAsync_v2", A(&b->flat), s);
	DS("cuMemcpy3D_v2", A(&b->cube));
	SZ("cuMemcpy3DAsync_v2", A(&b->cube), s);
	DS("cuMemcpy3DPeer", A(&b->peer));
	SZ("cuMemcpy3DPeerAsync", A(&b->peer), s);
	SZ("cuMemcpyBatchAsync", A(b->dsts), A(b->srcs), A(b->sizes), 3,
	   A(&b->attributes), A(&b->location_index), 1, A(&b->fail), s);
	SZ("cuMemcpyBatchAsync_v2", A(b->dsts), A(b->srcs), A(b->sizes), 2,
	   A(&b->attributes), A(&b->location_index), 1, s);
	SZ("cuMemcpy3DBatchAsync", 2, A(b->operations), A(&b->fail), 0, s);
	SZ("cuMemcpy3DBatchAsync_v2", 1, A(b->operations), 0, s);
	SZ("cuMemcpyWithAttributesAsync", d, h, n, A(&b->attributes), s);
	SZ("cuMemcpy3DWithAttributesAsync", A(&b->operations[1]), 0, s);
	SZ("cuMemPrefetchAsync", b->managed, n, 0, s);
	/* A location by value, eight bytes: type 1, a device, number 0. */
	SZ("cuMemPrefetchAsync_v2", b->managed, n, 1, 0, s);
}

static void driver_memsets(struct bench *b)
{
	uint64_t d = b->device, s = b->stream, n = b->n;

	DS("cuMemsetD8_v2", d, 1, n);
	DS("cuMemsetD16_v2", d, 1, n);
	DS("cuMemsetD32_v2", d, 1, n);
	DS("cuMemsetD2D8_v2", d, 4096, 1, 37, 11);
	DS("cuMemsetD2D16_v2", d, 4096, 1, 37, 11);
	DS("cuMemsetD2D32_v2", d, 4096, 1, 37, 11);
	SZ("cuMemsetD8Async", d, 1, n, s);
	SZ("cuMemsetD16Async", d, 1, n, s);
	SZ("cuMemsetD32Async", d, 1, n, s);
	SZ("cuMemsetD2D8Async", d, 4096, 1, 41, 13, s);
	SZ("cuMemsetD2D16Async", d, 4096, 1, 41, 13, s);
	SZ("cuMemsetD2D32Async", d, 4096, 1, 41, 13, s);
}

static void driver_memory(struct bench *b)
{
	CUmemAllocationProp properties = {
	    .type = CU_MEM_ALLOCATION_TYPE_PINNED,
	    .location = {CU_MEM_LOCATION_TYPE_DEVICE, {0}}};
	CUmemAccessDesc access = {.location = properties.location,
				  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	uint64_t at = 0, pitch = 0, handle = 0, s = b->stream, n = b->n;

	ONE("cuMemAlloc_v2", A(&at), n);
	ONE("cuMemFree_v2", at);
	ONE("cuMemFree_v2", at); /* an error */
	ONE("cuMemAllocPitch_v2", A(&at), A(&pitch), n, 17, 4);
	ONE("cuMemFree_v2", at);
	ONE("cuMemAllocPitch_v2", A(&at), A(&pitch), n, 17, 5); /* an error */
	ONE("cuMemAllocManaged", A(&at), n, 1);
	ONE("cuMemFree_v2", at);
	ONE("cuMemHostAlloc", A(&at), n, 0);
	ONE("cuMemFreeHost", at);
	ONE("cuMemAllocHost_v2", A(&at), n);
	ONE("cuMemFreeHost", at);
	ONE("cuMemHostRegister_v2", b->host, n, 0);
	ONE("cuMemcpyHtoD_v2", b->device, b->host, n);
	ONE("cuMemHostUnregister", b->host);
	for (int i = 0; i < 2; i++) {
		call("cuMemAllocAsync", i ? "_ptsz" : "", ARGS(A(&at), n, s));
		call("cuMemFreeAsync", i ? "_ptsz" : "", ARGS(at, s));
		call("cuMemAllocFromPoolAsync", i ? "_ptsz" : "",
		     ARGS(A(&at), n, b->pool, s));
		call("cuMemFreeAsync", i ? "_ptsz" : "", ARGS(at, s));
	}
	ONE("cuMemAddressReserve", A(&at), VIRTUAL_BYTES, 0, 0, 0);
	ONE("cuMemCreate", A(&handle), VIRTUAL_BYTES, A(&properties), 0);
	ONE("cuMemMap", at, VIRTUAL_BYTES, 0, handle, 0);
	ONE("cuMemSetAccess", at, VIRTUAL_BYTES, A(&access), 1);
	ONE("cuMemcpyHtoD_v2", at, b->host, n);
	ONE("cuMemUnmap", at, VIRTUAL_BYTES);
	ONE("cuMemRelease", handle);
	ONE("cuMemAddressFree", at, VIRTUAL_BYTES);
}

static void nothing(void *data)
{
	(void)data;
}

static void driver_commands(struct bench *b)
{
	uint64_t k = A(&kernel_stub), s = b->stream, e = b->event;

	SZ("cuLaunchKernel", k, 1, 1, 1, 32, 1, 1, 0, s, 0, 0);
	SZ("cuLaunchKernel", k, 0, 1, 1, 32, 1, 1, 0, s, 0, 0); /* an error */
	SZ("cuLaunchCooperativeKernel", k, 1, 1, 1, 32, 1, 1, 0, s, 0);
	SZ("cuLaunchKernelEx", A(&b->config), k, 0, 0);
	SZ("cuLaunchHostFunc", s, A(nothing), 0);
	SZ("cuLaunchHostFunc_v2", s, A(nothing), 0, 0);
	SZ("cuGraphLaunch", b->graph, s);
	SZ("cuGraphUpload", b->graph, s);
	SZ("cuEventRecord", e, s);
	SZ("cuEventRecordWithFlags", e, s, 0);
	SZ("cuStreamWaitEvent", s, e, 0);
	SZ("cuStreamWaitValue32_v2", s, b->value, 0, 0);
	SZ("cuStreamWaitValue64_v2", s, b->value, 0, 0);
	SZ("cuStreamWriteValue32_v2", s, b->value, 0, 0);
	SZ("cuStreamWriteValue64_v2", s, b->value, 0, 0);
	SZ("cuStreamQuery", s);
	SZ("cuStreamSynchronize", s);
	ONE("cuEventQuery", e);
	ONE("cuEventSynchronize", e);
	ONE("cuCtxSynchronize", 0);
	ONE("cuCtxSynchronize_v2", b->context);
}

static void runtime_copies(struct bench *b)
{
	uint64_t d = b->device, e = b->other, h = b->host, s = b->stream, n = b->n;

	DS("cudaMemcpy", d, h, n, 1);
	DS("cudaMemcpy", b->pinned, d, n, 2);
	DS("cudaMemcpy", h, b->more, n, 0);
	DS("cudaMemcpy", d, e, n, 4);
	DS("cudaMemcpy", d, e, n, 9); /* an error */
	SZ("cudaMemcpyAsync", d, b->pinned, n, 1, s);
	SZ("cudaMemcpyAsync", h, d, n, 2, s);
	SZ("cudaMemcpyAsync", h, d, n, 4, s);
	SZ("cudaMemcpyAsync", d, e, n, 3, s);
	DS("cudaMemcpy2D", d, 4096, h, 2048, 37, 11, 1);
	SZ("cudaMemcpy2DAsync", h, 4096, d, 2048, 41, 13, 2, s);
	DS("cudaMemcpy3D", A(&b->runtime_cube));
	SZ("cudaMemcpy3DAsync", A(&b->runtime_cube), s);
	ONE("cudaMemcpyPeer", d, 0, e, 0, n);
	ONE("cudaMemcpyPeerAsync", d, 0, e, 0, n, s);
	DS("cudaMemcpy3DPeer", A(&b->peer_cube));
	SZ("cudaMemcpy3DPeerAsync", A(&b->peer_cube), s);
	DS("cudaMemcpyToSymbol", A(&kernel_stub), h, 4, 0, 1);
	SZ("cudaMemcpyToSymbolAsync", A(&kernel_stub), h, 4, 0, 1, s);
	DS("cudaMemcpyFromSymbol", h, A(&kernel_stub), 4, 0, 2);
	SZ("cudaMemcpyFromSymbolAsync", h, A(&kernel_stub), 4, 0, 2, s);
	SZ("cudaMemcpyBatchAsync", A(b->dsts), A(b->srcs), A(b->sizes), 3,
	   A(&b->attributes), A(&b->location_index), 1, s);
	SZ("cudaMemcpy3DBatchAsync", 2, A(b->operations), 0, s);
	SZ("cudaMemcpyWithAttributesAsync", d, h, n, A(&b->attributes), s);
	SZ("cudaMemcpy3DWithAttributesAsync", A(b->operations), 0, s);
	SZ("cudaMemPrefetchAsync", b->managed, n, 1, 0, s);
	DS("cudaMemset", d, 1, n);
	SZ("cudaMemsetAsync", d, 1, n, s);
	DS("cudaMemset2D", d, 4096, 1, 37, 11);
	SZ("cudaMemset2DAsync", d, 4096, 1, 41, 13, s);
	/* cudaPitchedPtr and cudaExtent are too big for registers: value is the first
	 * argument, the stream the second, the two lie on the stack. */
	DS("cudaMemset3D", 1, 0, 0, 0, 0, 0, d, 4096, 37, 11, 37, 11, 3);
	SZ("cudaMemset3DAsync", 1, s, 0, 0, 0, 0, d, 4096, 41, 13, 41, 13, 5);
}

static void runtime_memory(struct bench *b)
{
	uint64_t at = 0, pitch = 0, s = b->stream, n = b->n;
	struct cudaPitchedPtr made = {0};

	ONE("cudaMalloc", A(&at), n);
	ONE("cudaFree", at);
	ONE("cudaMallocPitch", A(&at), A(&pitch), n, 19);
	ONE("cudaFree", at);
	ONE("cudaMalloc3D", A(&made), 0, 0, 0, 0, 0, n, 7, 5);
	ONE("cudaFree", A(made.ptr));
	ONE("cudaMallocManaged", A(&at), n, 1);
	ONE("cudaFree", at);
	ONE("cudaMallocHost", A(&at), n);
	ONE("cudaFreeHost", at);
	ONE("cudaHostAlloc", A(&at), n, 0);
	ONE("cudaFreeHost", at);
	ONE("cudaHostAlloc", A(&at), n, 0xffff); /* an error */
	ONE("cudaHostRegister", b->more, n, 0);
	ONE("cudaMemcpyAsync", b->device, b->more, n, 1, s);
	ONE("cudaHostUnregister", b->more);
	for (int i = 0; i < 2; i++) {
		call("cudaMallocAsync", i ? "_ptsz" : "", ARGS(A(&at), n, s));
		call("cudaFreeAsync", i ? "_ptsz" : "", ARGS(at, s));
		call("cudaMallocFromPoolAsync", i ? "_ptsz" : "",
		     ARGS(A(&at), n, b->pool, s));
		call("cudaFreeAsync", i ? "_ptsz" : "", ARGS(at, s));
	}
}

static void runtime_commands(struct bench *b)
{
	uint64_t k = A(&kernel_stub), s = b->stream, e = b->event;
	uint64_t one_by_one = 1ull << 32 | 1; /* dim3{1, 1, 1}: two words */

	SZ("cudaLaunchKernel", k, one_by_one, 1, one_by_one, 1, 0, 0, s);
	SZ("cudaLaunchCooperativeKernel", k, one_by_one, 1, one_by_one, 1, 0, 0, s);
	SZ("cudaLaunchKernelExC", A(&b->config), k, 0);
	SZ("cudaLaunchHostFunc", s, A(nothing), 0);
	SZ("cudaLaunchHostFunc_v2", s, A(nothing), 0, 0);
	SZ("cudaGraphLaunch", b->graph, s);
	SZ("cudaEventRecord", e, s);
	SZ("cudaEventRecordWithFlags", e, s, 0);
	SZ("cudaStreamWaitEvent", s, e, 0);
	SZ("cudaStreamQuery", s);
	SZ("cudaStreamSynchronize", s);
	ONE("cudaEventQuery", e);
	ONE("cudaEventSynchronize", e);
	ONE("cudaDeviceSynchronize", 0);
}

struct nccl_id {
	char bytes[128];
};

static void collectives(struct bench *b)
{
	uint64_t d = b->device, e = b->other, s = b->stream, n = b->n, c = b->comm;
	uint64_t own = 0;
	int device = 0;

	/* Types: 7 float32, 9 bfloat16, 1 uint8, 8 float64; reduction 0 is the sum. */
	ONE("ncclAllReduce", d, e, n, 7, 0, c, s);
	ONE("ncclReduceScatter", d, e, n, 9, 0, c, s);
	ONE("ncclBroadcast", d, e, n, 1, 0, c, s);
	ONE("ncclReduce", d, e, n, 8, 0, 0, c, s);
	ONE("ncclAllGather", d, e, n, 6, c, s);
	ONE("ncclAllReduce", d, e, n, 99, 0, c, s); /* an error */
	ONE("ncclGroupStart", 0);
	ONE("ncclSend", d, n, 7, 0, c, s);
	ONE("ncclRecv", e, n, 7, 0, c, s);
	ONE("ncclGroupEnd", 0);
	ONE("cudaStreamSynchronize", s);
	ONE("ncclCommInitAll", A(&own), 1, A(&device));
	ONE("ncclCommDestroy", own);
}

static void open_communicator(struct bench *b)
{
	int (*unique)(struct nccl_id *) =
	    (int (*)(struct nccl_id *))find("ncclGetUniqueId");
	int (*join)(uint64_t *, int, struct nccl_id, int) =
	    (int (*)(uint64_t *, int, struct nccl_id, int))find("ncclCommInitRank");
	struct nccl_id id;

	require(unique(&id), "ncclGetUniqueId");
	require(join(&b->comm, 1, id, 0), "ncclCommInitRank");
}

static void open_bench(struct bench *b)
{
	CUDA_ARRAY_DESCRIPTOR line = {.Width = 65536,
				      .Height = 0,
				      .Format = CU_AD_FORMAT_UNSIGNED_INT8,
				      .NumChannels = 1};
	CUmemPoolProps pool = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			       .location = {CU_MEM_LOCATION_TYPE_DEVICE, {0}}};
	uint64_t captured = 0;

	memset(b, 0, sizeof(*b));
	require(ONE("cudaMalloc", A(&b->device), BUFFER_BYTES), "cudaMalloc");
	require(ONE("cudaMalloc", A(&b->other), BUFFER_BYTES), "cudaMalloc");
	require(ONE("cudaHostAlloc", A(&b->pinned), BUFFER_BYTES, 0), "cudaHostAlloc");
	require(ONE("cudaMallocManaged", A(&b->managed), BUFFER_BYTES, 1),
		"cudaMallocManaged");
	b->host = A(aligned_alloc(4096, BUFFER_BYTES));
	b->more = A(aligned_alloc(4096, BUFFER_BYTES));
	memset((void *)b->host, 1, BUFFER_BYTES);
	memset((void *)b->more, 1, BUFFER_BYTES);
	require(ONE("cuCtxGetCurrent", A(&b->context)), "cuCtxGetCurrent");
	require(ONE("cudaStreamCreateWithFlags", A(&b->stream), 1), "cudaStreamCreate");
	require(ONE("cudaEventCreateWithFlags", A(&b->event), 0), "cudaEventCreate");
	require(ONE("cuArrayCreate_v2", A(&b->array), A(&line)), "cuArrayCreate");
	require(ONE("cuMemPoolCreate", A(&b->pool), A(&pool)), "cuMemPoolCreate");
	require(ONE("cuStreamBeginCapture_v2", b->stream, 1), "cuStreamBeginCapture");
	require(ONE("cuLaunchKernel", A(&kernel_stub), 1, 1, 1, 1, 1, 1, 0, b->stream),
		"launch");
	require(ONE("cuStreamEndCapture", b->stream, A(&captured)),
		"cuStreamEndCapture");
	require(ONE("cuGraphInstantiateWithFlags", A(&b->graph), captured, 0),
		"instantiate");
	b->value = b->pinned + BUFFER_BYTES - 64;
	memset((void *)b->pinned, 0, BUFFER_BYTES);
	open_communicator(b);
}

static void shape(struct bench *b)
{
	b->flat = (CUDA_MEMCPY2D){.srcMemoryType = CU_MEMORYTYPE_HOST,
				  .srcHost = (void *)b->host,
				  .srcPitch = 4096,
				  .dstMemoryType = CU_MEMORYTYPE_DEVICE,
				  .dstDevice = b->device,
				  .dstPitch = 4096,
				  .WidthInBytes = 43,
				  .Height = 17};
	b->cube = (CUDA_MEMCPY3D){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
				  .srcDevice = b->device,
				  .srcPitch = 64,
				  .srcHeight = 20,
				  .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
				  .dstDevice = b->more,
				  .dstPitch = 64,
				  .dstHeight = 20,
				  .WidthInBytes = 43,
				  .Height = 17,
				  .Depth = 3};
	b->peer = (CUDA_MEMCPY3D_PEER){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
				       .srcDevice = b->device,
				       .srcPitch = 64,
				       .srcHeight = 20,
				       .dstMemoryType = CU_MEMORYTYPE_DEVICE,
				       .dstDevice = b->other,
				       .dstPitch = 64,
				       .dstHeight = 20,
				       .WidthInBytes = 47,
				       .Height = 19,
				       .Depth = 3};
	b->runtime_cube =
	    (struct cudaMemcpy3DParms){.srcPtr = {(void *)b->pinned, 64, 61, 20},
				       .dstPtr = {(void *)b->device, 64, 61, 20},
				       .extent = {53, 17, 5},
				       .kind = cudaMemcpyHostToDevice};
	b->peer_cube =
	    (struct cudaMemcpy3DPeerParms){.srcPtr = {(void *)b->other, 64, 61, 20},
					   .dstPtr = {(void *)b->device, 64, 61, 20},
					   .extent = {59, 13, 5}};
	for (int i = 0; i < 3; i++) {
		b->dsts[i] = b->device + (uint64_t)i * 65536;
		b->srcs[i] = b->host + (uint64_t)i * 65536;
		b->sizes[i] = b->n + (uint64_t)i;
	}
	for (int i = 0; i < 2; i++) {
		b->operations[i].src.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
		b->operations[i].src.op.ptr.ptr = b->host + (uint64_t)i * 65536;
		b->operations[i].dst.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
		b->operations[i].dst.op.ptr.ptr = b->device + (uint64_t)i * 65536;
		b->operations[i].extent = (CUextent3D){31 + (size_t)i, 7, 3};
		b->operations[i].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
	}
	b->attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
	b->config =
	    (CUlaunchConfig){1, 1, 1, 32, 1, 1, 0, (CUstream)b->stream, NULL, 0};
}

/* As the start-up code made by nvcc does, for copies to and from a symbol. */
static void register_variable(void)
{
	void **(*binary)(void *) = (void **(*)(void *))find("__cudaRegisterFatBinary");
	void (*variable)(void **, char *, char *, const char *, int, size_t, int, int) =
	    (void (*)(void **, char *, char *, const char *, int, size_t, int,
		      int))find("__cudaRegisterVar");

	variable(binary(&kernel_stub), (char *)&kernel_stub, "kernel_stub",
		 "kernel_stub", 0, sizeof(kernel_stub), 0, 0);
}

static void *work(void *unused)
{
	struct bench *b = calloc(1, sizeof(*b));

	/* One after the other, and all before any: a stream that is being captured is
	 * invalidated by what other threads do. */
	pthread_mutex_lock(&one_at_a_time);
	open_bench(b);
	printf("%ld %llu\n", syscall(SYS_gettid), (unsigned long long)b->event);
	pthread_mutex_unlock(&one_at_a_time);
	pthread_barrier_wait(&all_are_open);
	for (int i = 0; i < times; i++) {
		b->n = primes[i % (int)(sizeof(primes) / sizeof(*primes))];
		shape(b);
		driver_copies(b);
		driver_memsets(b);
		driver_memory(b);
		driver_commands(b);
		runtime_copies(b);
		runtime_memory(b);
		runtime_commands(b);
		collectives(b);
	}
	require(ONE("cudaDeviceSynchronize", 0), "cudaDeviceSynchronize");
	return unused;
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"libcuda.so.1", "libcudart.so.13",
					    "libnccl.so.2"};
	pthread_t threads[64];
	int count;

	if (argc != 3 || (count = atoi(argv[1])) < 1 || count > 64)
		return 2;
	times = atoi(argv[2]);
	for (int i = 0; i < 3; i++) {
		libraries[i] = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
		if (!libraries[i]) {
			fprintf(stderr, "cuda_every: %s\n", dlerror());
			return 1;
		}
	}
	register_variable();
	pthread_barrier_init(&all_are_open, NULL, (unsigned)count);
	for (int i = 0; i < count; i++)
		require(pthread_create(&threads[i], NULL, work, NULL),
			"pthread_create");
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
