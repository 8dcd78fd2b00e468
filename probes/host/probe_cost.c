/* SPDX-License-Identifier: Apache-2.0
 *
 * A function that does nothing, and calls of it with their lengths: what a pair of
 * probes costs is what they take longer for it (cctrace/record/bpf/cuda/probe_cost.py).
 */
#include <stdint.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))

int cctrace_probed(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

/* It begins as CUDA's functions do: the kernel emulates this push, where it would have
 * to execute most other instructions out of their place, which takes longer. */
__asm__(".text\n"
	".p2align 4\n"
	".globl cctrace_probed\n"
	".type cctrace_probed, @function\n"
	"cctrace_probed:\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	xor %eax, %eax\n"
	"	pop %rbp\n"
	"	ret\n"
	".size cctrace_probed, . - cctrace_probed\n");

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Call it so often; the length of each call, with that of reading the clock, goes to
 * `lengths_ns`. */
EXPORTED void cctrace_time_calls(uint64_t *lengths_ns, uint32_t calls)
{
	for (uint32_t i = 0; i < calls; i++) {
		uint64_t begun_ns = now_ns();

		cctrace_probed(0, 0, 0, 1, 0, 0);
		lengths_ns[i] = now_ns() - begun_ns;
	}
}
