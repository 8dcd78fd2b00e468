/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exit32: a 32-bit program without a C library: sleeps 13 times for 1 ms, ends with 41.
 *
 * System calls by int 0x80, numbers of arch/x86/entry/syscalls/syscall_32.tbl.
 */
#define SYS32_EXIT 1
#define SYS32_NANOSLEEP 162

static int call(int number, const void *first)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(first), "c"(0)
			 : "memory");
	return result;
}

void _start(void)
{
	static const long pause[2] = {0, 1000000};

	for (int i = 0; i < 13; i++)
		call(SYS32_NANOSLEEP, pause);
	call(SYS32_EXIT, (const void *)41);
}
