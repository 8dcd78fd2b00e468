/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * cuda: calls of the CUDA driver, the CUDA runtime and NCCL.
 *
 * Attach points: entry and return of every function of cuda_symbols.toml, in each copy
 * of its library; two programs serve them all, the cookie says which. Requires:
 * Linux 5.15 (cookies); 6.6 attaches a library at once (uprobe_multi). Per-event cost:
 * an entry and a return probe, a hash lookup in each, one record. Blind spots:   a call
 * made without its library's code (an internal shortcut, a pointer to something else);
 * work that a graph replays; calls on a second stack inside a call (a signal handler on
 * its own stack).
 *
 * A call is one record, written when it returns. Until then it is a frame of its
 * thread. Frames are told apart by the stack pointer: a return finds the frame that was
 * entered eight bytes (the return address) below; frames further down were left some
 * other way, by longjmp, and are dropped and counted.
 */

#define CUDA_MAX_LAUNCHES 16384
#define CUDA_HISTOGRAM 40
#define CUDA_NO_STREAM (~0ULL)
/* Slot CCT_CONFIG_LAUNCHES of `config`: enum cct_launch_mode, and above it the window.
 */
#define CUDA_LAUNCH_MODE(value) ((value) & 0xff)
#define CUDA_LAUNCH_WINDOW(value) ((u16)((value) >> 8))

/* Launches counted instead of recorded; cctrace/record/bpf/cuda/launches.py reads them.
 * The recorder counts windows up, waits for programs that run, and takes the old one.
 */
struct cuda_launch_key {
	u32 tid;
	u16 site;
	u16 window;
	u64 stream; /* CUDA_NO_STREAM: not known */
};

struct cuda_launch_total {
	u64 calls;
	u64 total_ns;
	u64 max_ns;
	u64 first_ns; /* start of the first of them */
	u32 pid;
	u32 pad;
	u32 histogram[CUDA_HISTOGRAM]; /* by floor(log2(dur_ns)) */
};

BPF_F_TABLE("hash", struct cuda_launch_key, struct cuda_launch_total, launches,
	    CUDA_MAX_LAUNCHES, BPF_F_NO_PREALLOC);

/* Calls in flight are kept apart from `traced`: every probe needs them, and an array
 * that is looked up by the thread's number costs a third of a hash. A thread has the
 * first slot free of the CUDA_WAYS from its number on, for as long as it lives. */
#define CUDA_SLOTS 16384 /* a power of two */
#define CUDA_WAYS 8
#define CUDA_MAX_DEPTH 8 /* a power of two */

/* A call that has not returned. */
struct cuda_frame {
	u64 ts_ns;
	u64 sp; /* at entry: tells stale frames from callers */
	u64 cookie;
	u64 size_bytes;
	u64 stream;
	u64 dst;
	u64 src;
	u64 stack_id; /* 0: none */
	u8 detail;
	u8 flags;
	u8 pad[6];
};

/* cctrace/record/bpf/cuda/frames.py reads these. */
struct cuda_thread {
	u32 tid; /* 0: the slot is free, or not yet taken */
	u32 pid;
	u16 depth;     /* frames in use */
	u16 inherited; /* calls of its maker that a forked process returns from */
	u32 slot;      /* its own number */
	struct cuda_frame frames[CUDA_MAX_DEPTH];
};

BPF_F_TABLE("array", u32, struct cuda_thread, cuda_threads, CUDA_SLOTS, BPF_F_MMAPABLE);
/* Who has which slot: two threads may ask for one at once, and a hash lets one in. */
BPF_F_TABLE("hash", u32, u32, cuda_owners, CUDA_SLOTS, 0);

/* Frame number `depth`. The verifier wants to see the mask, and the compiler, which
 * knows that the number is small, must not take it away. */
static __always_inline struct cuda_frame *cuda_frame_at(struct cuda_thread *thread,
							u64 depth)
{
	asm volatile("" : "+r"(depth));
	return &thread->frames[depth & (CUDA_MAX_DEPTH - 1)];
}

static __always_inline struct cuda_thread *cuda_slot(u32 tid, u32 way)
{
	u32 slot = (tid + way) & (CUDA_SLOTS - 1);

	return cuda_threads.lookup(&slot);
}

/* The slot that a thread has; NULL: none. */
static __always_inline struct cuda_thread *cuda_find(u32 tid)
{
	for (u32 way = 0; way < CUDA_WAYS; way++) {
		struct cuda_thread *thread = cuda_slot(tid, way);

		if (thread && thread->tid == tid)
			return thread;
	}
	return NULL;
}

static __always_inline bool cuda_inside(u32 tid)
{
	struct cuda_thread *thread = cuda_find(tid);

	return thread && thread->depth;
}

