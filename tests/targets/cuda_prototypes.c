/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_prototypes.c - functions that the simulated device lacks, with their prototypes.
 *
 * Compiled as a program, it calls each of them once; the compiler puts the arguments
 * where the ABI says, and the function prints what it got. With -DCUDA12 it is a
 * library of the functions that had other arguments before CUDA 13, called by the
 * program if it is given as the argument. Prototypes: CUDA's headers where they have
 * them, else as documented for CUDA 12.8 and NCCL 2.32.
 *
 * Prints lines: NAME SIZE STREAM DST SRC KIND; - where there is none.
 */
#define _GNU_SOURCE
#ifdef CUDA12 /* other names for what the header declares otherwise */
#define cudaMemcpyBatchAsync cudaMemcpyBatchAsync_of_13
#define cudaMemcpy3DBatchAsync cudaMemcpy3DBatchAsync_of_13
#define cudaMemPrefetchAsync cudaMemPrefetchAsync_of_13
#endif
#include <cuda.h>
#include <cuda_runtime_api.h>
#undef cudaMemcpyBatchAsync
#undef cudaMemcpy3DBatchAsync
#undef cudaMemPrefetchAsync
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORTED __attribute__((noinline, visibility("default")))
#define NONE (-1LL)
#define P(x) ((void *)(uintptr_t)(x))
#define N(x) ((long long)(uintptr_t)(x))

static int tell(const char *name, long long size, long long stream, long long dst,
		long long src, long long kind)
{
	const long long values[] = {size, stream, dst, src, kind};

	printf("%s", name);
	for (int i = 0; i < 5; i++) {
		if (values[i] == NONE)
			printf(" -");
		else
			printf(" %lld", values[i]);
	}
	printf("\n");
	return 0;
}

#ifdef CUDA12

EXPORTED int cudaMemcpyBatchAsync(void **dsts, void **srcs, size_t *sizes, size_t count,
				  void *attributes, size_t *indices,
				  size_t attribute_count, size_t *failed, void *stream)
{
	size_t total = 0;

	(void)attributes, (void)indices, (void)attribute_count, (void)failed;
	for (size_t i = 0; i < count; i++)
		total += sizes[i];
	return tell(__func__, (long long)total, N(stream), N(dsts[0]), N(srcs[0]),
		    NONE);
}

EXPORTED int cudaMemcpy3DBatchAsync(size_t count,
				    struct cudaMemcpy3DBatchOp *operations,
				    size_t *failed, unsigned long long flags,
				    void *stream)
{
	struct cudaExtent extent = operations[0].extent;

	(void)failed, (void)flags;
	return tell(__func__,
		    (long long)(count * extent.width * extent.height * extent.depth),
		    N(stream), N(operations[0].dst.op.ptr.ptr),
		    N(operations[0].src.op.ptr.ptr), NONE);
}

EXPORTED int cudaMemPrefetchAsync(const void *address, size_t size, int device,
				  void *stream)
{
	(void)device;
	return tell(__func__, (long long)size, N(stream), N(address), 0, NONE);
}

#else

EXPORTED cudaError_t cudaMemcpy2DToArray(cudaArray_t dst, size_t x, size_t y,
					 const void *src, size_t pitch, size_t width,
					 size_t height, enum cudaMemcpyKind kind)
{
	(void)dst, (void)x, (void)y, (void)pitch;
	return tell(__func__, (long long)(width * height), NONE, 0, N(src), kind);
}

EXPORTED cudaError_t cudaMemcpy2DToArrayAsync(cudaArray_t dst, size_t x, size_t y,
					      const void *src, size_t pitch,
					      size_t width, size_t height,
					      enum cudaMemcpyKind kind,
					      cudaStream_t stream)
{
	(void)dst, (void)x, (void)y, (void)pitch;
	return tell(__func__, (long long)(width * height), N(stream), 0, N(src), kind);
}

EXPORTED cudaError_t cudaMemcpy2DFromArray(void *dst, size_t pitch,
					   cudaArray_const_t src, size_t x, size_t y,
					   size_t width, size_t height,
					   enum cudaMemcpyKind kind)
{
	(void)src, (void)x, (void)y, (void)pitch;
	return tell(__func__, (long long)(width * height), NONE, N(dst), 0, kind);
}

EXPORTED cudaError_t cudaMemcpy2DFromArrayAsync(void *dst, size_t pitch,
						cudaArray_const_t src, size_t x,
						size_t y, size_t width, size_t height,
						enum cudaMemcpyKind kind,
						cudaStream_t stream)
{
	(void)src, (void)x, (void)y, (void)pitch;
	return tell(__func__, (long long)(width * height), N(stream), N(dst), 0, kind);
}

