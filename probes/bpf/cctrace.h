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
	CCT_LOST_RING = 0, /* ring full */
	CCT_LOST_MAP_FULL, /* no room for a thread, a call in flight, an aggregate */
	CCT_LOST_RETURN,   /* the return of a call was not seen */
	CCT_LOST_ENTRY,    /* a return whose entry was not seen */
	CCT_LOST_DEPTH,    /* calls nested deeper than is followed */
	CCT_LOST_READ,     /* an argument could not be read; the event is there */
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

#endif
