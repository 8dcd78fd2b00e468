/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * tdx: exits of a TDX guest that the kernel handles as virtualization exceptions.
 *
 * Attach points: tdx_handle_virt_exception(regs, ve). Never tdx_get_ve_info: until that
 *                has read the first exception's particulars a second one (which a probe
 *                could raise) is a double fault and the end of the guest.
 * Requires:      kprobes, a TDX guest.
 * Per-event cost: one read and one count; nothing goes through the ring.
 * Blind spots:   halts by tdx_safe_halt and other calls the guest makes by itself:
 *                __tdx_hypercall is noinstr and cannot be probed.
 *
 * struct ve_info (arch/x86/include/asm/tdx.h) begins with u64 exit_reason since it came
 * with Linux 5.19.
 */

/* Basic exit reasons go up to 77 (Intel SDM vol. 3, appendix C); the last: any other.
 */
#define TDX_REASONS 96

BPF_PERCPU_ARRAY(tdx_exits, u64, TDX_REASONS);

int on_tdx_exit_entry(struct pt_regs *ctx)
{
	u64 reason = 0;
	u32 slot = TDX_REASONS - 1;
	u64 *count;

	if (bpf_probe_read_kernel(&reason, sizeof(reason), (void *)PT_REGS_PARM2(ctx)))
		cct_lose(CCT_KIND_TDX, CCT_LOST_READ);
	else if ((u32)reason < TDX_REASONS)
		slot = (u32)reason;
	count = tdx_exits.lookup(&slot);
	if (count)
		*count += 1;
	return 0;
}
