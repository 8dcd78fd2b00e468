/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * cuda_stacks: the stacks of CUDA calls.
 *
 * Attach points: none; on_call_entry of cuda.bpf.c goes on here.
 * Requires:      stacks.bpf.c before, cuda.bpf.c.
 * Per-event cost: a walk (stacks.bpf.c) before the call begins, which is not counted as
 *                its time.
 * Blind spots:   calls inside other probed calls, and launches that are not recorded in
 *                full, have no stack.
 */

/* Where the stack of the call that has just been entered begins; NULL: not to be told.
 */
static __always_inline struct cuda_frame *cuda_stack_start(struct pt_regs *ctx,
							   struct stack_start *start)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cuda_thread *thread = cuda_find((u32)pid_tgid);
	u32 top;

	start->sp = PT_REGS_SP(ctx);
	start->fp = PT_REGS_FP(ctx);
	start->pid_tgid = pid_tgid;
	start->family = CCT_KIND_CUDA;
	start->kernel = -1;
	/* The function has no frame of its own yet: it returns to what lies on top of
	 * the stack. What the kernel's own walk leaves out before Linux 6.12. */
	if (!thread || bpf_probe_read_user(&start->address, sizeof(start->address),
					   (void *)start->sp))
		return NULL;
	top = thread->depth - 1;
	return top < CUDA_MAX_DEPTH ? cuda_frame_at(thread, top) : NULL;
}

int on_call_stack(struct pt_regs *ctx)
{
	struct stack_start start = {};
	struct cuda_frame *frame = cuda_stack_start(ctx, &start);

	if (!frame)
		return 0;
	frame->stack_id = stack_known(&start);
	if (!frame->stack_id)
		call_stack_programs.call(ctx, STACK_NOTE);
	frame->ts_ns = bpf_ktime_get_ns();
	return 0;
}

int on_call_stack_note(struct pt_regs *ctx)
{
	struct stack_start start = {};

	if (cuda_stack_start(ctx, &start))
		stack_note(&start);
	call_stack_programs.call(ctx, STACK_WRITE);
	return 0;
}

int on_call_stack_write(struct pt_regs *ctx)
{
	struct stack_start start = {};
	struct cuda_frame *frame = cuda_stack_start(ctx, &start);

	if (!frame)
		return 0;
	frame->stack_id = stack_write(&start);
	frame->ts_ns = bpf_ktime_get_ns();
	return 0;
}
