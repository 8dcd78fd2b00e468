/* SPDX-License-Identifier: Apache-2.0
 *
 * agent.h - what the agent's files share.
 *
 *   agent.c      what NVTX calls to load us; which callback goes where
 *   callbacks.c  the NVTX functions: record, then call the chain
 *   calls.h      what they share: attributes in, events out
 *   events.h     the hot path: thread state, rings, open stacks
 *   state.c      process images (fork), segments, slots, threads
 *   overflow.c   pushes beyond the open stack
 *   dict.c       from names to keys: dictionary log, lookup table
 *   handles.c    domains, registered strings, names of categories and threads
 *   text.c       UTF-8
 *   wire.c       the hand-over socket
 *   chain.c      another NVTX tool behind us
 *
 * Rules kept everywhere: errno is preserved, nothing is printed unless
 * CCTRACE_AGENT_DEBUG=1, the engine's malloc is never called, and a failure
 * leaves the engine running untraced.
 */
#ifndef CCTRACE_AGENT_H
#define CCTRACE_AGENT_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cctrace_shm.h"

#define CCT_LIKELY(x) __builtin_expect(!!(x), 1)
#define CCT_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define CCT_NOINLINE __attribute__((noinline, cold))

enum {
	CCT_SEGMENTS_MAX = 64,
	CCT_OVERFLOW_MAX = 4096, /* pushes beyond the stack whose domain is kept */
	CCT_CACHED_NAMES = 64,   /* per thread; a power of two */
};

/* Values of cct_thread.armed besides an epoch. Epochs count up from 1. */
#define CCT_BUSY UINT32_MAX
#define CCT_UNARMED (UINT32_MAX - 1)

/* A name this thread used before. */
struct cct_cached {
	const void *text; /* the program's pointer or a struct cct_string */
	struct cct_domain *domain;
	uint32_t category;
	uint32_t color;
	uint32_t flags; /* CCT_DICT_HAS_COLOR */
	uint32_t key;
	/* What stood behind the pointer, to compare, for it may change; NULL for
	 * a registered string, which cannot. */
	const char *content;
	uint32_t bytes;
};

/* A thread's half of its slot; nobody else looks at it. */
struct cct_thread {
	uint32_t armed;  /* epoch: ready; CCT_BUSY: inside an event */
	uint32_t epoch;  /* process image the slot belongs to */
	uintptr_t entry; /* the event under way: its place on the stack */
	struct cct_slot *slot;
	struct cct_record *ring;
	uint64_t mask;
	uint64_t head;  /* next record, ever counting */
	uint64_t limit; /* head may go up to here before tail is read again */
	uint64_t last_ns;
	struct cct_frame *stack;
	uint32_t depth;
	uint32_t stack_frames;
	uint32_t push_limit; /* stack_frames; 0 while there is overflow */
	uint32_t overflow;   /* pushes the stack had no room for */
	uint32_t serial;     /* of this claim of a slot; high part of range ids */
	uint64_t ranges;     /* ids given out */
	uint32_t *overflow_domains; /* of the first CCT_OVERFLOW_MAX of them */
	char *scratch;              /* CCT_TEXT_MAX + 4 bytes for wide strings */
	struct cct_thread *next;    /* free list */
	uint32_t exit_rounds;
	struct cct_cached names[CCT_CACHED_NAMES];
};

/* A named domain. Lives as long as the process and its forked children. */
struct cct_domain {
	_Atomic uint64_t cached; /* epoch << 32 | dictionary id */
	void *_Atomic chained;   /* the chained tool's handle */
	struct cct_domain *next;
	_Atomic uint32_t users; /* creations less destructions */
	uint32_t serial;
	uint32_t bytes;
	uint32_t flags; /* CCT_DICT_TRUNCATED */
	char text[];
};

/* A registered string. */
struct cct_string {
	_Atomic uint64_t cached; /* epoch << 32 | key, of no category and no color */
	struct cct_domain *domain;
	void *_Atomic chained;
	struct cct_string *next;
	uint32_t bytes;
	uint32_t flags; /* CCT_DICT_TRUNCATED */
	char text[];
};

struct cct_map {
	struct cct_segment *segment;
	size_t bytes;
};

struct cct_table;

enum cct_status {
	CCT_UNDECIDED = 0,
	CCT_ATTACHED = 1,
	CCT_DISABLED = 2,
};

