/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * page_conversion: pages handed between the guest alone and the host's view.
 *
 * Attach points: set_memory_decrypted, set_memory_encrypted (addr, numpages), the
 *                exported entry points of every kernel and of TDX and SEV-SNP alike.
 * Requires:      kprobes.
 * Per-event cost: an entry, a return and a record for each conversion; conversions cost
 *                flushes and calls into the host, and are rare once drivers are up.
 * Blind spots:   conversions during boot. Outside a confidential guest the functions
 *                return at once, and are recorded all the same.
 *
 * Of the whole machine: drivers convert in workers too.
 */

#define PAGES_SHARED CALLS_SITE(CCT_KIND_PAGES, 0)
#define PAGES_PRIVATE CALLS_SITE(CCT_KIND_PAGES, 1)

static __always_inline void pages_leave(struct pt_regs *ctx, u32 site, u32 op)
{
	struct calls_frame frame;
	struct cct_event *event;

	if (!calls_leave(ctx, site, 0, &frame))
		return;
	event = calls_event(site, op, &frame);
	if (!event)
		return;
	event->result = (s16)PT_REGS_RC(ctx);
	cct_submit(event);
}

int on_pages_shared_entry(struct pt_regs *ctx)
{
	calls_enter(ctx, PAGES_SHARED, 0, (u32)PT_REGS_PARM2(ctx), 0,
		    CCT_DIRECTION_UNKNOWN);
	return 0;
}

int on_pages_shared_return(struct pt_regs *ctx)
{
	pages_leave(ctx, PAGES_SHARED, CCT_IO_TO_SHARED);
	return 0;
}

int on_pages_private_entry(struct pt_regs *ctx)
{
	calls_enter(ctx, PAGES_PRIVATE, 0, (u32)PT_REGS_PARM2(ctx), 0,
		    CCT_DIRECTION_UNKNOWN);
	return 0;
}

int on_pages_private_return(struct pt_regs *ctx)
{
	pages_leave(ctx, PAGES_PRIVATE, CCT_IO_TO_PRIVATE);
	return 0;
}
