/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * core: the ring, the traced threads, the losses. Every family's file follows this one
 * in the same compilation.
 *
 * Attach points: task:task_newtask, sched:sched_process_exec, sched:sched_process_exit.
 * Requires:      Linux 5.15 (ring buffers, attach cookies).
 * Per-event cost: a hash update or deletion for each thread made or ended.
 * Blind spots:   a thread made while `traced` is full is not traced (counted).
 *
 * A thread is traced if the thread that made it is, so the filter needs no field of
 * task_struct and no layout that changes with the kernel. The recorder puts the first
 * one in: its own thread, marked as one that only spawns, around the start of the
 * target; or all threads of a running process.
 */
#include <uapi/linux/ptrace.h>

#ifndef __x86_64__
#error "arguments are read from x86-64 registers"
#endif

#define CCT_CLONE_THREAD 0x00010000 /* include/uapi/linux/sched.h */
#define CCT_NO_WAKEUP 1             /* BPF_RB_NO_WAKEUP: the recorder looks by itself */

/* What is kept of a traced thread. */
struct cct_thread {
	u64 off_ns;  /* when it left the CPU; 0: it runs, or not known */
	u64 wake_ns; /* when it was woken since; 0: not yet */
	u32 waker_tid;
	u32 pid;      /* set when it leaves the CPU */
	u8 off_state; /* enum cct_sched_state */
	u8 spawner;   /* the recorder's own: its children are traced, it is not */
	u8 seen;      /* it has left a CPU since it is traced */
	u8 pad[5];
#ifdef CCT_WAIT_STACKS
	u64 stack_id; /* where it left the CPU */
#endif
};

BPF_RINGBUF_OUTPUT(ring, CCT_RING_PAGES);
BPF_F_TABLE("hash", u32, struct cct_thread, traced, CCT_MAX_THREADS, BPF_F_NO_PREALLOC);
/* What a new thread starts with. */
BPF_ARRAY(blank, struct cct_thread, 1);
/* Mapped by the recorder, which reads and sets them without a system call. */
BPF_F_TABLE("array", u32, u64, config, CCT_CONFIG_SLOTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, losses, CCT_KINDS *CCT_BPF_LOSSES, BPF_F_MMAPABLE);

#ifdef CCT_CUDA_CALLS
/* cuda.bpf.c: what becomes of calls in flight when a thread forks, execs or ends. */
static __always_inline void cuda_thread_made(u32 tid, u32 child);
static __always_inline void cuda_thread_ended(u32 tid);
/* Whether a thread is in a probed CUDA call. */
static __always_inline bool cuda_inside(u32 tid);
#endif

#ifdef CCT_STACKS
/* stacks.bpf.c: which program a process runs. */
static __always_inline void stack_process_made(u32 parent, u32 child);
static __always_inline void stack_process_execed(u32 pid);
#endif

/* Field of a tracepoint's record: its offset comes from the kernel's format file. */
#define TP_FIELD(ctx, type, offset) (*(type *)((char *)(ctx) + (offset)))

static __always_inline void cct_lose(u32 kind, u32 reason)
{
	u32 slot = kind * CCT_BPF_LOSSES + reason;
	u64 *count = losses.lookup(&slot);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline struct cct_event *cct_reserve(u32 kind)
{
	struct cct_event *event = ring.ringbuf_reserve(sizeof(struct cct_event));

	if (!event)
		cct_lose(kind, CCT_LOST_RING);
	return event;
}

/* Give what was reserved to the reader, which looks without being woken. */
static __always_inline void cct_submit(struct cct_event *event)
{
	ring.ringbuf_submit(event, CCT_NO_WAKEUP);
}

/* The current thread, if it is traced. */
static __always_inline struct cct_thread *cct_current(void)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct cct_thread *thread = traced.lookup(&tid);

	return thread && !thread->spawner ? thread : NULL;
}

/* A thread that nobody saw being made: the kernel skips programs (docs/adr/0003). It is
 * traced if its process's first thread is. Returns whether it is from now on.
 */
