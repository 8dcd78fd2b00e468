/* SPDX-License-Identifier: Apache-2.0
 *
 * state.c - process images, their segments and slots, and the threads in them.
 *
 * A process image is what lies between one fork or exec and the next. Its state
 * is in a page that the kernel clears in the child of any fork (raw clone too),
 * so the child finds epoch 0 at its next event and says hello on its own; a
 * child that only execs does nothing at all.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "events.h"

enum {
	ARENA_CHUNK_BYTES = 1 << 16,
	INHERITED_MAX = 128,
	NO_SLOT_RETRY = 1024, /* events without a slot between two searches */
	/* What the kernel puts on the stack below an interrupted frame is more
	 * (x86-64: siginfo, ucontext and the 512 bytes of FXSAVE). */
	SIGNAL_FRAME_BYTES = 1024,
	/* glibc runs a key's destructor up to PTHREAD_DESTRUCTOR_ITERATIONS (4)
	 * times; ours waits for the last but one, as others may still emit. */
	EXIT_ROUNDS = 3,
};

/* What a thread without a slot points to. None is ever armed. */
static struct cct_thread unattached = {.armed = CCT_UNARMED};
static struct cct_thread occupied = {.armed = CCT_UNARMED};
static struct cct_thread disabled = {.armed = CCT_UNARMED};
static struct cct_thread slotless = {.armed = CCT_UNARMED};
static struct cct_thread exited = {.armed = CCT_UNARMED};

__thread struct cct_thread *cct_tls __attribute__((tls_model("initial-exec"))) =
    &unattached;
struct cct_image *cct_image;

/* Ordinary memory: a forked child keeps all of this. */
static uint32_t generation;
static uint32_t serials;
static pthread_key_t exit_key;
static bool has_exit_key;
static struct cct_thread *free_threads;
static char *arena;
static size_t arena_left;
static struct {
	void *address;
	size_t bytes;
} owned[INHERITED_MAX];
static uint32_t owned_count;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *map_zeroed(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

void *cct_alloc(size_t bytes)
{
	void *memory;

	bytes = (bytes + 15) & ~(size_t)15;
	if (bytes > ARENA_CHUNK_BYTES / 4)
		return map_zeroed(bytes);
	if (bytes > arena_left) {
		char *chunk = map_zeroed(ARENA_CHUNK_BYTES);

		if (chunk == NULL)
			return NULL;
		arena = chunk;
		arena_left = ARENA_CHUNK_BYTES;
	}
	memory = arena;
	arena += bytes;
	arena_left -= bytes;
	return memory;
}

static void own(void *address, size_t bytes)
{
	if (owned_count == INHERITED_MAX)
		return; /* a forked child keeps it mapped, no more */
	owned[owned_count].address = address;
	owned[owned_count].bytes = bytes;
	atomic_signal_fence(memory_order_seq_cst);
	owned_count++;
}

void *cct_map_image(size_t bytes)
{
	void *memory = map_zeroed(bytes);

	if (memory != NULL)
		own(memory, bytes);
	return memory;
}

/* All signals but those that the thread itself brings on. */
static void block_signals(struct cct_hold *hold)
{
	static const int own[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
				  SIGTRAP, SIGABRT, SIGSYS};
	sigset_t all;

	hold->saved_errno = errno;
	sigfillset(&all);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&all, own[i]);
	pthread_sigmask(SIG_BLOCK, &all, &hold->signals);
}

static void restore_signals(const struct cct_hold *hold)
{
	pthread_sigmask(SIG_SETMASK, &hold->signals, NULL);
	errno = hold->saved_errno;
}

void cct_lock(struct cct_hold *hold)
{
	block_signals(hold);
	pthread_mutex_lock(&cct_image->lock);
}

void cct_unlock(const struct cct_hold *hold)
{
	pthread_mutex_unlock(&cct_image->lock);
	restore_signals(hold);
}

