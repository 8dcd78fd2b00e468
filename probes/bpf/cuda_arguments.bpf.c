/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * cuda_arguments: what a CUDA call is asked for, from registers, stack and structures.
 *
 * Which argument means what comes in the probe's cookie, made from cuda_symbols.toml by
 * cctrace/record/bpf/cuda/symbols.py. All of it is the engine's word: nothing here
 * believes it, and what cannot be read is left out of the record, which is kept.
 */

/* How the size is found: SHAPES of cctrace/record/bpf/cuda/symbols.py, in its order. */
enum cuda_shape {
	CUDA_SHAPE_NONE = 0,
	CUDA_SHAPE_PRODUCT,
	CUDA_SHAPE_NCCL,
	CUDA_SHAPE_PITCHED,
	CUDA_SHAPE_PITCHED_3D,
	CUDA_SHAPE_BATCH,
	CUDA_SHAPE_BATCH_3D,
	CUDA_SHAPE_OPERATION_3D,
	CUDA_SHAPE_MEMCPY2D,
	CUDA_SHAPE_MEMCPY3D,
	CUDA_SHAPE_MEMCPY3D_PEER,
	CUDA_SHAPE_PARMS_3D,
	CUDA_SHAPE_PEER_PARMS_3D
};

/* The cookie: Symbol.cookie of symbols.py. */
#define CUDA_SITE(cookie) ((u16)((cookie) & 0xfff))
#define CUDA_IS_LAUNCH(cookie) ((cookie) & 1 << 12)
#define CUDA_HAS_OUT(cookie) ((cookie) & 1 << 13)
#define CUDA_STREAM_IN_CONFIG(cookie) ((cookie) & 1 << 14)
#define CUDA_HAS_DATA(cookie) ((cookie) & 1 << 15) /* anything but a stream */
#define CUDA_HAS_ADDRESS(cookie) ((cookie) & 1 << 16)
#define CUDA_SHAPE(cookie) ((cookie) >> 17 & 31)
#define CUDA_UNIT_LOG2(cookie) ((cookie) >> 22 & 3)
#define CUDA_SIZE_A(cookie) ((cookie) >> 24 & 15)
#define CUDA_SIZE_B(cookie) ((cookie) >> 28 & 15)
#define CUDA_SIZE_C(cookie) ((cookie) >> 32 & 15)
#define CUDA_KIND(cookie) ((cookie) >> 36 & 15)
#define CUDA_STREAM(cookie) ((cookie) >> 40 & 15)
#define CUDA_DST(cookie) ((cookie) >> 44 & 15)
#define CUDA_SRC(cookie) ((cookie) >> 48 & 15)
#define CUDA_IS_CROSSING(cookie) ((cookie) & 1ULL << 52)

#define CUDA_REGISTERS 6
#define CUDA_MAX_BATCH 64

/* cuda.h: hStream in CUlaunchConfig; driver_types.h: stream in cudaLaunchConfig_t */
#define CUDA_CONFIG_STREAM 32

/* enum CUmemorytype, cuda.h */
#define CUDA_MEMORY_HOST 1
#define CUDA_MEMORY_DEVICE 2
#define CUDA_MEMORY_UNIFIED 4

/* enum cudaMemcpyKind, driver_types.h */
#define CUDA_KIND_HOST_TO_HOST 0
#define CUDA_KIND_HOST_TO_DEVICE 1
#define CUDA_KIND_DEVICE_TO_HOST 2
#define CUDA_KIND_DEVICE_TO_DEVICE 3
#define CUDA_KIND_DEFAULT 4

/* log2 of the size of each ncclDataType_t (nccl.h), four bits each, int8 first. */
#define CUDA_NCCL_TYPES 12
#define CUDA_NCCL_LOG2 0x001321332200ULL

/* The six registers; 0 stands for none. Two more make any index that is masked right.
 */
struct cuda_arguments {
	u64 in_register[8];
	u64 sp;
};