EXPORTED cudaError_t cudaMemcpy2DArrayToArray(cudaArray_t dst, size_t dst_x,
					      size_t dst_y, cudaArray_const_t src,
					      size_t src_x, size_t src_y, size_t width,
					      size_t height, enum cudaMemcpyKind kind)
{
	(void)dst, (void)dst_x, (void)dst_y, (void)src, (void)src_x, (void)src_y;
	return tell(__func__, (long long)(width * height), NONE, 0, 0, kind);
}

EXPORTED cudaError_t cudaMemcpyToArray(cudaArray_t dst, size_t x, size_t y,
				       const void *src, size_t size,
				       enum cudaMemcpyKind kind)
{
	(void)dst, (void)x, (void)y;
	return tell(__func__, (long long)size, NONE, 0, N(src), kind);
}

EXPORTED cudaError_t cudaMemcpyToArrayAsync(cudaArray_t dst, size_t x, size_t y,
					    const void *src, size_t size,
					    enum cudaMemcpyKind kind,
					    cudaStream_t stream)
{
	(void)dst, (void)x, (void)y;
	return tell(__func__, (long long)size, N(stream), 0, N(src), kind);
}

EXPORTED cudaError_t cudaMemcpyFromArray(void *dst, cudaArray_const_t src, size_t x,
					 size_t y, size_t size,
					 enum cudaMemcpyKind kind)
{
	(void)src, (void)x, (void)y;
	return tell(__func__, (long long)size, NONE, N(dst), 0, kind);
}

EXPORTED cudaError_t cudaMemcpyFromArrayAsync(void *dst, cudaArray_const_t src,
					      size_t x, size_t y, size_t size,
					      enum cudaMemcpyKind kind,
					      cudaStream_t stream)
{
	(void)src, (void)x, (void)y;
	return tell(__func__, (long long)size, N(stream), N(dst), 0, kind);
}

EXPORTED cudaError_t cudaMemcpyArrayToArray(cudaArray_t dst, size_t dst_x, size_t dst_y,
					    cudaArray_const_t src, size_t src_x,
					    size_t src_y, size_t size,
					    enum cudaMemcpyKind kind)
{
	(void)dst, (void)dst_x, (void)dst_y, (void)src, (void)src_x, (void)src_y;
	return tell(__func__, (long long)size, NONE, 0, 0, kind);
}

EXPORTED cudaError_t cudaMemPrefetchAsync_v2(const void *address, size_t size,
					     struct cudaMemLocation location,
					     unsigned int flags, cudaStream_t stream)
{
	(void)location, (void)flags;
	return tell(__func__, (long long)size, N(stream), N(address), 0, NONE);
}

