/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * audit_count: counts the hits of each probe, which its cookie numbers.
 */
#include <uapi/linux/ptrace.h>

BPF_ARRAY(hits, u64, COUNTERS);

int on_call(struct pt_regs *ctx)
{
	u32 slot = (u32)bpf_get_attach_cookie(ctx);
	u64 *count = hits.lookup(&slot);

	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
