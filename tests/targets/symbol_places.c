// SPDX-License-Identifier: Apache-2.0
/*
 * Says where it is: functions, an inlined one, one that ends in a call, its vDSO.
 */
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>

#include "symbol_places.h"

static inline __attribute__((always_inline)) int inner(int number)
{
	PLACE("inner");
	return number * 3;
}

NOINLINE int outer(int number)
{
	printf("caller outer 0 %d\n", __LINE__ + 1);
	return inner(number) + 1;
}

static NOINLINE int hidden(int number)
{
	PLACE("hidden");
	return number + 5;
}

/* In assembly, without a size: ends where the next one begins. */
__asm__(".text\n.globl sizeless\n.type sizeless, @function\nsizeless:\n"
	"nop\nnop\nnop\nret\n"
	".globl after_sizeless\n.type after_sizeless, @function\nafter_sizeless:\nret\n"
	".size after_sizeless, 1\n"
	/* A stretch of code that belongs to nobody. */
	".globl nobody_begin\n.type nobody_begin, @object\nnobody_begin:\n.skip 64, "
	"0x90\nret\n");
void sizeless(void);
extern const char nobody_begin[];

__attribute__((noreturn)) NOINLINE static void leave(int line)
{
	printf("return ender %p %d\n", __builtin_return_address(0), line);
	exit(finish());
}

/* Returns to behind its own end. */
__attribute__((noreturn)) NOINLINE void ender(void)
{
	leave(__LINE__);
}

int main(void)
{
	printf("entry outer %p 0\n", (void *)(uintptr_t)outer);
	printf("entry sizeless %p 0\n", (void *)((uintptr_t)sizeless + 2));
	printf("nobody nobody %p 0\n", (const void *)(nobody_begin + 32));
	printf("vdso vdso %p 0\n", (void *)getauxval(AT_SYSINFO_EHDR));
	outer(7);
	hidden(11);
	PLACE("main");
	ender();
}
