/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * dma: DMA mappings by device and direction, and how many of them bounce.
 *
 * Attach points: those the kernel has of dma:dma_map_phys (in older ones dma_map_page,
 *                dma_map_resource), dma:dma_map_sg, dma:dma_alloc.
 * Requires:      Linux 6.12.
 * Per-event cost: a hash lookup and four additions for each mapping of the machine; up
 *                to 128 segments are read for a list. Nothing goes through the ring.
 * Blind spots:   a list's segments beyond 128 are not in its record (counted as lists
 *                cut short); memory mapped before the recording.
 *
 * A mapping bounced if the device's address is not the buffer's own: true where DMA
 * addresses are physical ones (dma-direct). Behind an IOMMU they never are: the
 * recorder looks, and says nothing of bounces there.
 */

#define DMA_COHERENT 4 /* in the place of a direction: memory shared for good */
#define DMA_SEGMENTS 128
/* Where TDX (shared) and SEV (encrypted) keep their bit in an address. */
#define DMA_ADDRESS ~(1ULL << 47 | 1ULL << 51)

struct dma_key {
	char device[CCT_DEVICE_BYTES];
	u64 direction;
};

struct dma_totals {
	u64 mappings;
	u64 bytes;
	u64 bounced_mappings;
	u64 bounced_bytes;
};

struct dma_list {
	u64 phys[DMA_SEGMENTS];
	u64 dma[DMA_SEGMENTS];
	u32 length[DMA_SEGMENTS];
};

BPF_HASH(dma_totals, struct dma_key, struct dma_totals, 4096);
BPF_PERCPU_ARRAY(dma_lists, struct dma_list, 1);
BPF_PERCPU_ARRAY(dma_cut_short, u64, 1);

static __always_inline void dma_add(void *ctx, u32 device_field, u64 direction,
				    struct dma_totals *more)
{
	struct dma_key key = {};
	struct dma_totals nothing = {};
	struct dma_totals *totals;

	bpf_probe_read_kernel_str(key.device, sizeof(key.device),
				  (char *)ctx + (device_field & 0xffff));
	key.direction = direction;
	totals = dma_totals.lookup_or_try_init(&key, &nothing);
	if (!totals) {
		cct_lose(CCT_KIND_DMA, CCT_LOST_MAP_FULL);
		return;
	}
	__sync_fetch_and_add(&totals->mappings, more->mappings);
	__sync_fetch_and_add(&totals->bytes, more->bytes);
	if (!more->bounced_mappings)
		return;
	__sync_fetch_and_add(&totals->bounced_mappings, more->bounced_mappings);
	__sync_fetch_and_add(&totals->bounced_bytes, more->bounced_bytes);
}

static __always_inline void dma_add_segment(struct dma_totals *totals, u64 phys,
					    u64 dma, u64 size_bytes)
{
	u64 differs = (phys ^ dma) & DMA_ADDRESS;

	/* No branch: a list would give the verifier two paths for each of its segments.
	 */
	differs = (differs | -differs) >> 63;
	asm volatile("" : "+r"(differs));
	totals->mappings += 1;
	totals->bytes += size_bytes;
	totals->bounced_mappings += differs;
	totals->bounced_bytes += size_bytes & -differs;
}

#ifdef TP_dma_map_phys_size
int on_dma_map_phys(void *ctx)
{
	struct dma_totals one = {};

	dma_add_segment(&one, TP_FIELD(ctx, u64, TP_dma_map_phys_phys_addr),
			TP_FIELD(ctx, u64, TP_dma_map_phys_dma_addr),
			TP_FIELD(ctx, u64, TP_dma_map_phys_size));
	dma_add(ctx, TP_FIELD(ctx, u32, TP_dma_map_phys_device),
		TP_FIELD(ctx, u32, TP_dma_map_phys_dir), &one);
	return 0;
}
#endif

#ifdef TP_dma_map_page_size
int on_dma_map_page(void *ctx)
{
	struct dma_totals one = {};

	dma_add_segment(&one, TP_FIELD(ctx, u64, TP_dma_map_page_phys_addr),
			TP_FIELD(ctx, u64, TP_dma_map_page_dma_addr),
			TP_FIELD(ctx, u64, TP_dma_map_page_size));
	dma_add(ctx, TP_FIELD(ctx, u32, TP_dma_map_page_device),
		TP_FIELD(ctx, u32, TP_dma_map_page_dir), &one);
	return 0;
}
#endif

#ifdef TP_dma_map_resource_size
int on_dma_map_resource(void *ctx)
{
	struct dma_totals one = {};

	/* Registers of another device: never bounced. */
	one.mappings = 1;
	one.bytes = TP_FIELD(ctx, u64, TP_dma_map_resource_size);
	dma_add(ctx, TP_FIELD(ctx, u32, TP_dma_map_resource_device),
		TP_FIELD(ctx, u32, TP_dma_map_resource_dir), &one);
	return 0;
}
#endif

#ifdef TP_dma_alloc_size
int on_dma_alloc(void *ctx)
{
	struct dma_totals one = {};

	one.mappings = 1;
	one.bytes = TP_FIELD(ctx, u64, TP_dma_alloc_size);
	dma_add(ctx, TP_FIELD(ctx, u32, TP_dma_alloc_device), DMA_COHERENT, &one);
	return 0;
}
#endif

#ifdef TP_dma_map_sg_lengths
/* Read an array of the record into `to`; returns its length in bytes. */
static __always_inline u32 dma_read_array(void *ctx, u32 field, void *to, u32 room)
{
	u32 bytes = field >> 16;

	if (bytes > room)
		bytes = room;
	if (bpf_probe_read_kernel(to, bytes, (char *)ctx + (field & 0xffff)))
		return 0;
	return bytes;
}

int on_dma_map_sg(void *ctx)
{
	u32 zero = 0, count, index;
	struct dma_list *list = dma_lists.lookup(&zero);
	struct dma_totals sum = {};
	u32 phys_bytes, dma_bytes;

	if (!list)
		return 0;
	count = dma_read_array(ctx, TP_FIELD(ctx, u32, TP_dma_map_sg_lengths),
			       list->length, sizeof(list->length)) /
		sizeof(u32);
	phys_bytes = dma_read_array(ctx, TP_FIELD(ctx, u32, TP_dma_map_sg_phys_addrs),
				    list->phys, sizeof(list->phys));
	dma_bytes = dma_read_array(ctx, TP_FIELD(ctx, u32, TP_dma_map_sg_dma_addrs),
				   list->dma, sizeof(list->dma));
	if (!count || !phys_bytes || !dma_bytes) {
		cct_lose(CCT_KIND_DMA, CCT_LOST_READ);
		return 0;
	}
	for (index = 0; index < DMA_SEGMENTS; index++) {
		if (index >= count)
			break;
		dma_add_segment(&sum, list->phys[index], list->dma[index],
				list->length[index]);
	}
#ifdef TP_dma_map_sg_truncated
	if (TP_FIELD(ctx, u8, TP_dma_map_sg_truncated)) {
		u64 *cut = dma_cut_short.lookup(&zero);

		if (cut)
			*cut += 1;
	}
#endif
	dma_add(ctx, TP_FIELD(ctx, u32, TP_dma_map_sg_device),
		TP_FIELD(ctx, u32, TP_dma_map_sg_dir), &sum);
	return 0;
}
#endif