bool cct_guard_enter(struct cct_guard *guard)
{
	guard->tls = cct_tls;
	if (guard->tls == &occupied || guard->tls->armed == CCT_BUSY)
		return false;
	block_signals(&guard->hold);
	/* connect, send and recv are cancellation points: a cancelled thread
	 * must not leave with the lock held. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &guard->cancel_state);
	cct_tls = &occupied;
	atomic_signal_fence(memory_order_seq_cst);
	return true;
}

void cct_guard_leave(struct cct_guard *guard)
{
	atomic_signal_fence(memory_order_seq_cst);
	cct_tls = guard->tls;
	pthread_setcancelstate(guard->cancel_state, NULL);
	restore_signals(&guard->hold);
}

void cct_lose(struct cct_loss_count *losses, enum cct_loss reason, uint64_t when_ns)
{
	struct cct_loss_count *loss = &losses[reason];
	uint64_t never = 0;

	if (when_ns == 0)
		when_ns = now_ns();
	__atomic_compare_exchange_n(&loss->first_ns, &never, when_ns, false,
				    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	__atomic_store_n(&loss->last_ns, when_ns, __ATOMIC_RELAXED);
	__atomic_fetch_add(&loss->count, 1, __ATOMIC_RELEASE);
}

/* A loss of no slot in particular. Until the hello is answered there is no
 * segment to count in, so it waits. */
void cct_lose_in_image(enum cct_loss reason)
{
	if (atomic_load_explicit(&cct_image->status, memory_order_acquire) ==
	    CCT_ATTACHED)
		cct_lose(cct_image->maps[0].segment->losses, reason, 0);
	else
		atomic_fetch_add(&cct_image->early_losses[reason], 1);
}

static void count_early_losses(void)
{
	for (int reason = 0; reason < CCT_LOSS_REASONS; reason++) {
		uint32_t count = atomic_exchange(&cct_image->early_losses[reason], 0);

		while (count-- > 0)
			cct_lose_in_image((enum cct_loss)reason);
	}
}

/* ---- process images ---- */

static void after_fork_in_child(void)
{
	memset(cct_image, 0, sizeof(*cct_image));
}

bool cct_state_init(void)
{
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
	bool ready;

	pthread_mutex_lock(&once);
	if (cct_image == NULL) {
		size_t bytes = (sizeof(struct cct_image) + 4095) & ~(size_t)4095;
		struct cct_image *image = map_zeroed(bytes);

		if (image != NULL && madvise(image, bytes, MADV_WIPEONFORK) != 0 &&
		    pthread_atfork(NULL, NULL, after_fork_in_child) != 0)
			image = NULL;
		__atomic_store_n(&cct_image, image, __ATOMIC_RELEASE);
	}
	ready = cct_image != NULL;
	pthread_mutex_unlock(&once);
	return ready;
}

static void new_image(void)
{
	uint32_t count = owned_count;

	/* What the parent mapped is not ours to write to. */
	owned_count = 0;
	for (uint32_t i = 0; i < count; i++)
		if (owned[i].address != NULL)
			munmap(owned[i].address, owned[i].bytes);
	if (++generation >= CCT_UNARMED)
		generation = 1;
	atomic_store_explicit(&cct_image->epoch, generation, memory_order_release);
}

enum got { GOT, NOT_NOW, NEVER };

static enum got get_segment(enum cct_request_type type)
{
	struct cct_image *image = cct_image;
	struct cct_map *map = &image->maps[image->segments];

	if (image->segments == CCT_SEGMENTS_MAX)
		return NEVER;
	map->segment = cct_wire_request(type, &image->token, &map->bytes);
	if (map->segment == NULL)
		return errno == EMFILE || errno == ENFILE || errno == ENOBUFS ? NOT_NOW
									      : NEVER;
	own(map->segment, map->bytes);
	image->segments++;
	return GOT;
}

bool cct_attach_locked(void)
{
	struct cct_image *image = cct_image;

	if (atomic_load_explicit(&image->epoch, memory_order_relaxed) == 0)
		new_image();
	if (image->status == CCT_UNDECIDED) {
		enum got got = get_segment(CCT_REQ_HELLO);
		bool ok = got == GOT && cct_dict_init_locked();

		if (got == NOT_NOW)
			return false;
		atomic_store_explicit(&image->status, ok ? CCT_ATTACHED : CCT_DISABLED,
				      memory_order_release);
		if (ok)
			count_early_losses();
	}
	return image->status == CCT_ATTACHED;
}

/* ---- slots ---- */

static struct cct_slot *slot_at(const struct cct_segment *segment, uint32_t i)
{
	return (struct cct_slot *)((char *)segment + segment->slots_offset) + i;
}

static bool claim_in(struct cct_segment *segment, struct cct_thread *thread)
{
	for (uint32_t i = 0; i < segment->slots; i++) {
		struct cct_slot *slot = slot_at(segment, i);
		char *base = (char *)segment;

		if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != CCT_SLOT_FREE)
			continue;
		thread->slot = slot;
		thread->ring = (struct cct_record *)(base + segment->rings_offset +
						     i * segment->ring_stride);
		thread->stack = (struct cct_frame *)(base + segment->stacks_offset +
						     i * segment->stack_stride);
		thread->mask = segment->ring_records - 1u;
		thread->stack_frames = segment->stack_frames;
		thread->push_limit = segment->stack_frames;
		/* Head goes on from the last owner's, so the recorder's tail
		 * stays right; the first write reads tail. */
		thread->head = slot->head;
		thread->limit = thread->head;
		slot->tid = (uint32_t)syscall(SYS_gettid);
		slot->claimed_ns = now_ns();
		slot->depth = 0;
		__atomic_store_n(&slot->state, CCT_SLOT_LIVE, __ATOMIC_RELEASE);
		return true;
	}
	return false;
}

