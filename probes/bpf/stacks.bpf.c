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
#define STACK_THREADS 65536
#define STACK_SEEN 65536
#define STACK_PAGE 4096
#define STACK_MAX_LOOKED_AT 256 /* thread states of one process */
#define STACK_MAX_FRAME_BYTES (64ULL << 20)
/* A thread that is none of Python's is looked for again after so long. */
#define STACK_RECHECK_NS 50000000ULL
/* The page where the kernel's trampolines lie (xol_add_vma, kernel/events/uprobes.c):
 * what a function returns to whose return is probed. The recorder leaves them out. */
#define STACK_TRAMPOLINES 0x7fffffff0000ULL

BPF_RINGBUF_OUTPUT(stack_ring, CCT_STACK_RING_PAGES);
/* By thread-group id; written at fork and exec, completed by the recorder. */
BPF_F_TABLE("lru_hash", u32, struct cct_stack_process, stack_processes, STACK_PROCESSES,
	    0);
BPF_F_TABLE("lru_hash", u64, u8, stack_seen, STACK_SEEN, 0);

/* Code objects, and which of those that lay at one address was written down last. */
struct stack_code_key {
	u64 code;
	u64 image;
};

BPF_RINGBUF_OUTPUT(stack_code_ring, CCT_STACK_RING_PAGES);
BPF_F_TABLE("lru_hash", struct stack_code_key, u64, stack_codes, STACK_SEEN, 0);
BPF_ARRAY(stack_blank, struct cct_stack_process, 1);

/* Where a thread's state was found, by thread id. */
struct stack_thread {
	u64 state;      /* 0: it has none */
	u64 image;      /* of the program it was found in */
	u64 checked_ns; /* when it was looked for */
};

BPF_F_TABLE("lru_hash", u32, struct stack_thread, stack_threads, STACK_THREADS, 0);

