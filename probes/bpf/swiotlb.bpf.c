/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * swiotlb: what passes through the kernel's bounce buffers, for any device.
 *
 * Attach points: with kprobes: swiotlb_map, swiotlb_bounce, swiotlb_tbl_unmap_single
 *                and swiotlb_sync_single_for_{device,cpu} (from 6.10 on their names
 *                begin with two underscores), and swiotlb:swiotlb_bounced, which then
 *                only tells the names of devices. Without: swiotlb:swiotlb_bounced.
 * Requires:      Linux 5.15, CONFIG_SWIOTLB.
 * Per-event cost: an entry, a return and a record for each operation; one bounced
 *                segment of I/O is four or five operations.
 * Blind spots:   the tracepoint has neither direction nor length, and fires for maps
 *                that fail as well. Maps by dma-iommu do not pass swiotlb_map: their
 *                bounces are seen, their maps are not. A device that was only mapped
 *                before the recording has no name until it is mapped again.
 *
 * Of the whole machine, not of the traced tree: the kernel maps writes in a worker and
 * copies what was read in an interrupt, so that the thread that wanted the I/O is
 * rarely the current one. pid and tid are of whatever was; 0: the CPU idled.
 *
 * Argument positions, the same in 5.15 to 6.18 (kernel/dma/swiotlb.c): swiotlb_map(dev,
 * paddr, size, dir, attrs) returns ~0 on failure; swiotlb_bounce, the unmap and the
 * syncs take (dev, tlb_addr, size, dir, ...). In swiotlb_bounce dir is the direction of
 * the copy, in the others that of the mapping.
 */

#define SWIOTLB_MAP CALLS_SITE(CCT_KIND_SWIOTLB, 0)
#define SWIOTLB_BOUNCE CALLS_SITE(CCT_KIND_SWIOTLB, 1)
#define SWIOTLB_UNMAP CALLS_SITE(CCT_KIND_SWIOTLB, 2)
#define SWIOTLB_SYNC CALLS_SITE(CCT_KIND_SWIOTLB, 3)

#define SWIOTLB_MAPPING_ERROR (~0ULL)
#define SWIOTLB_IN_PAGE 0xfff
#define SWIOTLB_IDLE 0x80000000u

/* What writes a map of the tracepoint: set once everything is attached. */
enum swiotlb_mode { SWIOTLB_OFF = 0, SWIOTLB_TRACEPOINT = 1, SWIOTLB_KPROBES = 2 };

/* A map that has not come to its tracepoint yet. */
struct swiotlb_pending {
	u64 device;
	u64 paddr;
	u64 size_bytes;
};

struct swiotlb_name {
	u64 words[CCT_DEVICE_BYTES / 8];
};

BPF_ARRAY(swiotlb_mode, u64, 1);
BPF_HASH(swiotlb_pending, u32, struct swiotlb_pending, 4096);
/* struct device * to its name; a machine has tens of devices that do DMA. */
BPF_HASH(swiotlb_names, u64, struct swiotlb_name, 4096);

/* Where this runs: a thread, or an idle CPU. */
static __always_inline u32 swiotlb_context(void)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();

	return tid ? tid : SWIOTLB_IDLE | bpf_get_smp_processor_id();
}

static __always_inline void swiotlb_read_name(void *ctx, struct swiotlb_name *name)
{
	/* __data_loc: offset within the record in the low half, length in the high. */
	u32 where = TP_FIELD(ctx, u32, TP_swiotlb_bounced_dev_name);

	if (bpf_probe_read_kernel_str(name, sizeof(*name),
				      (char *)ctx + (where & 0xffff)) < 0)
		cct_lose(CCT_KIND_SWIOTLB, CCT_LOST_READ);
}

/* Remember what the device of the map under way is called. */
static __always_inline void swiotlb_learn(void *ctx, struct swiotlb_pending *pending)
{
	struct swiotlb_name name = {};
	struct swiotlb_name *known;
	u64 device = pending->device;
	u64 address = TP_FIELD(ctx, u64, TP_swiotlb_bounced_dev_addr);

	/* An interrupt that maps between entry and tracepoint leaves another's here. */
	if (pending->size_bytes != TP_FIELD(ctx, u64, TP_swiotlb_bounced_size) ||
	    (address & SWIOTLB_IN_PAGE) != (pending->paddr & SWIOTLB_IN_PAGE))
		return;
	swiotlb_read_name(ctx, &name);
	known = swiotlb_names.lookup(&device);
	if (known && known->words[0] == name.words[0] &&
	    known->words[1] == name.words[1] && known->words[2] == name.words[2])
		return;
	swiotlb_names.update(&device, &name);
}