static bool claim_slot(struct cct_thread *thread)
{
	struct cct_image *image = cct_image;

	for (uint32_t i = 0; i < image->segments; i++)
		if (claim_in(image->maps[i].segment, thread))
			return true;
	if (image->no_more)
		return false;
	switch (get_segment(CCT_REQ_MORE)) {
	case GOT:
		return claim_in(image->maps[image->segments - 1].segment, thread);
	case NEVER:
		image->no_more = true; /* it may be slow to refuse: ask once */
		return false;
	default:
		return false;
	}
}

/* Gives the thread its place in this image: a struct with a slot, or the
 * stand-in that tells why there is none. */
static struct cct_thread *place_locked(struct cct_thread *thread)
{
	uint32_t *overflow_domains;
	char *scratch;

	if (!cct_attach_locked()) {
		if (thread != NULL) {
			thread->next = free_threads;
			free_threads = thread;
		}
		return cct_image->status == CCT_UNDECIDED ? &slotless : &disabled;
	}
	if (thread == NULL) {
		thread = free_threads;
		if (thread != NULL)
			free_threads = thread->next;
		else
			thread = cct_alloc(sizeof(*thread));
	}
	if (thread == NULL)
		return &slotless;
	overflow_domains = thread->overflow_domains;
	scratch = thread->scratch;
	memset(thread, 0, sizeof(*thread));
	thread->overflow_domains = overflow_domains;
	thread->scratch = scratch;
	thread->armed = CCT_BUSY;
	thread->epoch = cct_image->epoch;
	thread->serial = ++serials;
	if (!claim_slot(thread)) {
		thread->next = free_threads;
		free_threads = thread;
		return &slotless;
	}
	return thread;
}

/* Whether the thread's event under way will never be finished, because a handler
 * that interrupted it left by siglongjmp: the stack is back where it was. What a
 * handler brings lies further down, or on a stack of its own. */
