/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs that say where they are have in common.
 *
 * A place is a call: the callee prints its name, the address it returns to, and the
 * line of the call. That is what a stack has of it, by the program's own word.
 */
#ifndef CCTRACE_SYMBOL_PLACES_H
#define CCTRACE_SYMBOL_PLACES_H

#include <stdio.h>

#define NOINLINE __attribute__((noinline, noclone))

NOINLINE static void place(const char *name, int line)
{
	printf("return %s %p %d\n", name, __builtin_return_address(0), line);
	__asm__ volatile("" ::: "memory");
}

/* The call is not the function's last instruction. */
#define PLACE(name)                                                                    \
	do {                                                                           \
		place(name, __LINE__);                                                 \
		__asm__ volatile("" ::: "memory");                                     \
	} while (0)

/* Have the reader look, and end when it says so. */
static inline int finish(void)
{
	printf("end\n");
	fflush(stdout);
	return getchar() == EOF;
}

#endif