/* Where a walk begins. */
struct stack_start {
	u64 address; /* the innermost frame's */
	u64 sp;      /* no frame lies below */
	u64 fp;
	u64 pid_tgid;
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

/* The finalizer's step of SplitMix64: each bit of the value changes half the hash. */
static __always_inline void stack_mix(struct stack_walk *walk, u64 value)
{
	u64 hash = walk->hash ^ value;

	hash *= 0xbf58476d1ce4e5b9ULL;
	walk->hash = hash ^ hash >> 29;
}

/* A process has been made: it runs what its maker does, until it execs. */
static __always_inline void stack_process_made(u32 parent, u32 child)
{
	u32 zero = 0;
	struct cct_stack_process *process = stack_processes.lookup(&parent);

	if (!process)
		process = stack_blank.lookup(&zero);
	if (!process)
		return;
	stack_processes.update(&child, process);
	process = stack_processes.lookup(&child);
	if (process)
		process->image = bpf_ktime_get_ns();
}

/* A program has taken another one's place: nothing is known of it. */
static __always_inline void stack_process_execed(u32 pid)
{
	struct cct_stack_process *process;
	u32 zero = 0;

	process = stack_blank.lookup(&zero);
	if (!process)
		return;
	stack_processes.update(&pid, process);
	process = stack_processes.lookup(&pid);
	if (process)
		process->image = bpf_ktime_get_ns();
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

/* Whether a call ends just before an address: E8 with a distance, or FF /2 with what it
 * takes (Intel SDM, volume 2, CALL); or whether it is a trampoline of the kernel's. */
static __always_inline bool stack_is_return(u64 address)
{
	u64 eight = 0;

	bpf_probe_read_user(&eight, sizeof(eight), (void *)(address - 8));
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
	u64 frame[2];
	u32 count = 0;

	for (u32 i = 0; i < CCT_STACK_NATIVE; i++) {
		if (address - text_start < text_bytes)
			goto done;
		stack_mix(walk, address);
		if (into)
			into->native[i] = address;
		count = i + 1;
		/* Callers' frames lie above, and not far. */
		if (fp - above - 1 >= STACK_MAX_FRAME_BYTES ||
		    bpf_probe_read_user(frame, sizeof(frame), (void *)fp))
			goto done;
		above = fp;
		fp = frame[0];
		address = frame[1];
		if (!stack_is_return(address))
			goto done;
	}
	walk->flags |= CCT_STACK_CUT;
done:
	walk->natives = count;
}

/* The number that a thread's state says whose it is. */
static __always_inline u64 stack_own_number(const struct cct_stack_process *process,
					    u64 pid_tgid)
{
	struct bpf_pidns_info inside = {};

	if (!process->namespace_inode)
		return (u32)pid_tgid;
	/* Of another process namespace: what the program knows itself by. */
	if (bpf_get_ns_current_pid_tgid(process->namespace_device,
					process->namespace_inode, &inside,
					sizeof(inside)))
		return 0;
	return inside.pid;
}

static __always_inline bool stack_is_own(const struct cct_stack_process *process,
					 u64 state, u64 number)
{
	u64 found = 0;
	u32 tid = 0;

	if (bpf_probe_read_user(&found, sizeof(found),
				(void *)(state + process->id_at)))
		return false;
	if (!process->pthread_tid_at)
		return found == number;
	/* 3.10 knows threads by their struct pthread alone, which has the number. */
	return !bpf_probe_read_user(&tid, sizeof(tid),
				    (void *)(found + process->pthread_tid_at)) &&
	       tid == number;
}

/* Whether a state is still in the list: memory that was freed looks like it for long.
 */
static __always_inline bool stack_is_listed(const struct cct_stack_process *process,
					    u64 state)
{
	u64 before = 0, there = 0;

	if (bpf_probe_read_user(&before, sizeof(before),
				(void *)(state + process->prev_at)))
		return false;
	before = before ? before + process->next_at : process->threads_head;
	return !bpf_probe_read_user(&there, sizeof(there), (void *)before) &&
	       there == state;
}

/* The state of the current thread, of a process that runs Python; 0: it has none. */
static __always_inline u64 stack_thread_state(const struct cct_stack_process *process,
					      const struct stack_start *start)
{
	u32 tid = (u32)start->pid_tgid;
	struct stack_thread *known = stack_threads.lookup(&tid);
	struct stack_thread fresh = {.image = process->image};
	u64 number = stack_own_number(process, start->pid_tgid), at = 0;

	if (known && known->image == process->image) {
		if (known->state) {
			if (stack_is_own(process, known->state, number) &&
			    stack_is_listed(process, known->state))
				return known->state;
		} else if (bpf_ktime_get_ns() - known->checked_ns < STACK_RECHECK_NS) {
			return 0;
		}
	}
	if (bpf_probe_read_user(&at, sizeof(at), (void *)process->threads_head))
		at = 0;
	for (u32 i = 0; i < STACK_MAX_LOOKED_AT; i++) {
		if (!at)
			break;
		if (stack_is_own(process, at, number)) {
			fresh.state = at;
			break;
		}
		if (bpf_probe_read_user(&at, sizeof(at),
					(void *)(at + process->next_at)))
			break;
	}
	fresh.checked_ns = bpf_ktime_get_ns();
	stack_threads.update(&tid, &fresh);
	return fresh.state;
}

/* The innermost frame of a thread, where it keeps it. */
static __always_inline u64 stack_python_top(const struct cct_stack_process *process,
					    u64 state)
{
	u64 frame = 0;

	if (bpf_probe_read_user(&frame, sizeof(frame),
				(void *)(state + process->frame_at)))
		return 0;
	if (process->layout == CCT_PYTHON_V_3_11 ||
	    process->layout == CCT_PYTHON_V_3_12) {
		/* By way of the _PyCFrame of the evaluation that runs. */
		if (!frame || bpf_probe_read_user(&frame, sizeof(frame),
						  (void *)(frame + process->cframe_at)))
			return 0;
	}
	return frame;
}

/* One frame: what it runs, where in it, and what called it. False: unreadable. */
static __always_inline bool stack_read_python(u32 layout, u64 frame, u64 *code,
					      u64 *place, u64 *previous)
{
	u64 words[10];

	if (layout == CCT_PYTHON_V_3_10) {
		/* PyFrameObject: f_back at 24, f_code 32, f_lasti 96 */
		if (bpf_probe_read_user(words, 80, (void *)(frame + 24)))
			return false;
		*previous = words[0];
		*code = words[1];
		*place = (u32)words[9];
	} else if (layout == CCT_PYTHON_V_3_11) {
		/* _PyInterpreterFrame: f_code at 32, previous 48, prev_instr 56 */
		if (bpf_probe_read_user(words, 32, (void *)(frame + 32)))
			return false;
		*code = words[0];
		*previous = words[2];
		*place = words[3];
	} else {
		/* _PyInterpreterFrame: f_code (3.13: f_executable, 3.14: with bits of
		 * its own below) at 0, previous 8, prev_instr (3.13: instr_ptr) 56 */
		if (bpf_probe_read_user(words, 64, (void *)frame))
			return false;
		*code = words[0] & ~7ULL;
		*previous = words[1];
		*place = words[7];
	}
	return true;
}

/* Copy an object, whose length is not known, as far as it goes on within this page and,
 * if that can be read, the next. */
static __always_inline void stack_copy(void *into, u32 most, u64 address)
{
	u32 size = STACK_PAGE - (address & (STACK_PAGE - 1));

	if (!bpf_probe_read_user(into, most, (void *)address))
		return;
	if (size > most)
		size = most;
	bpf_probe_read_user(into, size, (void *)address);
}

static __always_inline u64 stack_word(u64 address)
{
	u64 word = 0;

	bpf_probe_read_user(&word, sizeof(word), (void *)address);
	return word;
}

/* What tells code objects apart that come and go at one place: what the hashes of their
 * names and files say. */
static __always_inline u64 stack_mark(const struct cct_stack_process *process, u64 code)
{
	u64 name = stack_word(code + process->code_name_at);
	u64 file = stack_word(code + process->code_file_at);

	return stack_word(name + process->text_hash_at) +
	       3 * stack_word(file + process->text_hash_at);
}

/* Write down a code object that was not, while its frame holds it: it may be gone a
 * moment later, and another one lie there. */
static __always_inline void stack_note_code(const struct cct_stack_process *process,
					    u32 pid, u64 code)
{
	struct stack_code_key key = {.code = code, .image = process->image};
	u64 mark = stack_mark(process, code);
	u64 *known = stack_codes.lookup(&key);
	struct cct_code *noted;

	if (known && *known == mark)
		return;
	noted = stack_code_ring.ringbuf_reserve(sizeof(struct cct_code));
	if (!noted)
		return;
	noted->code = code;
	noted->name = stack_word(code + process->code_name_at);
	noted->file = stack_word(code + process->code_file_at);
	noted->lines = stack_word(code + process->code_lines_at);
	noted->mark = mark;
	noted->image = process->image;
	noted->pid = pid;
	noted->pad = 0;
	stack_copy(noted->code_object, CCT_CODE_HEAD_BYTES, code);
	stack_copy(noted->name_object, CCT_CODE_TEXT_BYTES, noted->name);
	stack_copy(noted->file_object, CCT_CODE_TEXT_BYTES, noted->file);
	stack_copy(noted->lines_object, CCT_CODE_LINES_BYTES, noted->lines);
	stack_code_ring.ringbuf_submit(noted, CCT_NO_WAKEUP);
	stack_codes.update(&key, &mark);
}

static __always_inline void stack_walk_python(struct stack_walk *walk,
					      const struct cct_stack_process *process,
					      u64 state, struct cct_stack *into)
{
	u64 frame = stack_python_top(process, state), code, place, previous;
	u32 layout = process->layout, count = 0;

	for (u32 i = 0; i < CCT_STACK_PYTHON; i++) {
		if (!frame)
			goto done;
		if (!stack_read_python(layout, frame, &code, &place, &previous)) {
			walk->flags |= CCT_STACK_UNREADABLE;
			goto done;
		}
		stack_mix(walk, code);
		stack_mix(walk, place);
		if (into) {
			into->python[i].code = code;
			into->python[i].place = place;
			into->python[i].mark = stack_mark(process, code);
		}
		count = i + 1;
		frame = previous;
	}
	walk->flags |= CCT_STACK_CUT;
done:
	walk->pythons = count;
}

static __always_inline void stack_walk_all(struct stack_walk *walk,
					   const struct stack_start *start,
					   const struct cct_stack_process *process,
					   u64 state, struct cct_stack *into)
{
	walk->hash = start->pid_tgid >> 32;
	stack_mix(walk, process ? process->image : 0);
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
stack_process_of(const struct stack_start *start, u64 *state)
{
	u32 pid = start->pid_tgid >> 32;
	struct cct_stack_process *process = stack_processes.lookup(&pid);

	*state =
	    process && process->threads_head ? stack_thread_state(process, start) : 0;
	return process;
}

/* Three programs, each of which goes on in the next where the stack is new: a verifier
 * follows the loops of each by themselves. */
enum stack_program { STACK_HASH = 0, STACK_NOTE, STACK_WRITE, STACK_PROGRAMS };

/* First: the number of the current thread's stack; 0: it is a new one. */
static __always_inline u64 stack_known(const struct stack_start *start)
{
	struct stack_walk walk = {};
	struct cct_stack_process *process;
	u64 state;

	process = stack_process_of(start, &state);
	stack_walk_all(&walk, start, process, state, NULL);
	return stack_seen.lookup(&walk.hash) ? walk.hash : 0;
}

/* Second: its code objects, so that they are there before it is. */
static __always_inline void stack_note(const struct stack_start *start)
{
	u64 state, frame, code, place, previous;
	struct cct_stack_process *process = stack_process_of(start, &state);

	if (!process || !state)
		return;
	frame = stack_python_top(process, state);
	for (u32 i = 0; i < CCT_STACK_PYTHON; i++) {
		if (!frame || !stack_read_python(process->layout, frame, &code, &place,
						 &previous))
			break;
		stack_note_code(process, start->pid_tgid >> 32, code);
		frame = previous;
	}
}

/* Third: the stack itself. Returns its number; 0: it could not be kept. */
static __always_inline u64 stack_write(const struct stack_start *start)
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
	process = stack_process_of(start, &state);
	stack_walk_all(&walk, start, process, state, stack);
	stack->id = walk.hash;
	stack->image = process ? process->image : 0;
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