static __always_inline void swiotlb_emit_bounced(void *ctx)
{
	struct cct_event *event;
	struct swiotlb_name name = {};
	u64 pid_tgid = bpf_get_current_pid_tgid();

	swiotlb_read_name(ctx, &name);
	event = cct_reserve(CCT_KIND_SWIOTLB);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = bpf_ktime_get_ns();
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->kind = CCT_KIND_SWIOTLB;
	event->what = CCT_IO_MAP;
	event->detail = CCT_DIRECTION_UNKNOWN;
	event->io.size_bytes = TP_FIELD(ctx, u64, TP_swiotlb_bounced_size);
	__builtin_memcpy(event->io.device, &name, sizeof(name));
	cct_submit(event);
}

int on_swiotlb_bounced(void *ctx)
{
	u32 zero = 0, context;
	u64 *mode = swiotlb_mode.lookup(&zero);
	struct swiotlb_pending *found, pending;

	if (!mode)
		return 0;
	if (*mode == SWIOTLB_TRACEPOINT) {
		swiotlb_emit_bounced(ctx);
		return 0;
	}
	context = swiotlb_context();
	found = swiotlb_pending.lookup(&context);
	if (!found)
		return 0;
	pending = *found;
	swiotlb_pending.delete(&context);
	swiotlb_learn(ctx, &pending);
	return 0;
}

static __always_inline void swiotlb_enter(struct pt_regs *ctx, u32 site)
{
	calls_enter(ctx, site, 0, PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx),
		    (u32)PT_REGS_PARM4(ctx));
}

static __always_inline void swiotlb_leave(struct pt_regs *ctx, u32 site, u32 op)
{
	struct calls_frame frame;
	struct cct_event *event;
	struct swiotlb_name *name;

	if (!calls_leave(ctx, site, 0, &frame))
		return;
	name = swiotlb_names.lookup(&frame.object);
	event = calls_event(site, op, &frame);
	if (!event)
		return;
	if (name)
		__builtin_memcpy(event->io.device, name, sizeof(*name));
	cct_submit(event);
}

int on_swiotlb_map_entry(struct pt_regs *ctx)
{
	struct swiotlb_pending pending = {};
	u32 context = swiotlb_context();

	pending.device = PT_REGS_PARM1(ctx);
	pending.paddr = PT_REGS_PARM2(ctx);
	pending.size_bytes = PT_REGS_PARM3(ctx);
	/* No room: the name is learned another time. */
	swiotlb_pending.update(&context, &pending);
	swiotlb_enter(ctx, SWIOTLB_MAP);
	return 0;
}

int on_swiotlb_map_return(struct pt_regs *ctx)
{
	u64 address = PT_REGS_RC(ctx);

	swiotlb_leave(ctx, SWIOTLB_MAP,
		      address == SWIOTLB_MAPPING_ERROR ? CCT_IO_FULL : CCT_IO_MAP);
	return 0;
}

int on_swiotlb_bounce_entry(struct pt_regs *ctx)
{
	swiotlb_enter(ctx, SWIOTLB_BOUNCE);
	return 0;
}

int on_swiotlb_bounce_return(struct pt_regs *ctx)
{
	swiotlb_leave(ctx, SWIOTLB_BOUNCE, CCT_IO_BOUNCE);
	return 0;
}

int on_swiotlb_unmap_entry(struct pt_regs *ctx)
{
	swiotlb_enter(ctx, SWIOTLB_UNMAP);
	return 0;
}

int on_swiotlb_unmap_return(struct pt_regs *ctx)
{
	swiotlb_leave(ctx, SWIOTLB_UNMAP, CCT_IO_UNMAP);
	return 0;
}

int on_swiotlb_sync_entry(struct pt_regs *ctx)
{
	swiotlb_enter(ctx, SWIOTLB_SYNC);
	return 0;
}

int on_swiotlb_sync_return(struct pt_regs *ctx)
{
	swiotlb_leave(ctx, SWIOTLB_SYNC, CCT_IO_SYNC);
	return 0;
}
