/* SPDX-License-Identifier: Apache-2.0
 *
 * memsets.inc.h - memsets of the driver API; read twice, see driver.h.
 */

#define MEMSET(name, type, bytes)                                                      \
	CUresult name(CUdeviceptr dst, type value, size_t count)                       \
	{                                                                              \
		ENTER(name);                                                           \
		LEAVE(memset_run(SIM_CALL, dst, 0, value, bytes, count, 1, 0,          \
				 PER_THREAD));                                         \
	}

#define MEMSET_2D(name, type, bytes)                                                   \
	CUresult name(CUdeviceptr dst, size_t pitch, type value, size_t width,         \
		      size_t height)                                                   \
	{                                                                              \
		ENTER(name);                                                           \
		LEAVE(memset_run(SIM_CALL, dst, pitch, value, bytes, width, height, 0, \
				 PER_THREAD));                                         \
	}

#define MEMSET_ASYNC(name, type, bytes)                                                \
	CUresult name(CUdeviceptr dst, type value, size_t count, CUstream stream)      \
	{                                                                              \
		ENTER(name);                                                           \
		LEAVE(memset_run(SIM_CALL, dst, 0, value, bytes, count, 1, stream,     \
				 PER_THREAD));                                         \
	}

#define MEMSET_2D_ASYNC(name, type, bytes)                                             \
	CUresult name(CUdeviceptr dst, size_t pitch, type value, size_t width,         \
		      size_t height, CUstream stream)                                  \
	{                                                                              \
		ENTER(name);                                                           \
		LEAVE(memset_run(SIM_CALL, dst, pitch, value, bytes, width, height,    \
				 stream, PER_THREAD));                                 \
	}

MEMSET(DS(cuMemsetD8_v2), unsigned char, 1)
MEMSET(DS(cuMemsetD16_v2), unsigned short, 2)
MEMSET(DS(cuMemsetD32_v2), unsigned int, 4)
MEMSET_2D(DS(cuMemsetD2D8_v2), unsigned char, 1)
MEMSET_2D(DS(cuMemsetD2D16_v2), unsigned short, 2)
MEMSET_2D(DS(cuMemsetD2D32_v2), unsigned int, 4)
MEMSET_ASYNC(SZ(cuMemsetD8Async), unsigned char, 1)
MEMSET_ASYNC(SZ(cuMemsetD16Async), unsigned short, 2)
MEMSET_ASYNC(SZ(cuMemsetD32Async), unsigned int, 4)
MEMSET_2D_ASYNC(SZ(cuMemsetD2D8Async), unsigned char, 1)
MEMSET_2D_ASYNC(SZ(cuMemsetD2D16Async), unsigned short, 2)
MEMSET_2D_ASYNC(SZ(cuMemsetD2D32Async), unsigned int, 4)

#undef MEMSET
#undef MEMSET_2D
#undef MEMSET_ASYNC
#undef MEMSET_2D_ASYNC
