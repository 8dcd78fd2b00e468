/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * calls: kernel functions (and a few of libraries) from entry to return. No family of
 * its own: those that time calls list this file before theirs, and the first to do so
 * brings it in.
 *
 * A call in flight is known by the stack pointer at its entry: every stack of the
 * kernel, those of interrupts included, has addresses of its own, so neither nesting
 * nor interrupts nor the idle tasks (all of them thread 0) mix calls up. At the return
 * the return address has been popped: the pointer is 8 higher. User stacks have the
 * same addresses in every process: there the thread goes into the key too.
 *
 * Per-event cost: a hash update at the entry, a lookup and a deletion at the return.
 * Blind spots:   the kernel runs no second program while one runs on the same CPU, so a
 *                call from an interrupt that hits one may lack its entry or its return:
 *                counted, when the same place of the stack is called from again or at
 *                the end. One that lacks both is not noticed.
 */
#ifndef CCT_CALLS
#define CCT_CALLS

#define CCT_CALLS_IN_FLIGHT 16384

/* What is called; the family's kind is in the upper bits. */
#define CALLS_SITE(kind, number) ((kind) << 8 | (number))
#define CALLS_KIND(site) ((site) >> 8)

struct calls_key {
	u64 sp;
	u32 tid; /* 0 in the kernel */
	u32 site;
};

struct calls_frame {
	u64 ts_ns;
	u64 size_bytes;
	u64 object; /* what the call works on: a struct device, ... */
	u64 detail;
};

BPF_HASH(calls, struct calls_key, struct calls_frame, CCT_CALLS_IN_FLIGHT);
/* By kind: since when all probes are attached; 0: not yet, and nothing is recorded. */
BPF_ARRAY(calls_since, u64, CCT_KINDS);

static __always_inline u64 calls_armed(u32 kind)
{
	u64 *since_ns = calls_since.lookup(&kind);

	return since_ns ? *since_ns : 0;
}

static __always_inline void calls_enter(struct pt_regs *ctx, u32 site, u32 tid,
					u64 size_bytes, u64 object, u64 detail)
{
	struct calls_key key = {};
	struct calls_frame frame = {};
	struct calls_frame *stale;
	u64 since_ns;

	key.sp = PT_REGS_SP(ctx);
	key.tid = tid;
	key.site = site;
	stale = calls.lookup(&key);
	if (stale) {
		since_ns = calls_armed(CALLS_KIND(site));
		if (since_ns && stale->ts_ns >= since_ns)
			cct_lose(CALLS_KIND(site), CCT_LOST_RETURN);
	}
	frame.size_bytes = size_bytes;
	frame.object = object;
	frame.detail = detail;
	frame.ts_ns = bpf_ktime_get_ns();
	if (calls.update(&key, &frame))
		cct_lose(CALLS_KIND(site), CCT_LOST_MAP_FULL);
}

/* Take the frame of the call that returns; false: there is none, or it began too early.
 */
static __always_inline bool calls_leave(struct pt_regs *ctx, u32 site, u32 tid,
					struct calls_frame *taken)
{
	struct calls_key key = {};
	struct calls_frame *frame;
	u64 since_ns = calls_armed(CALLS_KIND(site));

	key.sp = PT_REGS_SP(ctx) - 8;
	key.tid = tid;
	key.site = site;
	frame = calls.lookup(&key);
	if (!frame) {
		/* A library's calls are entered selectively: no frame is the rule
		 * there. */
		if (since_ns && !tid)
			cct_lose(CALLS_KIND(site), CCT_LOST_ENTRY);
		return false;
	}
	*taken = *frame;
	calls.delete(&key);
	return since_ns && taken->ts_ns >= since_ns;
}

/* Start a record of one call; NULL: the ring is full. */
static __always_inline struct cct_event *calls_event(u32 site, u32 op,
						     struct calls_frame *frame)
{
	u64 now_ns = bpf_ktime_get_ns();
	struct cct_event *event = cct_reserve(CALLS_KIND(site));
	u64 pid_tgid = bpf_get_current_pid_tgid();

	if (!event)
		return NULL;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = frame->ts_ns;
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->kind = CALLS_KIND(site);
	event->what = op;
	event->detail = frame->detail;
	event->flags = 1;
	event->dur_ns = now_ns - frame->ts_ns;
	event->io.size_bytes = frame->size_bytes;
	return event;
}

#endif