/* An operand of cuMemcpy3DBatchAsync and its like, up to the address: cuda.h. */
struct cuda_operand {
	u32 type; /* 1: a pointer, 2: an array */
	u32 pad;
	u64 address;
	u64 rest[3];
};

struct cuda_operation {
	struct cuda_operand src;
	struct cuda_operand dst;
	u64 extent[3];
	u64 rest;
};

#define CUDA_OPERAND_POINTER 1

/* What the arguments of a call say. */
struct cuda_call {
	u64 size_bytes;
	u64 stream;
	u64 dst;
	u64 src;
	u8 detail;
	u8 flags;
	bool unreadable;
};

static __always_inline bool cuda_read(struct cuda_call *call, void *into, u32 bytes,
				      u64 from)
{
	if (!bpf_probe_read_user(into, bytes, (void *)from))
		return true;
	call->unreadable = true;
	return false;
}

/* Argument number `position`. */
static __always_inline u64 cuda_argument(struct cuda_call *call,
					 const struct cuda_arguments *arguments,
					 u32 position)
{
	u64 value = 0;

	if (position <= CUDA_REGISTERS)
		return arguments->in_register[position & 7];
	/* The return address is at the stack pointer, argument 7 above it. */
	cuda_read(call, &value, sizeof(value),
		  arguments->sp + 8 * (position - CUDA_REGISTERS));
	return value;
}

/* Sum of an array of sizes; addresses are those of the first copy. */
static __always_inline void cuda_batch(struct cuda_call *call, u64 cookie,
				       const struct cuda_arguments *arguments)
{
	u64 sizes = cuda_argument(call, arguments, CUDA_SIZE_A(cookie));
	u64 count = cuda_argument(call, arguments, CUDA_SIZE_B(cookie));
	u64 dsts = call->dst, srcs = call->src, one = 0;

	call->dst = 0;
	call->src = 0;
	call->flags &= ~CCT_CUDA_HAS_ADDRESS;
	if (count && cuda_read(call, &call->dst, sizeof(call->dst), dsts) &&
	    cuda_read(call, &call->src, sizeof(call->src), srcs))
		call->flags |= CCT_CUDA_HAS_ADDRESS;
	for (u32 i = 0; i < CUDA_MAX_BATCH; i++) {
		if (i >= count)
			break;
		if (!cuda_read(call, &one, sizeof(one), sizes + i * sizeof(one)))
			return;
		call->size_bytes += one;
	}
	call->flags |= CCT_CUDA_HAS_SIZE;
	if (count > CUDA_MAX_BATCH)
		call->flags |= CCT_CUDA_SIZE_PARTIAL;
}

/* Operations in three dimensions. Where an array takes part the extent counts its
 * elements, whose size is not known here. */
static __always_inline void cuda_operations(struct cuda_call *call, u64 at, u64 count)
{
	struct cuda_operation operation;
	bool in_bytes = true;

	call->flags &= ~CCT_CUDA_HAS_ADDRESS;
	for (u32 i = 0; i < CUDA_MAX_BATCH; i++) {
		if (i >= count)
			break;
		if (!cuda_read(call, &operation, sizeof(operation),
			       at + i * sizeof(operation)))
			return;
		if (operation.src.type != CUDA_OPERAND_POINTER) {
			operation.src.address = 0;
			in_bytes = false;
		}
		if (operation.dst.type != CUDA_OPERAND_POINTER) {
			operation.dst.address = 0;
			in_bytes = false;
		}
		if (!i) {
			call->dst = operation.dst.address;
			call->src = operation.src.address;
			call->flags |= CCT_CUDA_HAS_ADDRESS;
		}
		call->size_bytes +=
		    operation.extent[0] * operation.extent[1] * operation.extent[2];
	}
	if (in_bytes)
		call->flags |= CCT_CUDA_HAS_SIZE;
	if (count > CUDA_MAX_BATCH)
		call->flags |= CCT_CUDA_SIZE_PARTIAL;
}

/* One side of CUDA_MEMCPY2D and its like: memory type, host and device address. */
struct cuda_side {
	u32 type;
	u32 pad;
	u64 host;
	u64 device;
};

