/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * stack_python: the Python part of stacks: a thread's state, its frames, and the code
 * objects that they run.
 *
 * Attach points: none; stacks.bpf.c has it walk.
 * Requires:      stacks.bpf.c before; CPython 3.10 to 3.14.
 * Per-event cost: three reads for the thread, one for each frame.
 * Blind spots:   interpreters that are not the process's first.
 */

#define STACK_THREADS 65536
#define STACK_PAGE 4096
#define STACK_MAX_LOOKED_AT 256 /* thread states of one process */
/* A thread that is none of Python's is looked for again after so long. */
#define STACK_RECHECK_NS 50000000ULL

/* Code objects, and which of those that lay at one address was written down last. */
struct stack_code_key {
	u64 code;
	u64 image;
};

BPF_RINGBUF_OUTPUT(stack_code_ring, CCT_STACK_RING_PAGES);
BPF_F_TABLE("lru_hash", struct stack_code_key, u64, stack_codes, STACK_SEEN, 0);

/* Where a thread's state was found, by thread id. */
struct stack_thread {
	u64 state;      /* 0: it has none */
	u64 image;      /* of the program it was found in */
	u64 checked_ns; /* when it was looked for */
};

BPF_F_TABLE("lru_hash", u32, struct stack_thread, stack_threads, STACK_THREADS, 0);

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

/* failed is set where what tells could not be read. */
static __always_inline bool stack_is_own(const struct cct_stack_process *process,
					 u64 state, u64 number, u64 *failed)
{
	u64 found = 0;
	u32 tid = 0;

	if (bpf_probe_read_user(&found, sizeof(found),
				(void *)(state + process->id_at))) {
		*failed = 1;
		return false;
	}
	if (!process->pthread_tid_at)
		return found == number;
	/* 3.10 knows threads by their struct pthread alone, which has the number. */
	if (bpf_probe_read_user(&tid, sizeof(tid),
				(void *)(found + process->pthread_tid_at))) {
		*failed = 1;
		return false;
	}
	return tid == number;
}

/* Whether a state is still in the list: memory that was freed looks like it for long.
 */
static __always_inline bool stack_is_listed(const struct cct_stack_process *process,
					    u64 state, u64 *failed)
{
	u64 before = 0, there = 0;

	if (bpf_probe_read_user(&before, sizeof(before),
				(void *)(state + process->prev_at))) {
		*failed = 1;
		return false;
	}
	before = before ? before + process->next_at : process->threads_head;
	if (bpf_probe_read_user(&there, sizeof(there), (void *)before)) {
		*failed = 1;
		return false;
	}
	return there == state;
}

/* The state of the current thread, of a process that runs Python; 0: it has none, or,
 * where flags say so, it could not be read. */
static __always_inline u64 stack_thread_state(const struct cct_stack_process *process,
					      const struct stack_start *start,
					      u32 *flags)
{
	u32 tid = (u32)start->pid_tgid;
	struct stack_thread *known = stack_threads.lookup(&tid);
	struct stack_thread fresh = {.image = process->image};
	u64 number = stack_own_number(process, start->pid_tgid), at = 0, failed = 0;

	/* No thread has it: those that have not begun or have ended may say so. */
	if (!number)
		return 0;
	if (known && known->image == process->image) {
		if (known->state) {
			if (stack_is_own(process, known->state, number, &failed) &&
			    stack_is_listed(process, known->state, &failed))
				return known->state;
		} else if (bpf_ktime_get_ns() - known->checked_ns < STACK_RECHECK_NS) {
			return 0;
		}
	}
	/* Memory that was given back tells no more than that it was. */
	failed = bpf_probe_read_user(&at, sizeof(at), (void *)process->threads_head);
	if (failed)
		at = 0;
	for (u32 i = 0; i < STACK_MAX_LOOKED_AT; i++) {
		if (!at)
			break;
		if (stack_is_own(process, at, number, &failed)) {
			fresh.state = at;
			break;
		}
		if (bpf_probe_read_user(&at, sizeof(at),
					(void *)(at + process->next_at))) {
			failed = 1;
			break;
		}
	}
	if (failed && !fresh.state) {
		*flags |= CCT_STACK_UNREADABLE;
		/* A page that was not there says nothing of a thread that has had one.
		 */
		if (known && known->state && known->image == process->image)
			return 0;
	}
	fresh.checked_ns = bpf_ktime_get_ns();
	stack_threads.update(&tid, &fresh);
	return fresh.state;
}

/* The innermost frame of a thread, where it keeps it. */
static __always_inline u64 stack_python_top(const struct cct_stack_process *process,
					    u64 state, u32 *flags)
{
	u64 frame = 0;

	if (bpf_probe_read_user(&frame, sizeof(frame),
				(void *)(state + process->frame_at)))
		goto unreadable;
	if (process->layout == CCT_PYTHON_V_3_11 ||
	    process->layout == CCT_PYTHON_V_3_12) {
		/* By way of the _PyCFrame of the evaluation that runs. */
		if (!frame || bpf_probe_read_user(&frame, sizeof(frame),
						  (void *)(frame + process->cframe_at)))
			goto unreadable;
	}
	return frame;
unreadable:
	*flags |= CCT_STACK_UNREADABLE;
	return 0;
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
	u64 frame = stack_python_top(process, state, &walk->flags);
	u64 code, place, previous;
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

/* The code objects of a thread's frames, those that are new. */
static __always_inline void stack_note_codes(const struct cct_stack_process *process,
					     u32 pid, u64 state)
{
	u32 flags = 0;
	u64 frame = stack_python_top(process, state, &flags), code, place, previous;

	for (u32 i = 0; i < CCT_STACK_PYTHON; i++) {
		/* Read anew each time: a verifier would follow what it was found to be.
		 */
		if (!frame || !stack_read_python(process->layout, frame, &code, &place,
						 &previous))
			break;
		stack_note_code(process, pid, code);
		frame = previous;
	}
}
