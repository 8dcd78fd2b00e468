/* SPDX-License-Identifier: Apache-2.0
 *
 * audit_library.c - a library whose first call comes from its own constructor.
 *
 * Stands for a CUDA library. AUDIT_MARK names a file that the constructor makes, so
 * that a test can tell whether any code of the library has run. With TLS_BYTES it also
 * has thread-local memory of the kind that must fit into what the loader set aside.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef TLS_BYTES
static __thread volatile char local[TLS_BYTES]
    __attribute__((tls_model("initial-exec")));
#endif

__attribute__((noinline)) int audit_call(int value)
{
#ifdef TLS_BYTES
	local[TLS_BYTES - 1] = (char)value;
	value = local[TLS_BYTES - 1];
#endif
	__asm__ volatile("" : "+r"(value));
	return value + 1;
}

__attribute__((constructor)) static void first(void)
{
	const char *mark = getenv("AUDIT_MARK");

	if (mark != NULL)
		close(open(mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	audit_call(0);
}