EXPORTED cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block,
					void **arguments, size_t shared_bytes,
					cudaStream_t stream)
{
	(void)kernel, (void)grid, (void)block, (void)arguments, (void)shared_bytes;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

EXPORTED cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream)
{
	(void)graph;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

EXPORTED CUresult cuGraphUpload(CUgraphExec graph, CUstream stream)
{
	(void)graph;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

EXPORTED CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address,
				       cuuint32_t value, unsigned int flags)
{
	(void)address, (void)value, (void)flags;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

EXPORTED CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address,
				       cuuint64_t value, unsigned int flags)
{
	(void)address, (void)value, (void)flags;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

EXPORTED CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count,
				     CUstreamBatchMemOpParams *operations,
				     unsigned int flags)
{
	(void)count, (void)operations, (void)flags;
	return tell(__func__, NONE, N(stream), NONE, NONE, NONE);
}

/* Types: 4 int64, 3 uint32, 6 float16, 0 int8; as nccl.h numbers them. */
EXPORTED int ncclGather(const void *send, void *recv, size_t count, int type, int root,
			void *comm, cudaStream_t stream)
{
	(void)type, (void)root, (void)comm;
	return tell(__func__, (long long)count * 8, N(stream), N(recv), N(send), NONE);
}

EXPORTED int ncclScatter(const void *send, void *recv, size_t count, int type, int root,
			 void *comm, cudaStream_t stream)
{
	(void)type, (void)root, (void)comm;
	return tell(__func__, (long long)count * 4, N(stream), N(recv), N(send), NONE);
}

EXPORTED int ncclAlltoAll(const void *send, void *recv, size_t count, int type,
			  void *comm, cudaStream_t stream)
{
	(void)type, (void)comm;
	return tell(__func__, (long long)count * 2, N(stream), N(recv), N(send), NONE);
}

EXPORTED int ncclBcast(void *buffer, size_t count, int type, int root, void *comm,
		       cudaStream_t stream)
{
	(void)type, (void)root, (void)comm;
	return tell(__func__, (long long)count, N(stream), N(buffer), 0, NONE);
}

EXPORTED int ncclMemAlloc(void **address, size_t size)
{
	*address = P(0x700);
	return tell(__func__, (long long)size, NONE, 0x700, 0, NONE);
}

EXPORTED int ncclMemFree(void *address)
{
	return tell(__func__, NONE, NONE, N(address), 0, NONE);
}

static void call_those_of_cuda_12(const char *path)
{
	void *library = dlopen(path, RTLD_NOW);
	int (*batch)(void **, void **, size_t *, size_t, void *, size_t *, size_t,
		     size_t *, void *);
	int (*batch_3d)(size_t, struct cudaMemcpy3DBatchOp *, size_t *,
			unsigned long long, void *);
	int (*prefetch)(const void *, size_t, int, void *);
	void *dsts[] = {P(0x310), P(0x311)}, *srcs[] = {P(0x320), P(0x321)};
	size_t sizes[] = {31, 37}, failed = 0;
	struct cudaMemcpy3DBatchOp operation = {
	    .src = {.type = cudaMemcpyOperandTypePointer, .op.ptr.ptr = P(0x330)},
	    .dst = {.type = cudaMemcpyOperandTypePointer, .op.ptr.ptr = P(0x340)},
	    .extent = {3, 5, 7}};

	if (!library) {
		fprintf(stderr, "cuda_prototypes: %s\n", dlerror());
		exit(1);
	}
	*(void **)&batch = dlsym(library, "cudaMemcpyBatchAsync");
	*(void **)&batch_3d = dlsym(library, "cudaMemcpy3DBatchAsync");
	*(void **)&prefetch = dlsym(library, "cudaMemPrefetchAsync");
	batch(dsts, srcs, sizes, 2, NULL, NULL, 0, &failed, P(0x31));
	batch_3d(1, &operation, &failed, 0, P(0x32));
	prefetch(P(0x350), 41, 0, P(0x33));
}

int main(int argc, char **argv)
{
	cudaArray_t array = P(0xa);
	struct cudaMemLocation location = {cudaMemLocationTypeDevice, {0}};
	dim3 one = {1, 1, 1};
	void *made = NULL;

	cudaMemcpy2DToArray(array, 1, 2, P(0x101), 64, 11, 3, cudaMemcpyHostToDevice);
	cudaMemcpy2DToArrayAsync(array, 1, 2, P(0x102), 64, 13, 3,
				 cudaMemcpyHostToDevice, P(0x21));
	cudaMemcpy2DFromArray(P(0x103), 64, array, 1, 2, 17, 3, cudaMemcpyDeviceToHost);
	cudaMemcpy2DFromArrayAsync(P(0x104), 64, array, 1, 2, 19, 3,
				   cudaMemcpyDeviceToHost, P(0x22));
	cudaMemcpy2DArrayToArray(array, 1, 2, array, 3, 4, 23, 3,
				 cudaMemcpyDeviceToDevice);
	cudaMemcpyToArray(array, 1, 2, P(0x105), 29, cudaMemcpyHostToDevice);
	cudaMemcpyToArrayAsync(array, 1, 2, P(0x106), 31, cudaMemcpyHostToDevice,
			       P(0x23));
	cudaMemcpyFromArray(P(0x107), array, 1, 2, 37, cudaMemcpyDeviceToHost);
	cudaMemcpyFromArrayAsync(P(0x108), array, 1, 2, 41, cudaMemcpyDeviceToHost,
				 P(0x24));
	cudaMemcpyArrayToArray(array, 1, 2, array, 3, 4, 43, cudaMemcpyDeviceToDevice);
	cudaMemPrefetchAsync_v2(P(0x109), 47, location, 0, P(0x25));
	__cudaLaunchKernel(P(1), one, one, NULL, 0, P(0x26));
	cudaGraphUpload(P(1), P(0x27));
	cuGraphUpload(P(1), P(0x28));
	cuStreamWriteValue32(P(0x29), 1, 2, 3);
	cuStreamWriteValue64(P(0x2a), 1, 2, 3);
	cuStreamBatchMemOp(P(0x2b), 0, NULL, 0);
	ncclGather(P(0x201), P(0x202), 53, 4, 0, P(1), P(0x2c));
	ncclScatter(P(0x203), P(0x204), 59, 3, 0, P(1), P(0x2d));
	ncclAlltoAll(P(0x205), P(0x206), 61, 6, P(1), P(0x2e));
	ncclBcast(P(0x207), 67, 0, 0, P(1), P(0x2f));
	ncclMemAlloc(&made, 71);
	ncclMemFree(made);
	if (argc > 1)
		call_those_of_cuda_12(argv[1]);
	return 0;
}

#endif
