/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies to a device from many places, which the program says: one line for each copy,
 * its size, then "function:line" of the frames that it is in, innermost first.
 *
 * With an argument it sleeps instead: before the frames are the times before and after.
 * Compiled as C and as C++, where names are longer.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#ifdef __cplusplus
extern "C"
#endif
    int cudaMemcpy(void *dst, const void *src, size_t size, int kind);
#ifdef __cplusplus
extern "C"
#endif
    int cudaMalloc(void **at, size_t size);

#define DEEP 131
#define HIDDEN __attribute__((noinline, noclone, visibility("hidden")))

struct place {
	const char *function;
	int line;
};

static __thread struct place places[DEEP + 16];
static __thread int depth;
static size_t next_size = 1009;
static char host[1 << 16];
static void *device;

static void enter(const char *function, int line)
{
	places[depth].function = function;
	places[depth++].line = line;
}

static void leave(void)
{
	depth--;
}

static void say_places(void)
{
	for (int i = depth - 1; i >= 0; i--)
		printf("\t%s:%d", places[i].function, places[i].line);
	printf("\n");
}

static size_t said(void)
{
	size_t size = next_size++;

	printf("%zu", size);
	say_places();
	return size;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A system call without a function of the C library around it. */
#define SLEEP(length)                                                                  \
	asm volatile("syscall"                                                         \
		     : "=a"(result)                                                    \
		     : "0"(SYS_nanosleep), "D"(length), "S"(0)                         \
		     : "rcx", "r11", "memory")

/* A call from here, as the frame shows it. */
#define FROM(name, call) (enter(name, __LINE__), (void)(call), leave())

#ifdef __cplusplus
#define NAME(c, cxx) cxx
#else
#define NAME(c, cxx) c
#endif

#ifdef __cplusplus
namespace demo
{
	template<typename T> struct engine {
		HIDDEN T step(T times) const;
	};
#endif

	HIDDEN void copy(void)
	{
		FROM(NAME("copy", "demo::copy()"), cudaMemcpy(device, host, said(), 1));
	}

	HIDDEN int two_lines(int times)
	{
		FROM(NAME("two_lines", "demo::two_lines(int)"), copy());
		times += next_size & 1;
		FROM(NAME("two_lines", "demo::two_lines(int)"),
		     cudaMemcpy(device, host, said(), 1));
		return times;
	}

	HIDDEN int recursion(int times)
	{
		if (times)
			FROM(NAME("recursion", "demo::recursion(int)"),
			     recursion(times - 1));
		else
			FROM(NAME("recursion", "demo::recursion(int)"), copy());
		return times + 1;
	}

	HIDDEN long nap(void)
	{
		struct timespec length = {0, 3000017};
		int64_t before_ns = now_ns(), after_ns;
		long result;

		enter(NAME("nap", "demo::nap()"), __LINE__ + 1);
		SLEEP(&length);
		after_ns = now_ns();
		printf("%lld\t%lld", (long long)before_ns, (long long)after_ns);
		say_places();
		leave();
		return result;
	}

	HIDDEN int naps(int times)
	{
		if (times)
			FROM(NAME("naps", "demo::naps(int)"), naps(times - 1));
		FROM(NAME("naps", "demo::naps(int)"), nap());
		return times + 1;
	}

#ifdef __cplusplus
	template<typename T> T engine<T>::step(T times) const
	{
		FROM("demo::engine<long>::step(long) const", two_lines((int)times));
		return times + 1;
	}
} // namespace demo
using namespace demo;
#endif

HIDDEN void *start(void *argument)
{
	FROM(NAME("start", "start(void*)"), recursion(2));
	return argument;
}

HIDDEN int in_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 3; i++) {
		if (pthread_create(&thread, NULL, start, NULL) ||
		    pthread_join(thread, NULL))
			abort();
	}
	return 0;
}

int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		FROM("main", naps(3));
		fflush(stdout);
		return getchar() == EOF ? 0 : 1;
	}
	if (cudaMalloc(&device, sizeof(host)))
		return 1;
	FROM("main", copy());
	FROM("main", two_lines(1));
	FROM("main", recursion(3));
	FROM("main", recursion(DEEP));
#ifdef __cplusplus
	FROM("main", demo::engine<long>().step(7));
#endif
	in_threads();
	fflush(stdout);
	return getchar() == EOF ? 0 : 1;
}
