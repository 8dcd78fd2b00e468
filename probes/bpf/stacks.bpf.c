/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * stacks: who called, natively by frame pointers and in Python by the interpreter's own
 * frames.
 *
 * Attach points: none of its own; cuda and sched have it walk.
 * Requires:      Linux 5.15 (bpf_task_pt_regs, for waits), CPython 3.10 to 3.14.
 * Per-event cost: a read for each Python frame, two for each native one; a record once
 *                for each distinct stack.
 * Blind spots:   native code built without frame pointers, whose callers are not seen;
 *                Python code run where other code was, from the same callers, which
 *                goes by the first one's name;
 *                interpreters that are not the process's first.
 *
 * A stack is walked and hashed; only one whose hash was not seen before is walked again
 * to be written down, with the code objects in it that are new. So nothing is kept
 * between the two, and a thread that is preempted here, or leaves the CPU, disturbs no
 * other. All that is read is the engine's word: a walk ends at whatever makes no sense.
 *
 * How a return address is told from other data: the instruction before it is a call.
 * Where a function has no frame pointer the chain leads anywhere, and this ends it.
 */

#define STACK_PROCESSES 16384
#define STACK_SEEN 65536
#define STACK_MAX_FRAME_BYTES (64ULL << 20)
/* The page where the kernel's trampolines lie (xol_add_vma, kernel/events/uprobes.c):
 * what a function returns to whose return is probed. The recorder leaves them out. */
#define STACK_TRAMPOLINES 0x7fffffff0000ULL

BPF_RINGBUF_OUTPUT(stack_ring, CCT_STACK_RING_PAGES);
/* By thread-group id; written at fork and exec, completed by the recorder. */
BPF_F_TABLE("lru_hash", u32, struct cct_stack_process, stack_processes, STACK_PROCESSES,
	    0);
BPF_F_TABLE("lru_hash", u64, u8, stack_seen, STACK_SEEN, 0);

BPF_ARRAY(stack_blank, struct cct_stack_process, 1);
/* When each process's program began, by thread-group id. The recorder only reads it:
 * what it has put down of a program that was replaced meanwhile is known by this, and
 * not used. */
BPF_F_TABLE("lru_hash", u32, u64, stack_images, STACK_PROCESSES, 0);

/* Where a walk begins. */
struct stack_start {
	u64 address; /* the innermost frame's */
	u64 sp;      /* no frame lies below */
	u64 fp;
	u64 pid_tgid;
	u64 image;  /* of the program; stack_process_of sets it */
	u32 family; /* enum cct_kind, whose losses these are */
	s32 kernel; /* the kernel's number of its part; < 0: none */
};

/* What a walk has found so far. */
struct stack_walk {
	u64 hash;
	u32 natives;
	u32 pythons;
	u32 flags; /* enum cct_stack_flag */
};

/* stack_python.bpf.c */
static __always_inline u64 stack_thread_state(const struct cct_stack_process *process,
					      const struct stack_start *start,
					      u32 *flags);
static __always_inline void stack_walk_python(struct stack_walk *walk,
					      const struct cct_stack_process *process,
					      u64 state, struct cct_stack *into);
static __always_inline void stack_note_codes(const struct cct_stack_process *process,
					     u32 pid, u64 state);

/* The finalizer's step of SplitMix64: each bit of the value changes half the hash. */
static __always_inline void stack_mix(struct stack_walk *walk, u64 value)
{
	u64 hash = walk->hash ^ value;

	hash *= 0xbf58476d1ce4e5b9ULL;
	walk->hash = hash ^ hash >> 29;
}

/* What the recorder knows of a process's program; NULL: nothing, or it was another
 * one's.
 */
static __always_inline struct cct_stack_process *stack_program(u32 pid, u64 *image)
{
	struct cct_stack_process *process = stack_processes.lookup(&pid);
	u64 *began = stack_images.lookup(&pid);

	*image = began ? *began : 0;
	return process && process->image == *image ? process : NULL;
}

