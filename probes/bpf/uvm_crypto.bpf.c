/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * uvm_crypto: what nvidia-uvm encrypts and decrypts on the CPU for a GPU in CC mode.
 *
 * Attach points: uvm_conf_computing_cpu_encrypt and _cpu_decrypt; where they cannot be
 *                probed, nvUvmInterfaceCslEncrypt and CslDecrypt, which they call.
 *                uvm_conf_computing_dma_buffer_alloc and _free, counted only.
 * Requires:      kprobes, nvidia_uvm loaded.
 * Per-event cost: an entry, a return and a record for each call: one per 4 KiB page of
 *                what is copied.
 * Blind spots:   push buffers and semaphores are encrypted the same way: not all bytes
 *                are the program's.
 *
 * Arguments (kernel-open/nvidia-uvm/uvm_conf_computing.h, nv_uvm_interface.h of the
 * open kernel modules): cpu_encrypt(channel, dst, src, iv, size, tag);
 * cpu_decrypt(channel, dst, src, iv, size, tag), and since keys rotate
 * cpu_decrypt(channel, dst, src, iv, key_version, size, tag);
 * nvUvmInterfaceCslEncrypt and CslDecrypt(context, u32 size, ...) in all.
 */

#define UVM_ENCRYPT CALLS_SITE(CCT_KIND_UVM, 0)
#define UVM_DECRYPT CALLS_SITE(CCT_KIND_UVM, 1)

/* Slots of uvm_buffers. */
#define UVM_BUFFERS_TAKEN 0
#define UVM_BUFFERS_GIVEN_BACK 1

/* Staging buffers taken from, and given back to, the pool that copies pass through. */
BPF_PERCPU_ARRAY(uvm_buffers, u64, 2);

static __always_inline void uvm_count(u32 slot)
{
	u64 *count = uvm_buffers.lookup(&slot);

	if (count)
		*count += 1;
}

static __always_inline void uvm_leave(struct pt_regs *ctx, u32 site, u32 op)
{
	struct calls_frame frame;
	struct cct_event *event;

	if (!calls_leave(ctx, site, 0, &frame))
		return;
	event = calls_event(site, op, &frame);
	if (event)
		cct_submit(event);
}

int on_uvm_encrypt_entry(struct pt_regs *ctx)
{
	calls_enter(ctx, UVM_ENCRYPT, 0, PT_REGS_PARM5(ctx), 0, CCT_TO_DEVICE);
	return 0;
}

int on_uvm_decrypt_entry(struct pt_regs *ctx)
{
	u64 fifth = PT_REGS_PARM5(ctx), sixth = PT_REGS_PARM6(ctx);

	/* A kernel address in the sixth place is the tag: then the fifth is the size.
	 */
	calls_enter(ctx, UVM_DECRYPT, 0, (long)sixth < 0 ? fifth : sixth, 0,
		    CCT_FROM_DEVICE);
	return 0;
}

int on_uvm_csl_encrypt_entry(struct pt_regs *ctx)
{
	calls_enter(ctx, UVM_ENCRYPT, 0, (u32)PT_REGS_PARM2(ctx), 0, CCT_TO_DEVICE);
	return 0;
}

int on_uvm_csl_decrypt_entry(struct pt_regs *ctx)
{
	calls_enter(ctx, UVM_DECRYPT, 0, (u32)PT_REGS_PARM2(ctx), 0, CCT_FROM_DEVICE);
	return 0;
}

int on_uvm_encrypt_return(struct pt_regs *ctx)
{
	uvm_leave(ctx, UVM_ENCRYPT, CCT_IO_ENCRYPT);
	return 0;
}

int on_uvm_decrypt_return(struct pt_regs *ctx)
{
	uvm_leave(ctx, UVM_DECRYPT, CCT_IO_DECRYPT);
	return 0;
}

int on_uvm_buffer_taken_return(struct pt_regs *ctx)
{
	/* NV_OK */
	if ((u32)PT_REGS_RC(ctx) == 0)
		uvm_count(UVM_BUFFERS_TAKEN);
	return 0;
}

int on_uvm_buffer_given_back_entry(struct pt_regs *ctx)
{
	uvm_count(UVM_BUFFERS_GIVEN_BACK);
	return 0;
}