static __always_inline u64 cuda_side_address(const struct cuda_side *side)
{
	if (side->type == CUDA_MEMORY_HOST)
		return side->host;
	if (side->type == CUDA_MEMORY_DEVICE || side->type == CUDA_MEMORY_UNIFIED)
		return side->device;
	return 0;
}

/* CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMCPY3D_PEER: cuda.h. */
static __always_inline void cuda_driver_copy(struct cuda_call *call, u64 at, bool flat)
{
	struct cuda_side src = {}, dst = {};
	u64 width_height[2] = {}, depth = 1;

	call->flags &= ~CCT_CUDA_HAS_ADDRESS;
	if (!cuda_read(call, &src, sizeof(src), at + (flat ? 16 : 32)) ||
	    !cuda_read(call, &dst, sizeof(dst), at + (flat ? 72 : 120)) ||
	    !cuda_read(call, width_height, sizeof(width_height),
		       at + (flat ? 112 : 176)) ||
	    (!flat && !cuda_read(call, &depth, sizeof(depth), at + 192)))
		return;
	call->dst = cuda_side_address(&dst);
	call->src = cuda_side_address(&src);
	call->size_bytes = width_height[0] * width_height[1] * depth;
	call->flags |= CCT_CUDA_HAS_ADDRESS | CCT_CUDA_HAS_SIZE;
	if (src.type == CUDA_MEMORY_UNIFIED || dst.type == CUDA_MEMORY_UNIFIED)
		call->detail = CUDA_KIND_DEFAULT;
	else if (src.type == CUDA_MEMORY_HOST)
		call->detail = dst.type == CUDA_MEMORY_HOST ? CUDA_KIND_HOST_TO_HOST
							    : CUDA_KIND_HOST_TO_DEVICE;
	else
		call->detail = dst.type == CUDA_MEMORY_HOST
				   ? CUDA_KIND_DEVICE_TO_HOST
				   : CUDA_KIND_DEVICE_TO_DEVICE;
}

/* cudaMemcpy3DParms, cudaMemcpy3DPeerParms: driver_types.h. */
static __always_inline void cuda_runtime_copy(struct cuda_call *call, u64 at, bool peer)
{
	u64 src_array = 0, dst_array = 0, extent[3] = {};
	u64 dst_at = at + (peer ? 72 : 64);
	u32 kind = 0;

	call->flags &= ~CCT_CUDA_HAS_ADDRESS;
	if (!cuda_read(call, &src_array, 8, at) ||
	    !cuda_read(call, &dst_array, 8, dst_at) ||
	    !cuda_read(call, &call->src, 8, at + 32) ||
	    !cuda_read(call, &call->dst, 8, dst_at + 32) ||
	    !cuda_read(call, extent, sizeof(extent), dst_at + (peer ? 72 : 64)))
		return;
	if (!peer) {
		if (!cuda_read(call, &kind, sizeof(kind), at + 152))
			return;
		call->detail = kind < CCT_NO_COPY_KIND ? kind : CCT_NO_COPY_KIND - 1;
	}
	call->flags |= CCT_CUDA_HAS_ADDRESS;
	if (src_array)
		call->src = 0;
	if (dst_array)
		call->dst = 0;
	/* With an array the extent counts its elements, whose size is not known here.
	 */
	if (!src_array && !dst_array) {
		call->size_bytes = extent[0] * extent[1] * extent[2];
		call->flags |= CCT_CUDA_HAS_SIZE;
	}
}

static __always_inline void cuda_multiply(struct cuda_call *call, u64 cookie,
					  const struct cuda_arguments *arguments)
{
	bool readable = !call->unreadable;

	call->unreadable = false;
	call->size_bytes = cuda_argument(call, arguments, CUDA_SIZE_A(cookie))
			   << CUDA_UNIT_LOG2(cookie);
	if (CUDA_SIZE_B(cookie))
		call->size_bytes *= cuda_argument(call, arguments, CUDA_SIZE_B(cookie));
	if (CUDA_SIZE_C(cookie))
		call->size_bytes *= cuda_argument(call, arguments, CUDA_SIZE_C(cookie));
	if (!call->unreadable)
		call->flags |= CCT_CUDA_HAS_SIZE;
	call->unreadable |= !readable;
}