/* Give a thread that has none a slot. */
static __always_inline struct cuda_thread *cuda_claim(u32 tid, u32 pid, u32 inherited)
{
	for (u32 way = 0; way < CUDA_WAYS; way++) {
		u32 slot = (tid + way) & (CUDA_SLOTS - 1);
		struct cuda_thread *thread = cuda_slot(tid, way);

		if (!thread || thread->tid || cuda_owners.insert(&slot, &tid))
			continue;
		thread->pid = pid;
		thread->depth = 0;
		thread->inherited = inherited;
		thread->slot = slot;
		thread->tid = tid;
		return thread;
	}
	cct_lose(CCT_KIND_CUDA, CCT_LOST_MAP_FULL);
	return NULL;
}

/* The current thread's slot; NULL: it is not traced, or there is no room for it. */
static __always_inline struct cuda_thread *cuda_current(u64 pid_tgid)
{
	u32 tid = (u32)pid_tgid;
	struct cuda_thread *thread = cuda_slot(tid, 0);

	if (thread && thread->tid == tid)
		return thread;
	thread = cuda_find(tid);
	if (thread)
		return thread;
	if (!cct_current() && !cct_adopt(pid_tgid))
		return NULL;
	return cuda_claim(tid, pid_tgid >> 32, 0);
}

/* Whether each launch is to be accounted for. In the other modes their probes come and
 * go while threads are in launches, whose ends or beginnings are then not seen. */
static __always_inline bool cuda_promises(u64 cookie)
{
	return !CUDA_IS_LAUNCH(cookie) ||
	       CUDA_LAUNCH_MODE(cct_config(CCT_CONFIG_LAUNCHES)) == CCT_LAUNCHES_FULL;
}

/* Whether the function at whose entry we are was jumped to by one that is probed: it
 * then returns to the kernel's trampoline, which lies where no code of the program can,
 * in the last page below TASK_SIZE (xol_add_vma, kernel/events/uprobes.c). */
#define CUDA_TRAMPOLINES 0x7fffffff0000ULL

static __always_inline bool cuda_was_jumped_to(u64 sp)
{
	u64 returns_to = 0;

	return !bpf_probe_read_user(&returns_to, sizeof(returns_to), (void *)sp) &&
	       returns_to >= CUDA_TRAMPOLINES;
}

/* Drop frames that a call entered at sp proves left; returns how many remain. */
static __always_inline u32 cuda_settle(struct cuda_thread *thread, u64 sp, u64 cookie)
{
	u32 depth = thread->depth;

	for (u32 i = 0; i < CUDA_MAX_DEPTH; i++) {
		u32 top = depth - 1;

		if (top >= CUDA_MAX_DEPTH || cuda_frame_at(thread, top)->sp > sp)
			break;
		if (cuda_frame_at(thread, top)->sp == sp &&
		    cuda_frame_at(thread, top)->cookie != cookie &&
		    cuda_was_jumped_to(sp))
			break;
		depth = top;
		if (cuda_promises(cuda_frame_at(thread, top)->cookie))
			cct_lose(CCT_KIND_CUDA, CCT_LOST_RETURN);
	}
	return depth;
}

#ifdef CCT_CALL_STACKS
/* cuda_stacks.bpf.c: what on_call_entry goes on in. */
BPF_PROG_ARRAY(call_stack_programs, STACK_PROGRAMS);
#endif

int on_call_entry(struct pt_regs *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cuda_thread *thread = cuda_current(pid_tgid);
	struct cuda_call call = {.detail = CCT_NO_COPY_KIND};
	struct cuda_frame *frame;
	u64 cookie, sp;
	u32 depth;

	if (!thread)
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	sp = PT_REGS_SP(ctx);
	thread->pid = pid_tgid >> 32;
	depth = thread->depth;
	if (depth)
		depth = cuda_settle(thread, sp, cookie);
	if (depth >= CUDA_MAX_DEPTH) {
		thread->depth = CUDA_MAX_DEPTH;
		cct_lose(CCT_KIND_CUDA, CCT_LOST_DEPTH);
		return 0;
	}
	cuda_read_call(ctx, cookie, &call);
	if (call.unreadable)
		cct_lose(CCT_KIND_CUDA, CCT_LOST_READ);
	frame = cuda_frame_at(thread, depth);
	frame->sp = sp;
	frame->cookie = cookie;
	frame->size_bytes = call.size_bytes;
	frame->stream = call.stream;
	frame->dst = call.dst;
	frame->src = call.src;
	frame->detail = call.detail;
	frame->flags = call.flags;
	frame->stack_id = 0;
	thread->depth = depth + 1;
	/* Last, so that what came before is not counted as the call's time. */
	frame->ts_ns = bpf_ktime_get_ns();
#ifdef CCT_CALL_STACKS
	if (!depth && CUDA_IS_CROSSING(cookie) && cuda_promises(cookie))
		call_stack_programs.call(ctx, STACK_HASH);
#endif
	return 0;
}