/* A process begins to run a program, of which that is known. */
static __always_inline void stack_begin(u32 pid, const struct cct_stack_process *known)
{
	struct cct_stack_process *process;
	u64 now_ns = bpf_ktime_get_ns();

	stack_images.update(&pid, &now_ns);
	stack_processes.update(&pid, (void *)known);
	process = stack_processes.lookup(&pid);
	if (process)
		process->image = now_ns;
}

/* A process has been made: it runs what its maker does, until it execs. */
static __always_inline void stack_process_made(u32 parent, u32 child)
{
	u32 zero = 0;
	u64 image;
	struct cct_stack_process *process = stack_program(parent, &image);

	if (!process)
		process = stack_blank.lookup(&zero);
	if (process)
		stack_begin(child, process);
}

/* A program has taken another one's place: nothing is known of it. */
static __always_inline void stack_process_execed(u32 pid)
{
	u32 zero = 0;
	struct cct_stack_process *process = stack_blank.lookup(&zero);

	if (process)
		stack_begin(pid, process);
}

/* 1 for 0, else 0, without a branch: a verifier would follow each of them apart. The
 * compiler, which would make branches of it, must not know what the value is. */
static __always_inline u64 stack_is_zero(u64 value)
{
	asm volatile("" : "+r"(value));
	return (value - 1) >> 63;
}

/* The byte that lies so far below the end of eight. */
#define STACK_BYTE(eight, below) ((eight) >> (64 - 8 * (below)) & 0xff)
#define STACK_IS_INDIRECT(eight, below)                                                \
	stack_is_zero((STACK_BYTE(eight, below) ^ 0xff) |                              \
		      ((STACK_BYTE(eight, (below) - 1) & 0x38) ^ 0x10))

/* 1 for what a helper returns that has failed, else 0, without a branch. */
static __always_inline u64 stack_failed(u64 result)
{
	asm volatile("" : "+r"(result));
	return result >> 63;
}

/* Whether a call ends just before an address: E8 with a distance, or FF /2 with what it
 * takes (Intel SDM, volume 2, CALL); or whether it is a trampoline of the kernel's.
 * failed: 1 where that could not be read. */
static __always_inline bool stack_is_return(u64 address, u64 *failed)
{
	u64 eight = 0;

	*failed = stack_failed(
	    bpf_probe_read_user(&eight, sizeof(eight), (void *)(address - 8)));
	return stack_is_zero(STACK_BYTE(eight, 5) ^ 0xe8) |
	       STACK_IS_INDIRECT(eight, 2) | STACK_IS_INDIRECT(eight, 3) |
	       STACK_IS_INDIRECT(eight, 4) | STACK_IS_INDIRECT(eight, 6) |
	       STACK_IS_INDIRECT(eight, 7) |
	       stack_is_zero(address >> 16 ^ STACK_TRAMPOLINES >> 16);
}

/* Native frames, from the innermost to the interpreter or to where the chain ends. */
static __always_inline void stack_walk_native(struct stack_walk *walk,
					      const struct stack_start *start,
					      const struct cct_stack_process *process,
					      struct cct_stack *into)
{
	u64 address = start->address, above = start->sp, fp = start->fp;
	u64 text_start = process ? process->text_start : 0;
	u64 text_bytes = process ? process->text_bytes : 0;
	u64 frame[2], failed;
	u32 count = 0;

