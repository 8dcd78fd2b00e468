/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_calls.h - call a function by its name, with arguments given by position.
 *
 * Every argument is eight bytes, the first six in registers, the others on the stack,
 * as the x86-64 ABI has it; a structure by value is its words, on the stack or, if it
 * is small, in registers.
 */
#ifndef CUDA_CALLS_H
#define CUDA_CALLS_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ARGUMENTS 24
#define A(x) ((uint64_t)(uintptr_t)(x))

static void *libraries[3];

typedef int (*any_function)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
			    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
			    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
			    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static void *find(const char *name)
{
	for (int i = 0; i < 3; i++) {
		void *found = dlsym(libraries[i], name);

		if (found)
			return found;
	}
	return NULL;
}

/* Call the function if it is there; those that are not, the test knows by name. */
static int call(const char *name, const char *suffix, const uint64_t *a)
{
	char whole[128];
	any_function function;

	snprintf(whole, sizeof(whole), "%s%s", name, suffix);
	function = (any_function)find(whole);
	if (!function)
		return -1;
	return function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9],
			a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18],
			a[19], a[20], a[21], a[22], a[23]);
}

#define ARGS(...)                                                                      \
	(const uint64_t[ARGUMENTS])                                                    \
	{                                                                              \
		__VA_ARGS__                                                            \
	}
#define ONE(name, ...) call(name, "", ARGS(__VA_ARGS__))
#define DS(name, ...)                                                                  \
	do {                                                                           \
		ONE(name, __VA_ARGS__);                                                \
		call(name, "_ptds", ARGS(__VA_ARGS__));                                \
	} while (0)
#define SZ(name, ...)                                                                  \
	do {                                                                           \
		ONE(name, __VA_ARGS__);                                                \
		call(name, "_ptsz", ARGS(__VA_ARGS__));                                \
	} while (0)

static void require(int result, const char *what)
{
	if (!result)
		return;
	fprintf(stderr, "cuda_every: %s: %d\n", what, result);
	exit(1);
}

#endif