/* Every shape but the product. */
static __always_inline void cuda_measure(struct cuda_call *call, u64 cookie,
					 const struct cuda_arguments *arguments)
{
	u64 a = cuda_argument(call, arguments, CUDA_SIZE_A(cookie)),
	    b = cuda_argument(call, arguments, CUDA_SIZE_B(cookie));
	u32 shape = CUDA_SHAPE(cookie);

	if (shape == CUDA_SHAPE_NCCL) {
		if ((u32)b >= CUDA_NCCL_TYPES)
			return;
		call->size_bytes = a << (CUDA_NCCL_LOG2 >> (u32)b * 4 & 15);
		call->flags |= CCT_CUDA_HAS_SIZE;
	} else if (shape == CUDA_SHAPE_PITCHED) {
		call->src = a; /* where the pitch will be */
		call->size_bytes = b;
	} else if (shape == CUDA_SHAPE_PITCHED_3D) {
		call->src = call->dst + 8; /* struct cudaPitchedPtr, driver_types.h */
		call->size_bytes = a * b;
	} else if (shape == CUDA_SHAPE_BATCH) {
		cuda_batch(call, cookie, arguments);
	} else if (shape == CUDA_SHAPE_BATCH_3D || shape == CUDA_SHAPE_OPERATION_3D) {
		cuda_operations(call, a, shape == CUDA_SHAPE_BATCH_3D ? b : 1);
	} else if (shape <= CUDA_SHAPE_MEMCPY3D_PEER) {
		cuda_driver_copy(call, a, shape == CUDA_SHAPE_MEMCPY2D);
	} else {
		cuda_runtime_copy(call, a, shape == CUDA_SHAPE_PEER_PARMS_3D);
	}
}

static __always_inline void cuda_read_call(struct pt_regs *ctx, u64 cookie,
					   struct cuda_call *call)
{
	struct cuda_arguments arguments;

	arguments.in_register[0] = 0;
	arguments.in_register[1] = PT_REGS_PARM1(ctx);
	arguments.in_register[2] = PT_REGS_PARM2(ctx);
	arguments.in_register[3] = PT_REGS_PARM3(ctx);
	arguments.in_register[4] = PT_REGS_PARM4(ctx);
	arguments.in_register[5] = PT_REGS_PARM5(ctx);
	arguments.in_register[6] = PT_REGS_PARM6(ctx);
	arguments.in_register[7] = 0;
	arguments.sp = PT_REGS_SP(ctx);
	if (CUDA_STREAM(cookie)) {
		call->stream = cuda_argument(call, &arguments, CUDA_STREAM(cookie));
		if (CUDA_STREAM_IN_CONFIG(cookie))
			cuda_read(call, &call->stream, sizeof(call->stream),
				  call->stream + CUDA_CONFIG_STREAM);
		if (!call->unreadable)
			call->flags |= CCT_CUDA_HAS_STREAM;
	}
	if (!CUDA_HAS_DATA(cookie))
		return;
	call->dst = cuda_argument(call, &arguments, CUDA_DST(cookie));
	call->src = cuda_argument(call, &arguments, CUDA_SRC(cookie));
	if (CUDA_HAS_ADDRESS(cookie) && !call->unreadable)
		call->flags |= CCT_CUDA_HAS_ADDRESS;
	if (CUDA_KIND(cookie)) {
		u32 kind = cuda_argument(call, &arguments, CUDA_KIND(cookie));

		call->detail = kind < CCT_NO_COPY_KIND ? kind : CCT_NO_COPY_KIND - 1;
	}
	if (CUDA_SHAPE(cookie) == CUDA_SHAPE_PRODUCT)
		cuda_multiply(call, cookie, &arguments);
	else if (CUDA_SHAPE(cookie) != CUDA_SHAPE_NONE)
		cuda_measure(call, cookie, &arguments);
}
