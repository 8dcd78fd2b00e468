/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * doctor: programs by which `cctrace doctor` tries each way to attach.
 *
 * Attach points: chosen by the recorder: functions that it calls itself.
 * Requires:      Linux 5.15 (ring buffers, attach cookies).
 * Per-event cost: one array update; attached for milliseconds.
 * Blind spots:   what other threads do there is not counted.
 */
#include <uapi/linux/ptrace.h>
#include "cctrace.h"

/* Slots of `seen`; cctrace/record/doctor_bpf.py has the same. */
enum doctor_slot {
	DOCTOR_UPROBE = 0,
	DOCTOR_UPROBE_COOKIE, /* sum of the cookies */
	DOCTOR_MULTI,
	DOCTOR_MULTI_COOKIE,
	DOCTOR_TRACEPOINT,
	DOCTOR_KPROBE,
	DOCTOR_RING_FULL,
	DOCTOR_SLOTS
};

BPF_F_TABLE("array", u32, u64, seen, DOCTOR_SLOTS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(ring, 1);

/* Whether the thread that tries things runs: others may come by here, too. */
static __always_inline int doctor_is_us(void)
{
	return (u32)bpf_get_current_pid_tgid() == DOCTOR_TID;
}

static __always_inline void doctor_add(u32 slot, u64 value)
{
	u64 *count = seen.lookup(&slot);

	if (count)
		__sync_fetch_and_add(count, value);
}

int doctor_uprobe(struct pt_regs *ctx)
{
	struct cct_event *event;

	if (!doctor_is_us())
		return 0;
	doctor_add(DOCTOR_UPROBE, 1);
	doctor_add(DOCTOR_UPROBE_COOKIE, bpf_get_attach_cookie(ctx));
	event = ring.ringbuf_reserve(sizeof(struct cct_event));
	if (!event) {
		doctor_add(DOCTOR_RING_FULL, 1);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = bpf_ktime_get_ns();
	event->tid = DOCTOR_TID;
	ring.ringbuf_submit(event, 1); /* BPF_RB_NO_WAKEUP */
	return 0;
}

int doctor_uprobe_multi(struct pt_regs *ctx)
{
	if (!doctor_is_us())
		return 0;
	doctor_add(DOCTOR_MULTI, 1);
	doctor_add(DOCTOR_MULTI_COOKIE, bpf_get_attach_cookie(ctx));
	return 0;
}

/* On task:task_newtask, in the thread that makes another. */
int doctor_tracepoint(void *ctx)
{
	if (doctor_is_us())
		doctor_add(DOCTOR_TRACEPOINT, 1);
	return 0;
}

int doctor_kprobe(struct pt_regs *ctx)
{
	if (doctor_is_us())
		doctor_add(DOCTOR_KPROBE, 1);
	return 0;
}