/* All that belongs to one process image. It lies in memory that the kernel
 * clears in the child of a fork, so that a child starts from zero: unattached,
 * its lock free whoever held it in the parent. */
struct cct_image {
	_Atomic uint32_t epoch; /* 0: nothing set up since the fork */
	_Atomic uint32_t status;
	pthread_mutex_t lock; /* all zero is unlocked in glibc and musl */
	uint64_t token;
	struct cct_map maps[CCT_SEGMENTS_MAX];
	uint32_t segments;
	bool no_more; /* the recorder gives no further segment */
	/* dictionary; the writer holds the lock */
	uint8_t *dict;
	uint64_t dict_bytes;
	uint64_t dict_used;
	uint32_t keys;
	uint32_t domains;
	_Atomic uint32_t dict_full;
	_Atomic uint32_t slotless; /* events without a slot */
	_Atomic uint32_t early_losses[CCT_LOSS_REASONS];
	struct cct_table *_Atomic table;
};

extern struct cct_image *cct_image;
extern __thread struct cct_thread *cct_tls __attribute__((tls_model("initial-exec")));

/* state.c */
bool cct_state_init(void);
struct cct_thread *cct_enter_slow(uintptr_t here); /* the caller's place on the stack */
void cct_lose_in_image(enum cct_loss reason);
void cct_lose(struct cct_loss_count *losses, enum cct_loss reason, uint64_t now_ns);
void *cct_alloc(size_t bytes);     /* zeroed, never freed; lock held */
void *cct_map_image(size_t bytes); /* zeroed, dropped by forked children; lock held */

/* The lock is never held by a thread that takes signals: a handler may leave by
 * siglongjmp, and would leave the lock behind. Also keeps errno. */
struct cct_hold {
	sigset_t signals;
	int saved_errno;
};
void cct_lock(struct cct_hold *hold);
void cct_unlock(const struct cct_hold *hold);

/* Brackets what happens outside of events and may take the lock: marks the thread
 * as occupied for what it calls in turn, and keeps signals and cancellation away. */
struct cct_guard {
	struct cct_thread *tls;
	struct cct_hold hold;
	int cancel_state;
};
bool cct_guard_enter(struct cct_guard *guard); /* false: occupied already */
void cct_guard_leave(struct cct_guard *guard);
bool cct_attach_locked(void); /* true: the image has a segment */

/* dict.c */
bool cct_dict_init_locked(void);
uint32_t cct_key_of_string(struct cct_thread *thread, struct cct_domain *domain,
			   struct cct_string *string, uint32_t category, uint32_t color,
			   uint32_t flags);
uint32_t cct_key_of_text(struct cct_thread *thread, struct cct_domain *domain,
			 const char *text, uint32_t category, uint32_t color,
			 uint32_t flags);
uint32_t cct_key_of_wide(struct cct_thread *thread, struct cct_domain *domain,
			 const wchar_t *text, uint32_t category, uint32_t color,
			 uint32_t flags);
uint32_t cct_domain_id_slow(struct cct_domain *domain);
uint32_t cct_domain_id_locked(struct cct_domain *domain);
bool cct_dict_append_locked(const struct cct_dict_entry *entry, const char *text);

/* handles.c; text or wide, the other one NULL */
void cct_categories_replay_locked(void);
struct cct_domain *cct_domain_create(const char *text, const wchar_t *wide);
struct cct_string *cct_string_register(struct cct_domain *domain, const char *text,
				       const wchar_t *wide);
void cct_name_category(struct cct_domain *domain, uint32_t category, const char *text,
		       const wchar_t *wide);
void cct_name_thread(uint32_t tid, const char *text, const wchar_t *wide);

/* text.c */
uint32_t cct_cut(const char *text, uint32_t bytes);
uint32_t cct_text_bytes(const char *text, uint32_t *flags);
uint32_t cct_utf8_from_wide(const wchar_t *wide, char *out, uint32_t *flags);

/* wire.c */
bool cct_wire_init(void); /* false: no socket named */
/* NULL: errno is that of a want that may pass (EMFILE, ENFILE, ENOBUFS) or another. */
struct cct_segment *cct_wire_request(enum cct_request_type type, uint64_t *token,
				     size_t *bytes);
void cct_debug(const char *what, int error);

#endif /* CCTRACE_AGENT_H */
