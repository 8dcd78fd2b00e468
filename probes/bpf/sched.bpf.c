/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * sched: off-CPU intervals of traced threads.
 *
 * Attach points: sched:sched_switch, sched:sched_waking.
 * Requires:      nothing beyond core.
 * Per-event cost: two hash lookups at each switch of the machine, one at each wake-up;
 *                a record or two when a traced thread comes back.
 * Blind spots:   what a thread that is off the CPU at the end waited for is not
 *                recorded; uninterruptible sleep counts as io, whatever it waits for.
 *
 * One wait is cut in two where a wake-up was seen: blocked (or io) until then,
 * runnable from then until the thread is on a CPU. A thread that was preempted is
 * runnable all the time.
 */

/* include/linux/sched.h; the tracepoint shows 0 (or a bit above) for one preempted. */
#define CCT_TASK_INTERRUPTIBLE 1
#define CCT_TASK_UNINTERRUPTIBLE 2

#ifdef CCT_WAIT_STACKS
#define SCHED_STACK(thread) ((thread)->stack_id)
#else
#define SCHED_STACK(thread) 0
#endif

static __always_inline void sched_emit(u32 pid, u32 tid, u64 from_ns, u64 to_ns,
				       u32 state, u32 waker_tid, u64 stack_id)
{
	struct cct_event *event = cct_reserve(CCT_KIND_SCHED);

	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = from_ns;
	event->pid = pid;
	event->tid = tid;
	event->kind = CCT_KIND_SCHED;
	event->what = state;
	event->flags = 1;
	event->dur_ns = to_ns - from_ns;
	event->sched.waker_tid = waker_tid;
	event->stack_id = stack_id;
	cct_submit(event);
}

static __always_inline void sched_leaves(struct cct_thread *thread, u64 now_ns,
					 u64 state)
{
	if (thread->off_ns)
		cct_lose(CCT_KIND_SCHED, CCT_LOST_RETURN);
	thread->seen = 1;
	thread->off_ns = now_ns;
	thread->wake_ns = 0;
	thread->waker_tid = 0;
	thread->pid = bpf_get_current_pid_tgid() >> 32;
#ifdef CCT_WAIT_STACKS
	thread->stack_id = 0;
#endif
	if (state & CCT_TASK_INTERRUPTIBLE)
		thread->off_state = CCT_SCHED_BLOCKED;
	else if (state & CCT_TASK_UNINTERRUPTIBLE)
		thread->off_state = CCT_SCHED_IO;
	else
		thread->off_state =
		    state & 0xff ? CCT_SCHED_BLOCKED : CCT_SCHED_RUNNABLE;
}

static __always_inline void sched_returns(struct cct_thread *thread, u32 tid,
					  u64 now_ns)
{
	u64 off_ns = thread->off_ns, wake_ns = thread->wake_ns;
	u64 stack_id = SCHED_STACK(thread);

	if (!off_ns) {
		/* A new thread comes for the first time, and was never away. */
		if (thread->seen)
			cct_lose(CCT_KIND_SCHED, CCT_LOST_ENTRY);
		return;
	}
	thread->off_ns = 0;
	if (thread->off_state == CCT_SCHED_RUNNABLE || wake_ns < off_ns) {
		sched_emit(thread->pid, tid, off_ns, now_ns, thread->off_state, 0,
			   stack_id);
		return;
	}
	sched_emit(thread->pid, tid, off_ns, wake_ns, thread->off_state,
		   thread->waker_tid, stack_id);
	sched_emit(thread->pid, tid, wake_ns, now_ns, CCT_SCHED_RUNNABLE,
		   thread->waker_tid, stack_id);
}

#ifdef CCT_WAIT_STACKS
/* The kernel's part of stacks, by the kernel's own number. */
BPF_STACK_TRACE(wait_kernels, 8192);
/* What on_sched_switch goes on in. */
BPF_PROG_ARRAY(wait_stack_programs, STACK_PROGRAMS);
/* As of Linux 5.15; BCC has no names for them. */
static void *(*sched_current_task)(void) = (void *)158; /* bpf_get_current_task_btf */
static void *(*sched_user_registers)(void *) = (void *)175; /* bpf_task_pt_regs */

/* Where a thread waits: in the kernel, and where the program has called that. */
static __always_inline struct cct_thread *sched_stack_start(void *ctx,
							    struct stack_start *start)
{
	struct cct_thread *thread = cct_current();
	struct pt_regs registers;

	if (!thread ||
	    bpf_probe_read_kernel(&registers, sizeof(registers),
				  sched_user_registers(sched_current_task())))
		return NULL;
	start->address = registers.ip;
	start->sp = registers.sp;
	start->fp = registers.bp;
	start->pid_tgid = bpf_get_current_pid_tgid();
	start->family = CCT_KIND_SCHED;
	start->kernel = wait_kernels.get_stackid(ctx, 0);
	if (start->kernel < 0)
		start->kernel = -1;
	return thread;
}

int on_wait_stack(void *ctx)
{
	struct stack_start start = {};
	struct cct_thread *thread = sched_stack_start(ctx, &start);

	if (!thread)
		return 0;
	if (start.kernel < 0)
		cct_lose(CCT_KIND_SCHED, CCT_LOST_STACK_MAP);
	thread->stack_id = stack_known(&start);
	if (!thread->stack_id)
		wait_stack_programs.call(ctx, STACK_NOTE);
	return 0;
}

int on_wait_stack_note(void *ctx)
{
	struct stack_start start = {};

	if (sched_stack_start(ctx, &start))
		stack_note(&start);
	wait_stack_programs.call(ctx, STACK_WRITE);
	return 0;
}

int on_wait_stack_write(void *ctx)
{
	struct stack_start start = {};
	struct cct_thread *thread = sched_stack_start(ctx, &start);

	if (thread)
		thread->stack_id = stack_write(&start);
	return 0;
}
#endif

/* Runs in the thread that leaves the CPU. */
int on_sched_switch(void *ctx)
{
	u32 prev = TP_FIELD(ctx, u32, TP_sched_switch_prev_pid);
	u32 next = TP_FIELD(ctx, u32, TP_sched_switch_next_pid);
	u64 state = TP_FIELD(ctx, u64, TP_sched_switch_prev_state);
	struct cct_thread *thread;
	u64 now_ns = 0;
#ifdef CCT_WAIT_STACKS
	bool waits = false;
#endif

	thread = prev ? traced.lookup(&prev) : NULL;
	if (thread && !thread->spawner) {
		now_ns = bpf_ktime_get_ns();
		sched_leaves(thread, now_ns, state);
#ifdef CCT_WAIT_STACKS
		waits = state & (CCT_TASK_INTERRUPTIBLE | CCT_TASK_UNINTERRUPTIBLE);
#endif
	}
	thread = next ? traced.lookup(&next) : NULL;
	if (thread && !thread->spawner)
		sched_returns(thread, next, now_ns ? now_ns : bpf_ktime_get_ns());
#ifdef CCT_WAIT_STACKS
	if (waits)
		wait_stack_programs.call(ctx, STACK_HASH);
#endif
	return 0;
}

/* Runs in the thread that wakes another. */
int on_sched_waking(void *ctx)
{
	u32 tid = TP_FIELD(ctx, u32, TP_sched_waking_pid);
	struct cct_thread *thread = traced.lookup(&tid);

	if (!thread || thread->wake_ns)
		return 0;
	thread->waker_tid = (u32)bpf_get_current_pid_tgid();
	thread->wake_ns = bpf_ktime_get_ns();
	return 0;
}
