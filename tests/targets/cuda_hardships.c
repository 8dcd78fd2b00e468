/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_hardships.c - calls that do not come back the way they went, all in one program.
 *
 *   cuda_hardships MODE [TIMES]
 *
 * The functions have names of CUDA's, so that cctrace probes this very program; what
 * they do inside is up to the mode. What is to be recorded follows from the mode alone.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORTED __attribute__((noinline, visibility("default")))

static __thread void (*inside)(size_t size);
static jmp_buf way_out;

static int body(size_t size)
{
	void (*now)(size_t) = inside;

	if (now)
		now(size);
	return (int)(size % 97);
}

EXPORTED int cuMemcpyHtoD_v2(uint64_t dst, const void *src, size_t size)
{
	int result = body(size);

	__asm__ volatile("" : : "r"(dst), "r"(src));
	return result;
}

EXPORTED int cuMemcpyDtoH_v2(void *dst, uint64_t src, size_t size);
/* Jumps to the other: both return to the same place at once. */
__asm__(".globl cuMemcpyDtoH_v2\n"
	".type cuMemcpyDtoH_v2, @function\n"
	"cuMemcpyDtoH_v2: push %rbp\n pop %rbp\n jmp cuMemcpyHtoD_v2\n"
	".size cuMemcpyDtoH_v2, . - cuMemcpyDtoH_v2\n");

EXPORTED int cuStreamSynchronize(void *stream)
{
	int result = body((size_t)stream);

	__asm__ volatile("" : : "r"(stream));
	return result;
}

EXPORTED int cuMemcpy2D_v2(const void *copy)
{
	__asm__ volatile("" : : "r"(copy));
	return 1;
}

EXPORTED int cuMemcpyBatchAsync_v2(uint64_t *dsts, uint64_t *srcs, size_t *sizes,
				   size_t count, void *attributes, size_t *indices,
				   size_t attribute_count, void *stream)
{
	__asm__ volatile("" : : "r"(dsts), "r"(srcs), "r"(sizes), "r"(count));
	__asm__ volatile("" : : "r"(attributes), "r"(indices), "r"(attribute_count));
	__asm__ volatile("" : : "r"(stream));
	return 0;
}

EXPORTED int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz,
			    unsigned bx, unsigned by, unsigned bz, unsigned bytes,
			    void *stream)
{
	__asm__ volatile(""
			 :
			 : "r"(function), "r"(gx + gy + gz + bx + by + bz + bytes));
	__asm__ volatile("" : : "r"(stream));
	return 0;
}

static void deeper(size_t size)
{
	if (size > 1)
		cuMemcpyHtoD_v2(0, NULL, size - 1);
}

static void leave(size_t size)
{
	longjmp(way_out, (int)size);
}

static void end_thread(size_t size)
{
	(void)size;
	pthread_exit(NULL);
}

static void end_process(size_t size)
{
	(void)size;
	_exit(0);
}

static void become_another(size_t size)
{
	(void)size;
	inside = NULL;
	execl("/proc/self/exe", "cuda_hardships", "plain", "3", NULL);
	_exit(1);
}

static void have_child(size_t size)
{
	(void)size;
	inside = NULL;
	fflush(stdout);
	fork();
}

static void on_signal(int number)
{
	(void)number;
	inside = NULL;
	cuMemcpyHtoD_v2(0, NULL, 13);
}

static void be_interrupted(size_t size)
{
	(void)size;
	raise(SIGUSR1);
}

static void say_and_wait(size_t size)
{
	char byte;

	(void)size;
	if (write(1, "in\n", 3) != 3 || read(0, &byte, 1) < 0)
		_exit(1);
}

static void *calls(void *times)
{
	for (long i = 0; i < (long)times; i++)
		cuMemcpyHtoD_v2(0, NULL, (size_t)(2 * i + 1));
	return NULL;
}

static void *ends(void *unused)
{
	inside = end_thread;
	cuStreamSynchronize((void *)7);
	return unused;
}

static void threads(void *(*work)(void *), int count, long times)
{
	pthread_t running[64];

	for (int i = 0; i < count; i++)
		pthread_create(&running[i], NULL, work, (void *)times);
	for (int i = 0; i < count; i++)
		pthread_join(running[i], NULL);
}

static void batch(size_t count)
{
	uint64_t addresses[128] = {0x1000};
	size_t sizes[128];

	for (size_t i = 0; i < 128; i++)
		sizes[i] = i + 1;
	cuMemcpyBatchAsync_v2(addresses, addresses, sizes, count, NULL, NULL, 0,
			      (void *)5);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long times = argc > 2 ? atol(argv[2]) : 1;

	if (!strcmp(mode, "plain")) {
		calls((void *)times);
	} else if (!strcmp(mode, "threads")) {
		threads(calls, 61, times);
	} else if (!strcmp(mode, "nest")) {
		inside = deeper;
		for (long i = 0; i < times; i++)
			cuMemcpyHtoD_v2(0, NULL, 11);
	} else if (!strcmp(mode, "longjmp")) {
		for (volatile long i = 0; i < times; i++) {
			inside = leave;
			if (!setjmp(way_out))
				cuMemcpyHtoD_v2(0, NULL, 3);
		}
		inside = NULL;
		cuStreamSynchronize((void *)7);
	} else if (!strcmp(mode, "tail")) {
		for (long i = 0; i < times; i++)
			cuMemcpyDtoH_v2(NULL, 0, 5);
	} else if (!strcmp(mode, "end_thread")) {
		threads(ends, (int)times, 0);
		calls((void *)1);
	} else if (!strcmp(mode, "end_process")) {
		inside = end_process;
		cuStreamSynchronize((void *)7);
	} else if (!strcmp(mode, "exec")) {
		inside = become_another;
		cuStreamSynchronize((void *)7);
	} else if (!strcmp(mode, "fork")) {
		inside = have_child;
		cuStreamSynchronize((void *)7);
		calls((void *)times);
		while (wait(NULL) > 0)
			;
	} else if (!strcmp(mode, "signal")) {
		signal(SIGUSR1, on_signal);
		inside = be_interrupted;
		cuStreamSynchronize((void *)7);
	} else if (!strcmp(mode, "blocked")) {
		inside = say_and_wait;
		cuStreamSynchronize((void *)7);
	} else if (!strcmp(mode, "batch")) {
		batch(5);
		batch(101);
	} else if (!strcmp(mode, "unreadable")) {
		cuMemcpy2D_v2((void *)16);
	} else if (!strcmp(mode, "launch")) {
		for (long i = 0; i < times; i++)
			cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, (void *)3);
	} else {
		return 2;
	}
	return 0;
}