/* Drop the frames above number `keep`: their calls were left some other way. */
static __always_inline void cuda_drop(struct cuda_thread *thread, u32 keep)
{
	u32 depth = thread->depth;

	for (u32 i = 0; i < CUDA_MAX_DEPTH; i++) {
		if (i >= keep && i < depth &&
		    cuda_promises(cuda_frame_at(thread, i)->cookie))
			cct_lose(CCT_KIND_CUDA, CCT_LOST_RETURN);
	}
	thread->depth = keep;
}

/* A return that the frame on top is not of: find its own, drop what lies deeper.
 * Returns its index; CUDA_MAX_DEPTH: it has none. */
static __always_inline u32 cuda_search(struct cuda_thread *thread, u64 sp, u64 cookie)
{
	u32 depth = thread->depth, keep = depth;

	for (u32 i = 0; i < CUDA_MAX_DEPTH; i++) {
		u32 at = depth - 1 - i;

		if (at >= CUDA_MAX_DEPTH || cuda_frame_at(thread, at)->sp > sp)
			break;
		if (cuda_frame_at(thread, at)->sp < sp) {
			keep = at;
		} else if (cuda_frame_at(thread, at)->cookie == cookie) {
			cuda_drop(thread, at + 1);
			thread->depth = at;
			return at;
		}
	}
	/* One that was too deep for a frame has been counted when it was entered. */
	if (keep == depth && depth >= CUDA_MAX_DEPTH)
		return CUDA_MAX_DEPTH;
	cuda_drop(thread, keep);
	/* One in a process forked inside a call is its parent's. */
	if (!keep && thread->inherited)
		thread->inherited--;
	else if (cuda_promises(cookie) && !cct_config(CCT_CONFIG_ATTACHING))
		cct_lose(CCT_KIND_CUDA, CCT_LOST_ENTRY);
	return CUDA_MAX_DEPTH;
}

/* The address and size that an allocation has stored. */
static __always_inline void cuda_read_result(struct cuda_frame *frame)
{
	u64 out = frame->dst, pitch = 0, cookie = frame->cookie;
	bool readable;

	frame->dst = 0;
	readable = !bpf_probe_read_user(&frame->dst, sizeof(frame->dst), (void *)out);
	if (readable)
		frame->flags |= CCT_CUDA_HAS_ADDRESS;
	if (CUDA_SHAPE(cookie) == CUDA_SHAPE_PITCHED ||
	    CUDA_SHAPE(cookie) == CUDA_SHAPE_PITCHED_3D) {
		if (bpf_probe_read_user(&pitch, sizeof(pitch), (void *)frame->src)) {
			readable = false;
		} else {
			frame->size_bytes *= pitch;
			frame->flags |= CCT_CUDA_HAS_SIZE;
		}
		frame->src = 0;
	}
	if (!readable)
		cct_lose(CCT_KIND_CUDA, CCT_LOST_READ);
}

static __always_inline u32 cuda_log2(u64 value)
{
	u32 result = 0;

	if (value >> 32) {
		result = 32;
		value >>= 32;
	}
	if (value >> 16) {
		result += 16;
		value >>= 16;
	}
	if (value >> 8) {
		result += 8;
		value >>= 8;
	}
	if (value >> 4) {
		result += 4;
		value >>= 4;
	}
	if (value >> 2) {
		result += 2;
		value >>= 2;
	}
	result += value >> 1;
	return result < CUDA_HISTOGRAM ? result : CUDA_HISTOGRAM - 1;
}

/* Count a call in the map instead of writing a record. */
static __always_inline void cuda_aggregate(const struct cuda_frame *frame, u32 pid,
					   u32 tid, u64 dur_ns, u16 window)
{
	struct cuda_launch_key key = {.tid = tid,
				      .site = CUDA_SITE(frame->cookie),
				      .window = window,
				      .stream = frame->flags & CCT_CUDA_HAS_STREAM
						    ? frame->stream
						    : CUDA_NO_STREAM};
	struct cuda_launch_total *total = launches.lookup(&key);
	u64 slot = cuda_log2(dur_ns);

	if (!total) {
		struct cuda_launch_total fresh = {.first_ns = frame->ts_ns, .pid = pid};

		launches.update(&key, &fresh);
		total = launches.lookup(&key);
		if (!total) {
			cct_lose(CCT_KIND_CUDA, CCT_LOST_MAP_FULL);
			return;
		}
	}
	total->calls++;
	total->total_ns += dur_ns;
	if (dur_ns > total->max_ns)
		total->max_ns = dur_ns;
	/* The compiler knows that it is small; the verifier must see it. */
	asm volatile("" : "+r"(slot));
	if (slot < CUDA_HISTOGRAM)
		total->histogram[slot]++;
}

