/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * cctrace.h: what the BPF programs and the recorder agree on.
 *
 * Records of every family have one size, so that the recorder takes a whole ring as
 * one array. BCC compiles this for the kernel, and a test in user space, to compare the
 * layout with cctrace/record/bpf/layout.py.
 */
#ifndef CCTRACE_BPF_H
#define CCTRACE_BPF_H

#ifdef CCT_USER_SPACE
#include <stdint.h>
typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef int16_t s16;
typedef int32_t s32;
typedef uint8_t u8;
#endif

/* What a record is; also which family's losses it counts among. */
enum cct_kind {
	CCT_KIND_NONE = 0,
	CCT_KIND_CUDA,      /* one call: cct_event.cuda */
	CCT_KIND_SCHED,     /* one off-CPU interval: cct_event.sched */
	CCT_KIND_LIFECYCLE, /* fork, exec, exit: cct_event.life */
	CCT_KIND_SWIOTLB,   /* one bounce-buffer operation: cct_event.io */
	CCT_KIND_PAGES,     /* one page conversion: cct_event.io */
	CCT_KIND_UVM,       /* one nvidia-uvm encryption: cct_event.io */
	CCT_KIND_CRYPTO,    /* one libcrypto encryption: cct_event.io */
	CCT_KIND_DMA,       /* nothing in the ring: sums in a map */
	CCT_KIND_IOCTL,     /* one ioctl looked for: cct_event.io */
	CCT_KIND_TDX,       /* nothing in the ring: counts in a map */
	CCT_KINDS
};

/* Why something was not recorded; the recorder names them in bpf/layout.py. */
enum cct_bpf_loss {
	CCT_LOST_RING = 0,   /* ring full */
	CCT_LOST_MAP_FULL,   /* no room for a thread, a call in flight, an aggregate */
	CCT_LOST_RETURN,     /* the return of a call was not seen */
	CCT_LOST_ENTRY,      /* a return whose entry was not seen */
	CCT_LOST_DEPTH,      /* calls nested deeper than is followed */
	CCT_LOST_READ,       /* an argument could not be read; the event is there */
	CCT_LOST_STACK_RING, /* ring of stacks full; the event is there, without */
	CCT_LOST_STACK_MAP,  /* no room for the kernel's part; the event is there */
	CCT_BPF_LOSSES
};

/* Slots of the map `config`. */
enum cct_config {
	CCT_CONFIG_LAUNCHES = 0,  /* enum cct_launch_mode */
	CCT_CONFIG_ATTACHING = 1, /* not 0: a library's probes are being put in place */
	CCT_CONFIG_SLOTS = 8
};

enum cct_launch_mode { CCT_LAUNCHES_FULL = 0, CCT_LAUNCHES_AGGREGATE = 1 };

/* cct_event.flags of CUDA calls. */
enum cct_cuda_flag {
	CCT_CUDA_HAS_SIZE = 1,    /* size_bytes was read */
	CCT_CUDA_HAS_STREAM = 2,  /* stream was read */
	CCT_CUDA_HAS_ADDRESS = 4, /* dst (for a copy also src) was read */
	CCT_CUDA_SIZE_PARTIAL =
	    8, /* a batch longer than is followed: size is of its first part */
	CCT_CUDA_OPEN =
	    16 /* never returned: the thread, or the recording, ended inside */
};

#define CCT_NO_COPY_KIND 0xff

enum cct_sched_state {
	CCT_SCHED_RUNNABLE = 0,
	CCT_SCHED_BLOCKED = 1,
	CCT_SCHED_IO = 2
};

enum cct_life {
	CCT_LIFE_PROCESS = 0, /* life.child_tid is a new process of pid */
	CCT_LIFE_THREAD,      /* life.child_tid is a new thread of pid */
	CCT_LIFE_EXEC,
	CCT_LIFE_EXIT /* thread tid ended */
};

enum cct_io_op {
	CCT_IO_MAP = 0,
	CCT_IO_BOUNCE,
	CCT_IO_UNMAP,
	CCT_IO_SYNC,
	CCT_IO_FULL,
	CCT_IO_ALLOC,
	CCT_IO_ENCRYPT,
	CCT_IO_DECRYPT,
	CCT_IO_TO_SHARED,
	CCT_IO_TO_PRIVATE
};

/* enum dma_data_direction of the kernel (include/linux/dma-direction.h). */
enum cct_direction {
	CCT_BIDIRECTIONAL = 0,
	CCT_TO_DEVICE = 1,
	CCT_FROM_DEVICE = 2,
	CCT_DIRECTION_UNKNOWN = 3
};

