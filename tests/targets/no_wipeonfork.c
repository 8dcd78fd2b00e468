/* SPDX-License-Identifier: Apache-2.0
 *
 * no_wipeonfork.c - preloaded: a kernel (or sandbox) without MADV_WIPEONFORK.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int madvise(void *address, size_t bytes, int advice)
{
	if (advice == MADV_WIPEONFORK) {
		errno = EINVAL;
		return -1;
	}
	return (int)syscall(SYS_madvise, address, bytes, advice);
}