static __always_inline void cuda_emit(const struct cuda_frame *frame, u32 pid, u32 tid,
				      u32 depth, u64 dur_ns, s16 result)
{
	struct cct_event *event = cct_reserve(CCT_KIND_CUDA);

	if (!event)
		return;
	event->ts_ns = frame->ts_ns;
	event->pid = pid;
	event->tid = tid;
	event->kind = CCT_KIND_CUDA;
	event->depth = depth;
	event->what = CUDA_SITE(frame->cookie);
	event->result = result;
	event->detail = frame->detail;
	event->flags = frame->flags;
	event->dur_ns = dur_ns;
	event->stack_id = frame->stack_id;
	event->cuda.size_bytes = frame->size_bytes;
	event->cuda.stream = frame->stream;
	event->cuda.dst = frame->dst;
	event->cuda.src = frame->src;
	cct_submit(event);
}

int on_call_return(struct pt_regs *ctx)
{
	u64 now_ns = bpf_ktime_get_ns();
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cuda_thread *thread = cuda_current(pid_tgid);
	struct cuda_frame *frame;
	u64 sp, launches_as = 0;
	s16 result;
	u32 top;

	if (!thread)
		return 0;
	sp = PT_REGS_SP(ctx) - 8; /* the return address is gone */
	top = thread->depth - 1;
	/* The place tells whose return it is, but for functions that jump to others. */
	if (top < CUDA_MAX_DEPTH && cuda_frame_at(thread, top)->sp == sp &&
	    (!top || cuda_frame_at(thread, top - 1)->sp != sp))
		thread->depth = top;
	else
		top = cuda_search(thread, sp, bpf_get_attach_cookie(ctx));
	if (top >= CUDA_MAX_DEPTH)
		return 0;
	frame = cuda_frame_at(thread, top);
	result = (s16)PT_REGS_RC(ctx);
	if (CUDA_HAS_OUT(frame->cookie)) {
		if (!result)
			cuda_read_result(frame);
		else
			frame->dst = frame->src = 0;
	}
	if (CUDA_IS_LAUNCH(frame->cookie))
		launches_as = cct_config(CCT_CONFIG_LAUNCHES);
	if (CUDA_LAUNCH_MODE(launches_as) == CCT_LAUNCHES_AGGREGATE)
		cuda_aggregate(frame, pid_tgid >> 32, (u32)pid_tgid,
			       now_ns - frame->ts_ns, CUDA_LAUNCH_WINDOW(launches_as));
	else
		cuda_emit(frame, pid_tgid >> 32, (u32)pid_tgid, top,
			  now_ns - frame->ts_ns, result);
	return 0;
}

/* A thread has been made; a process forked inside calls returns from them as well. */
static __always_inline void cuda_thread_made(u32 tid, u32 child)
{
	struct cuda_thread *thread = cuda_find(tid);

	if (thread && thread->depth)
		cuda_claim(child, 0, thread->depth);
}

/* A thread ends, or its program does: record the calls that it is still in. Written
 * with few branches: a verifier follows each through each round of the loop. */
static __always_inline void cuda_thread_ended(u32 tid)
{
	struct cuda_thread *thread = cuda_find(tid);
	struct cct_event event = {.tid = tid, .kind = CCT_KIND_CUDA};
	struct cuda_frame *frame;
	u32 slot;

	if (!thread)
		return;
	event.pid = thread->pid;
	for (u32 i = 0; i < CUDA_MAX_DEPTH; i++) {
		if (i >= thread->depth)
			break;
		frame = cuda_frame_at(thread, i);
		event.ts_ns = frame->ts_ns;
		event.depth = i;
		event.what = CUDA_SITE(frame->cookie);
		event.detail = frame->detail;
		event.flags = frame->flags | CCT_CUDA_OPEN;
		event.stack_id = frame->stack_id;
		event.cuda.size_bytes = frame->size_bytes;
		event.cuda.stream = frame->stream;
		/* What an allocation would have stored, it has not. */
		event.cuda.dst = CUDA_HAS_OUT(frame->cookie) ? 0 : frame->dst;
		event.cuda.src = CUDA_HAS_OUT(frame->cookie) ? 0 : frame->src;
		if (ring.ringbuf_output(&event, sizeof(event), CCT_NO_WAKEUP))
			cct_lose(CCT_KIND_CUDA, CCT_LOST_RING);
	}
	thread->depth = 0;
	thread->tid = 0;
	slot = thread->slot;
	cuda_owners.delete(&slot);
}