static bool is_abandoned(const struct cct_thread *thread, uintptr_t here)
{
	stack_t stack;

	return here + SIGNAL_FRAME_BYTES > thread->entry &&
	       sigaltstack(NULL, &stack) == 0 && (stack.ss_flags & SS_ONSTACK) == 0;
}

/* Takes over from an abandoned event, which may have stopped at any instruction. */
static struct cct_thread *resume(struct cct_thread *thread, uintptr_t here)
{
	cct_lose(thread->slot->losses, CCT_LOSS_REENTRANT, 0);
	thread->entry = here;
	thread->head = __atomic_load_n(&thread->slot->head, __ATOMIC_RELAXED);
	cct_set_depth(thread, thread->depth);
	memset(thread->names, 0, sizeof(thread->names));
	return thread;
}

/* The calling thread's stand-in or stale struct, when it is not armed. */
struct cct_thread *cct_enter_slow(uintptr_t here)
{
	struct cct_thread *before = cct_tls;
	uint32_t epoch = atomic_load_explicit(&cct_image->epoch, memory_order_acquire);
	struct cct_thread *thread = NULL;
	struct cct_guard guard;
	struct cct_hold hold;

	if (before == &disabled && cct_image->status == CCT_DISABLED && epoch != 0)
		return NULL;
	if (before == &exited && epoch != 0) {
		cct_lose_in_image(CCT_LOSS_NO_SLOT);
		return NULL;
	}
	if (before == &occupied) {
		if (epoch != 0)
			cct_lose_in_image(CCT_LOSS_REENTRANT);
		return NULL;
	}
	if (before->armed == CCT_BUSY) {
		/* With another epoch its slot is the parent process's. */
		if (before->epoch != epoch)
			return NULL;
		if (is_abandoned(before, here))
			return resume(before, here);
		cct_lose(before->slot->losses, CCT_LOSS_REENTRANT, 0);
		return NULL;
	}
	if (before == &slotless && epoch != 0 &&
	    atomic_fetch_add(&cct_image->slotless, 1) % NO_SLOT_RETRY != 0) {
		cct_lose_in_image(CCT_LOSS_NO_SLOT);
		return NULL;
	}
	if (!cct_guard_enter(&guard))
		return NULL;
	cct_lock(&hold);
	if (before != &unattached && before != &disabled && before != &slotless &&
	    before != &exited)
		thread = before; /* of the process we were forked from */
	thread = place_locked(thread);
	cct_unlock(&hold);
	if (thread == &slotless)
		cct_lose_in_image(CCT_LOSS_NO_SLOT);
	if (has_exit_key)
		pthread_setspecific(exit_key,
				    thread->armed == CCT_BUSY ? thread : NULL);
	thread->entry = here;
	guard.tls = thread;
	cct_guard_leave(&guard);
	return thread->armed == CCT_BUSY ? thread : NULL;
}

static void thread_exit(void *argument)
{
	struct cct_thread *thread = argument;
	struct cct_guard guard;
	struct cct_hold hold;

	if (++thread->exit_rounds < EXIT_ROUNDS) {
		pthread_setspecific(exit_key, thread);
		return;
	}
	if (!cct_guard_enter(&guard))
		return;
	cct_lock(&hold);
	/* In a child that was forked meanwhile the slot is not ours. */
	if (thread->epoch == cct_image->epoch)
		__atomic_store_n(&thread->slot->state, CCT_SLOT_EXITED,
				 __ATOMIC_RELEASE);
	thread->next = free_threads;
	free_threads = thread;
	cct_unlock(&hold);
	guard.tls = &exited;
	cct_guard_leave(&guard);
}

/* At load: early enough for a key that needs no memory of its own. A program may
 * have taken all there are; the recorder then finds out which threads ended. */
__attribute__((constructor)) static void make_exit_key(void)
{
	has_exit_key = pthread_key_create(&exit_key, thread_exit) == 0;
}