/* Where CPython keeps a frame's code, place and caller. 3.14 has them as 3.13 does. */
enum cct_python {
	CCT_PYTHON_NONE = 0,
	CCT_PYTHON_V_3_10,
	CCT_PYTHON_V_3_11,
	CCT_PYTHON_V_3_12,
	CCT_PYTHON_V_3_13
};

/* cct_stack.flags */
enum cct_stack_flag {
	CCT_STACK_CUT = 1,       /* it goes on beyond what is followed */
	CCT_STACK_UNREADABLE = 2 /* a frame could not be read: it may go on */
};

#define CCT_STACK_NATIVE 127
#define CCT_STACK_PYTHON 127

#define CCT_DEVICE_BYTES 24
#define CCT_COMM_BYTES 16

/* One record; ts_ns is the start, ns of CLOCK_MONOTONIC. */
struct cct_event {
	u64 ts_ns;
	u32 pid;    /* thread-group id */
	u32 tid;    /* thread id */
	u8 kind;    /* enum cct_kind */
	u8 depth;   /* CUDA: probed calls around this one */
	u16 what;   /* CUDA: site; others: enum of the family */
	s16 result; /* CUDA: status returned */
	u8 detail;  /* CUDA: cudaMemcpyKind passed; io: enum cct_direction */
	u8 flags;   /* CUDA: enum cct_cuda_flag; others: 1 where dur_ns is known */
	u64 dur_ns;
	u64 stack_id; /* cct_stack.id; 0: none was taken */
	union {
		struct {
			u64 size_bytes;
			u64 stream;
			u64 dst; /* of calls on an event: that */
			u64 src;
		} cuda;
		struct {
			u32 waker_tid;
			u32 pad[7];
		} sched;
		struct {
			u32 child_tid;
			u32 parent_pid;
			char comm[CCT_COMM_BYTES];
			u64 pad;
		} life;
		struct {
			u64 size_bytes; /* page conversion: pages */
			char device[CCT_DEVICE_BYTES];
		} io;
	};
};

/* What is known of a process's program; BPF makes it, the recorder completes it. */
struct cct_stack_process {
	u64 image;        /* when the program began, ns; 0: before it was traced */
	u64 threads_head; /* address that holds the first thread state's; 0: no Python
			   */
	u64 text_start;   /* the interpreter's code */
	u64 text_bytes;
	u64 namespace_device; /* of its process ids, where they are not the machine's */
	u64 namespace_inode;
	u16 prev_at; /* offsets in a thread state */
	u16 next_at;
	u16 id_at;
	u16 frame_at;
	u16 cframe_at;      /* of the frame in a _PyCFrame */
	u16 pthread_tid_at; /* not 0: the id is an address, and the tid lies there */
	u16 layout;         /* enum cct_python */
	u16 looked_at;    /* what the recorder has found it to be; 0: not looked yet */
	u16 code_name_at; /* offsets in a code object */
	u16 code_file_at;
	u16 code_lines_at;
	u16 text_hash_at; /* in a str */
};

struct cct_python_frame {
	u64 code;  /* address of the code object */
	u64 place; /* address of the instruction; 3.10: its number */
	u64 mark;  /* cct_code.mark */
};

/* A stack that was not seen before, in a ring of its own. */
struct cct_stack {
	u64 id;
	u64 image; /* cct_stack_process.image */
	u32 pid;
	u32 tid;
	s32 kernel; /* number of the kernel's part in its map; < 0: none */
	u16 natives;
	u16 pythons;
	u16 flags;     /* enum cct_stack_flag */
	u16 family;    /* enum cct_kind of the event it was first taken for */
	u16 looked_at; /* cct_stack_process.looked_at */
	u16 pad;
	u64 native[CCT_STACK_NATIVE]; /* innermost first */
	struct cct_python_frame python[CCT_STACK_PYTHON];
};

#define CCT_CODE_TEXT_BYTES 512
#define CCT_CODE_LINES_BYTES 3072
#define CCT_CODE_HEAD_BYTES 256

/* A code object that was not seen before, as far as its name and lines go; of each
 * object no more than a page. */
struct cct_code {
	u64 code; /* addresses */
	u64 name;
	u64 file;
	u64 lines;
	u64 mark; /* by the hashes of name and file: tells codes of one address apart */
	u64 image;
	u32 pid;
	u32 pad;
	u8 code_object[CCT_CODE_HEAD_BYTES];
	u8 name_object[CCT_CODE_TEXT_BYTES];
	u8 file_object[CCT_CODE_TEXT_BYTES];
	u8 lines_object[CCT_CODE_LINES_BYTES];
};

#endif
