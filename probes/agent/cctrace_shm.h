/* SPDX-License-Identifier: Apache-2.0
 *
 * cctrace_shm.h - what the agent and the recorder share: the segment's layout
 * and the messages of the hand-over socket.
 *
 * The recorder creates a segment (a memfd sealed against resizing), writes its
 * header and hands it over. Nothing in it is trusted by the recorder: it keeps
 * its own copy of the geometry and of every tail, copies records before it
 * looks at them, and checks every index. cctrace/record/layout.py mirrors the
 * structs; a test compares sizes and offsets.
 *
 * One writer each: a thread slot belongs to one thread of the engine, the
 * dictionary to whoever holds the agent's own mutex (first sight of a name
 * only), `tail` and the state CCT_SLOT_FREE to the recorder.
 */
#ifndef CCTRACE_SHM_H
#define CCTRACE_SHM_H

#include <stdint.h>

#define CCT_MAGIC 0x31474553544343ULL /* "CCTSEG1" */
#define CCT_SHM_VERSION 1u

enum cct_slot_state {
	CCT_SLOT_FREE = 0, /* recorder: may be claimed */
	CCT_SLOT_LIVE = 1, /* agent: claimed by a thread */
	/* agent: its thread ended, and the recorder drains, then frees; or the
	 * recorder, for a thread that ended without telling */
	CCT_SLOT_EXITED = 2,
};

/* Why something was lost. The order is that of LOSS_REASONS in layout.py. */
enum cct_loss {
	CCT_LOSS_RING_FULL = 0,         /* the recorder did not keep up */
	CCT_LOSS_STACK_OVERFLOW = 1,    /* pushes nested deeper than stack_frames */
	CCT_LOSS_STRING_TABLE_FULL = 2, /* event kept, its name and domain lost */
	CCT_LOSS_REENTRANT = 3,        /* event from a signal handler inside an event */
	CCT_LOSS_UNMATCHED_POP = 4,    /* pop on an empty stack: the program's own */
	CCT_LOSS_TRUNCATED_STRING = 5, /* event kept, its name cut */
	CCT_LOSS_NO_SLOT = 6,          /* no thread slot to be had */
	CCT_LOSS_REASONS = 8,
};

struct cct_loss_count {
	uint64_t count;
	uint64_t first_ns; /* CLOCK_MONOTONIC; 0: none */
	uint64_t last_ns;
};

enum cct_record_kind {
	CCT_REC_PUSH_POP = 1, /* value: duration; written at the pop */
	CCT_REC_MARK = 2,
	CCT_REC_START = 3, /* value: range id */
	CCT_REC_END = 4,   /* value: range id */
};

enum cct_payload_type {
	CCT_PAYLOAD_NONE = 0,
	CCT_PAYLOAD_U64 = 1,
	CCT_PAYLOAD_I64 = 2,
	CCT_PAYLOAD_F64 = 3,
	CCT_PAYLOAD_U32 = 4,
	CCT_PAYLOAD_I32 = 5,
	CCT_PAYLOAD_F32 = 6,
};

/* One event in a ring. Timestamps of one thread never repeat: they tell the
 * order of its pushes, starts and marks. */
struct cct_record {
	uint64_t ts_ns;   /* CLOCK_MONOTONIC at push, mark, start or end */
	uint64_t value;   /* see cct_record_kind */
	uint64_t payload; /* the union's bits; 32-bit kinds in the low half */
	uint32_t key;     /* dictionary key; 0: no attributes */
	uint16_t depth;   /* within thread and domain, saturates at 65535 */
	uint8_t kind;
	uint8_t payload_type;
};

/* One range pushed and not yet popped, oldest first in the slot's stack. A pop
 * writes its record before it takes the frame back: a frame with the ts_ns of a
 * PUSH_POP record of the same thread is that range, cut off in between. */
struct cct_frame {
	uint64_t ts_ns;
	uint64_t payload;
	uint32_t key;
	uint32_t domain; /* dictionary id, 0: default; 1 << 31 set: not in the log */
	uint16_t depth;
	uint8_t payload_type;
	uint8_t closed; /* popped out of order (another domain's is above) */
	uint32_t reserved;
};

