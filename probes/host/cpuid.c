/* SPDX-License-Identifier: Apache-2.0
 *
 * libcctrace_host.so: the CPUID instruction for cctrace/record/tee.py.
 *
 * CPUID tells which confidential-computing environment a guest is in on every
 * kernel, without privilege and without a driver; Python has no way to it.
 */
#if !defined(__x86_64__)
#error "CPUID exists on x86 only"
#endif

#include <cpuid.h>
#include <stdint.h>

__attribute__((visibility("default"))) void
cctrace_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	__cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}
