/* SPDX-License-Identifier: Apache-2.0
 *
 * shapes.c - the runtime's structures as the driver's, and symbols of the program.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

CUDA_MEMCPY2D runtime_2d(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
			 size_t width, size_t height)
{
	return (CUDA_MEMCPY2D){
	    .srcMemoryType = CU_MEMORYTYPE_UNIFIED,
	    .srcDevice = address_of(src),
	    .srcPitch = src_pitch,
	    .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
	    .dstDevice = address_of(dst),
	    .dstPitch = dst_pitch,
	    .WidthInBytes = width,
	    .Height = height,
	};
}

/* The plain structure and the peers' name their members alike, here and there. A side
 * with an array keeps to the driver's rules: it measures in bytes. */
#define SIDE(into, from, side)                                                         \
	do {                                                                           \
		(into)->side##MemoryType =                                             \
		    (from)->side##Array ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_UNIFIED; \
		(into)->side##Array = (CUarray)(from)->side##Array;                    \
		(into)->side##Device = address_of((from)->side##Ptr.ptr);              \
		(into)->side##Pitch = (from)->side##Ptr.pitch;                         \
		(into)->side##Height = (from)->side##Ptr.ysize;                        \
		(into)->side##XInBytes = (from)->side##Pos.x;                          \
		(into)->side##Y = (from)->side##Pos.y;                                 \
		(into)->side##Z = (from)->side##Pos.z;                                 \
	} while (0)

CUDA_MEMCPY3D runtime_3d(const struct cudaMemcpy3DParms *from)
{
	CUDA_MEMCPY3D copy = {.WidthInBytes = from->extent.width,
			      .Height = from->extent.height,
			      .Depth = from->extent.depth};

	SIDE(&copy, from, src);
	SIDE(&copy, from, dst);
	return copy;
}

CUDA_MEMCPY3D_PEER runtime_3d_peer(const struct cudaMemcpy3DPeerParms *from)
{
	CUDA_MEMCPY3D_PEER copy = {.WidthInBytes = from->extent.width,
				   .Height = from->extent.height,
				   .Depth = from->extent.depth};

	SIDE(&copy, from, src);
	SIDE(&copy, from, dst);
	return copy;
}

static CUmemcpy3DOperand operand(const struct cudaMemcpy3DOperand *from)
{
	CUmemcpy3DOperand into = {.type = (CUmemcpy3DOperandType)from->type};

	if (from->type == cudaMemcpyOperandTypeArray) {
		into.op.array.array = (CUarray)from->op.array.array;
		into.op.array.offset.x = from->op.array.offset.x;
		into.op.array.offset.y = from->op.array.offset.y;
		into.op.array.offset.z = from->op.array.offset.z;
	} else {
		into.op.ptr.ptr = address_of(from->op.ptr.ptr);
		into.op.ptr.rowLength = from->op.ptr.rowLength;
		into.op.ptr.layerHeight = from->op.ptr.layerHeight;
	}
	return into;
}

CUDA_MEMCPY3D_BATCH_OP runtime_3d_op(const struct cudaMemcpy3DBatchOp *from)
{
	return (CUDA_MEMCPY3D_BATCH_OP){
	    .src = operand(&from->src),
	    .dst = operand(&from->dst),
	    .extent = {.width = from->extent.width,
		       .height = from->extent.height,
		       .depth = from->extent.depth},
	    .srcAccessOrder = (CUmemcpySrcAccessOrder)from->srcAccessOrder,
	    .flags = from->flags,
	};
}

CUlaunchConfig runtime_launch_config(const cudaLaunchConfig_t *from)
{
	return (CUlaunchConfig){
	    .gridDimX = from->gridDim.x,
	    .gridDimY = from->gridDim.y,
	    .gridDimZ = from->gridDim.z,
	    .blockDimX = from->blockDim.x,
	    .blockDimY = from->blockDim.y,
	    .blockDimZ = from->blockDim.z,
	    .sharedMemBytes = (unsigned int)from->dynamicSmemBytes,
	    .hStream = from->stream,
	};
}

/* What a program's own registration, made by nvcc, tells: variables and their sizes. */
struct symbol {
	const void *host;
	size_t size_bytes;
	CUdeviceptr device; /* 0: not allocated yet */
	struct symbol *next;
};

static pthread_mutex_t symbols_lock = PTHREAD_MUTEX_INITIALIZER;
static struct symbol *symbols;

CUdeviceptr runtime_symbol(const void *host, size_t offset, size_t size)
{
	struct symbol *symbol;
	CUdeviceptr at = 0;

	pthread_mutex_lock(&symbols_lock);
	for (symbol = symbols; symbol; symbol = symbol->next)
		if (symbol->host == host)
			break;
	if (symbol && offset <= symbol->size_bytes &&
	    size <= symbol->size_bytes - offset) {
		if (!symbol->device)
			driver.cuMemAlloc_v2(&symbol->device, symbol->size_bytes);
		if (symbol->device)
			at = symbol->device + offset;
	}
	pthread_mutex_unlock(&symbols_lock);
	return at;
}

/* What nvcc's own start-up code calls. Their prototypes are in no public header; they
 * are those that its generated host code declares. */
void **__cudaRegisterFatBinary(void *image);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device,
			    const char *name, int thread_limit, void *tid, void *bid,
			    void *block, void *grid, int *warp_size);
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name,
		       int is_external, size_t size, int is_constant, int is_global);

void **__cudaRegisterFatBinary(void *image)
{
	void **handle = calloc(1, sizeof(*handle));

	if (handle)
		*handle = image;
	return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle)
{
	(void)handle;
}

void __cudaUnregisterFatBinary(void **handle)
{
	free(handle);
}

void __cudaRegisterFunction(void **handle, const char *host, char *device,
			    const char *name, int thread_limit, void *tid, void *bid,
			    void *block, void *grid, int *warp_size)
{
	/* Any pointer is a kernel here. */
	(void)handle, (void)host, (void)device, (void)name, (void)thread_limit;
	(void)tid, (void)bid, (void)block, (void)grid, (void)warp_size;
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name,
		       int is_external, size_t size, int is_constant, int is_global)
{
	struct symbol *symbol = calloc(1, sizeof(*symbol));

	(void)handle, (void)device, (void)name;
	(void)is_external, (void)is_constant, (void)is_global;
	if (!symbol)
		return;
	symbol->host = host;
	symbol->size_bytes = size;
	pthread_mutex_lock(&symbols_lock);
	symbol->next = symbols;
	symbols = symbol;
	pthread_mutex_unlock(&symbols_lock);
}

/* A <<<launch>>> is two calls: its configuration is put aside between them. */
static __thread struct {
	dim3 grid, block;
	size_t shared_bytes;
	void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
				     void *stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes,
				       void *stream);

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
				     void *stream)
{
	pushed.grid = grid;
	pushed.block = block;
	pushed.shared_bytes = shared_bytes;
	pushed.stream = stream;
	return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes,
				       void *stream)
{
	*grid = pushed.grid;
	*block = pushed.block;
	*shared_bytes = pushed.shared_bytes;
	*(void **)stream = pushed.stream;
	return cudaSuccess;
}