	for (u32 i = 0; i < CCT_STACK_NATIVE; i++) {
		if (address - text_start < text_bytes)
			goto done;
		stack_mix(walk, address);
		if (into)
			into->native[i] = address;
		count = i + 1;
		/* Callers' frames lie above, and not far. */
		if (fp - above - 1 >= STACK_MAX_FRAME_BYTES)
			goto done;
		if (bpf_probe_read_user(frame, sizeof(frame), (void *)fp)) {
			walk->flags |= CCT_STACK_UNREADABLE;
			goto done;
		}
		above = fp;
		fp = frame[0];
		address = frame[1];
		if (!stack_is_return(address, &failed)) {
			/* Garbage is no address as a rule; a frame leads on to another.
			 */
			fp -= above + 1;
			failed &= stack_failed((fp - STACK_MAX_FRAME_BYTES) & ~fp);
			walk->flags |= failed * CCT_STACK_UNREADABLE;
			goto done;
		}
	}
	walk->flags |= CCT_STACK_CUT;
done:
	walk->natives = count;
}

static __always_inline void stack_walk_all(struct stack_walk *walk,
					   const struct stack_start *start,
					   const struct cct_stack_process *process,
					   u64 state, struct cct_stack *into)
{
	walk->hash = start->pid_tgid >> 32;
	stack_mix(walk, start->image);
	stack_mix(walk, (u32)start->kernel);
	stack_walk_native(walk, start, process, into);
	/* So that no native frame can be taken for a Python one. */
	stack_mix(walk, walk->natives);
	if (state)
		stack_walk_python(walk, process, state, into);
	/* A BIGINT is signed, and 0 is none. */
	walk->hash = (walk->hash ^ walk->hash >> 32) & ~(1ULL << 63) | 1;
}

/* The process that a walk is of, and its thread's state (0: none of Python's). */
static __always_inline struct cct_stack_process *
stack_process_of(struct stack_start *start, u64 *state, u32 *flags)
{
	struct cct_stack_process *process =
	    stack_program(start->pid_tgid >> 32, &start->image);

	*state = process && process->threads_head
		     ? stack_thread_state(process, start, flags)
		     : 0;
	return process;
}

/* Three programs, each of which goes on in the next where the stack is new: a verifier
 * follows the loops of each by themselves. */
enum stack_program { STACK_HASH = 0, STACK_NOTE, STACK_WRITE, STACK_PROGRAMS };

/* First: the number of the current thread's stack; 0: it is a new one. */
static __always_inline u64 stack_known(struct stack_start *start)
{
	struct stack_walk walk = {};
	struct cct_stack_process *process;
	u64 state;

	process = stack_process_of(start, &state, &walk.flags);
	stack_walk_all(&walk, start, process, state, NULL);
	return stack_seen.lookup(&walk.hash) ? walk.hash : 0;
}

/* Second: its code objects, so that they are there before it is. */
static __always_inline void stack_note(struct stack_start *start)
{
	u32 flags = 0; /* those of the third program count */
	u64 state;
	struct cct_stack_process *process = stack_process_of(start, &state, &flags);

	if (process && state)
		stack_note_codes(process, start->pid_tgid >> 32, state);
}

/* Third: the stack itself. Returns its number; 0: it could not be kept. */
static __always_inline u64 stack_write(struct stack_start *start)
{
	struct cct_stack *stack = stack_ring.ringbuf_reserve(sizeof(struct cct_stack));
	struct cct_stack_process *process;
	struct stack_walk walk = {};
	u64 state;
	u8 one = 1;

	if (!stack) {
		cct_lose(start->family, CCT_LOST_STACK_RING);
		return 0;
	}
	process = stack_process_of(start, &state, &walk.flags);
	stack_walk_all(&walk, start, process, state, stack);
	stack->id = walk.hash;
	stack->image = start->image;
	stack->pid = start->pid_tgid >> 32;
	stack->tid = (u32)start->pid_tgid;
	stack->kernel = start->kernel;
	stack->natives = walk.natives;
	stack->pythons = walk.pythons;
	stack->flags = walk.flags;
	stack->family = start->family;
	stack->looked_at = process ? process->looked_at : 0;
	stack->pad = 0;
	stack_ring.ringbuf_submit(stack, CCT_NO_WAKEUP);
	stack_seen.update(&walk.hash, &one);
	return walk.hash;
}