struct cct_slot {
	/* agent, rarely */
	uint32_t state; /* cct_slot_state */
	uint32_t tid;
	uint64_t claimed_ns;
	uint64_t reserved0[6];
	/* agent, every event */
	uint64_t head;  /* records written, ever; published by a release store */
	uint32_t depth; /* frames in the open stack, closed ones included */
	uint32_t reserved1;
	uint64_t reserved2[6];
	/* recorder */
	uint64_t tail; /* records taken, ever */
	uint64_t reserved3[7];
	/* agent, on loss */
	struct cct_loss_count losses[CCT_LOSS_REASONS];
};

enum cct_dict_type {
	CCT_DICT_KEY = 1,      /* id: key; domain, category, color; text: message */
	CCT_DICT_DOMAIN = 2,   /* id: domain; text: its name */
	CCT_DICT_CATEGORY = 3, /* id: category; domain; text: its name */
	CCT_DICT_THREAD = 4,   /* id: tid; text: its name */
};

#define CCT_DICT_HAS_TEXT 1u  /* a KEY without a message has no text */
#define CCT_DICT_TRUNCATED 2u /* text was cut at CCT_TEXT_MAX */
#define CCT_DICT_HAS_COLOR 4u
#define CCT_TEXT_MAX 65535u

/* An entry of the dictionary log, at multiples of 8; `bytes` of UTF-8 text
 * follow, padded to a multiple of 8. Keys and domains are numbered from 1 in
 * the order of their entries. */
struct cct_dict_entry {
	uint32_t type; /* cct_dict_type */
	uint32_t id;
	uint32_t domain;
	uint32_t category;
	uint32_t color;
	uint32_t flags;
	uint32_t bytes; /* of text, padding not counted */
	uint32_t reserved;
};

/* At offset 0. Written by the recorder before the hand-over, except for the
 * part after `agent`. Offsets and strides are bytes. */
struct cct_segment {
	uint64_t magic;
	uint32_t version;
	uint32_t index; /* 0: the process's first segment, the one with a dictionary */
	uint64_t segment_bytes;
	uint32_t slots;
	uint32_t ring_records; /* a power of two */
	uint32_t stack_frames;
	uint32_t reserved0;
	uint64_t slots_offset;
	uint64_t rings_offset;
	uint64_t ring_stride;
	uint64_t stacks_offset;
	uint64_t stack_stride;
	uint64_t dict_offset;
	uint64_t dict_bytes; /* 0 in segments other than the first */
	uint64_t reserved1[3];
	/* agent */
	uint64_t dict_head; /* bytes of the log published, by a release store */
	uint64_t reserved2[7];
	struct cct_loss_count losses[CCT_LOSS_REASONS]; /* of no thread in particular */
};

/* ---- hand-over: a SOCK_SEQPACKET unix socket, one request, one reply ---- */

#define CCT_WIRE_MAGIC 0x57544343u /* "CCTW" */
#define CCT_WIRE_VERSION 1u

enum cct_request_type {
	CCT_REQ_HELLO = 1,  /* a process image wants its first segment; token 0 */
	CCT_REQ_MORE = 2,   /* it wants another one; token: of the hello's reply */
	CCT_REQ_REPORT = 3, /* JSON text follows the request, at most CCT_REPORT_MAX */
	CCT_REQ_LIBRARY =
	    4, /* a library is mapped: its path follows; token: an address in it */
};

#define CCT_REPORT_MAX 65536u
#define CCT_LIBRARY_PATH_MAX 4096u

struct cct_request {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t pid; /* as the sender sees itself; SO_PEERCRED is what counts */
	uint32_t tid;
	uint64_t token;
};

enum cct_reply_status {
	CCT_REPLY_OK = 0,      /* with the memfd as SCM_RIGHTS, except for a report */
	CCT_REPLY_REFUSED = 1, /* do not ask again */
};

struct cct_reply {
	uint32_t magic;
	uint16_t version;
	uint16_t status;
	uint64_t token; /* names the process image from now on */
	uint64_t segment_bytes;
};

#endif /* CCTRACE_SHM_H */