static __always_inline bool cct_adopt(u64 pid_tgid)
{
	u32 tid = (u32)pid_tgid, first = pid_tgid >> 32, zero = 0;
	struct cct_thread *thread, *fresh;

	if (tid == first)
		return false;
	thread = traced.lookup(&first);
	if (!thread || thread->spawner)
		return false;
	fresh = blank.lookup(&zero);
	return fresh && !traced.update(&tid, fresh);
}

static __always_inline u64 cct_config(u32 slot)
{
	u64 *value = config.lookup(&slot);

	return value ? *value : 0;
}

static __always_inline void cct_life(u32 what, u32 child_tid)
{
	struct cct_event *event = cct_reserve(CCT_KIND_LIFECYCLE);
	u64 pid_tgid = bpf_get_current_pid_tgid();

	if (!event)
		return;
	event->ts_ns = bpf_ktime_get_ns();
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->kind = CCT_KIND_LIFECYCLE;
	event->depth = 0;
	event->what = what;
	event->result = 0;
	event->detail = 0;
	event->flags = 0;
	event->dur_ns = 0;
	event->stack_id = 0;
	event->life.child_tid = child_tid;
	event->life.parent_pid = 0;
	event->life.pad = 0;
	bpf_get_current_comm(event->life.comm, sizeof(event->life.comm));
	cct_submit(event);
}

/* A thread is being made by the current one: traced as its maker is. */
int on_task_newtask(void *ctx)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	u32 child = TP_FIELD(ctx, u32, TP_task_newtask_pid);
	u64 flags = TP_FIELD(ctx, u64, TP_task_newtask_clone_flags);
	u32 zero = 0;
	struct cct_thread *fresh;

	if (!traced.lookup(&tid))
		return 0;
#ifdef CCT_STACKS
	if (!(flags & CCT_CLONE_THREAD))
		stack_process_made(bpf_get_current_pid_tgid() >> 32, child);
#endif
	fresh = blank.lookup(&zero);
	if (!fresh)
		return 0;
	if (traced.update(&child, fresh))
		cct_lose(CCT_KIND_LIFECYCLE, CCT_LOST_MAP_FULL);
	cct_life(flags & CCT_CLONE_THREAD ? CCT_LIFE_THREAD : CCT_LIFE_PROCESS, child);
#ifdef CCT_CUDA_CALLS
	/* A process returns from the calls its maker was in; a thread starts anew. */
	if (!(flags & CCT_CLONE_THREAD))
		cuda_thread_made(tid, child);
#endif
	return 0;
}

/* A thread other than the first may exec: it then takes over the first one's id. */
int on_sched_process_exec(void *ctx)
{
	u32 tid = TP_FIELD(ctx, u32, TP_sched_process_exec_pid);
	u32 old_tid = TP_FIELD(ctx, u32, TP_sched_process_exec_old_pid);
	u32 zero = 0;
	struct cct_thread *fresh = blank.lookup(&zero);

	if (!fresh || !traced.lookup(&old_tid))
		return 0;
#ifdef CCT_CUDA_CALLS
	cuda_thread_ended(old_tid);
#endif
	if (tid != old_tid)
		traced.delete(&old_tid);
#ifdef CCT_STACKS
	stack_process_execed(bpf_get_current_pid_tgid() >> 32);
#endif
	/* Whatever calls were open in the old program never return. */
	if (traced.update(&tid, fresh))
		cct_lose(CCT_KIND_LIFECYCLE, CCT_LOST_MAP_FULL);
	cct_life(CCT_LIFE_EXEC, 0);
	return 0;
}

int on_sched_process_exit(void *ctx)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct cct_thread *thread = traced.lookup(&tid);

	if (!thread || thread->spawner)
		return 0;
#ifdef CCT_CUDA_CALLS
	cuda_thread_ended(tid);
#endif
	cct_life(CCT_LIFE_EXIT, 0);
	traced.delete(&tid);
	return 0;
}
