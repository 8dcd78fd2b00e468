/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce.c - adding up, and the other reductions, for NCCL's types.
 *
 * Half precision is computed as float and rounded to even after each step.
 */
#include "nccl.h"

#include <string.h>

unsigned type_bytes(ncclDataType_t type)
{
	static const uint8_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

	return (unsigned)type < sizeof(sizes) ? sizes[type] : 0;
}

static float float_of_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static uint32_t bits_of_float(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static float from_bfloat16(uint16_t half)
{
	return float_of_bits((uint32_t)half << 16);
}

static uint16_t to_bfloat16(float value)
{
	uint32_t bits = bits_of_float(value);

	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(bits >> 16 | 0x40); /* a quiet NaN stays one */
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* IEEE 754 binary16: 5 bits of exponent, 10 of fraction. */
static float from_float16(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16;
	uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;

	if (exponent == 31)
		return float_of_bits(sign | 0x7f800000 | fraction << 13);
	if (exponent)
		return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
	return float_of_bits(sign | bits_of_float((float)fraction * 0x1p-24f));
}

static uint16_t to_float16(float value)
{
	uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000;
	uint32_t size = bits & 0x7fffffff, kept, rest, half;
	unsigned shift;

	if (size > 0x7f800000)
		return (uint16_t)(sign | 0x7e00);
	if (size >= 0x477ff000) /* rounds beyond the largest, 65504 */
		return (uint16_t)(sign | 0x7c00);
	if (size < 0x33000000) /* rounds to nothing */
		return (uint16_t)sign;
	if (size >= 0x38800000) {
		kept = size - (112u << 23);
		shift = 13;
	} else { /* a subnormal: in units of 2^-24 */
		kept = (size & 0x7fffff) | 0x800000;
		shift = 126 - (size >> 23);
	}
	rest = kept & ((1u << shift) - 1);
	half = 1u << (shift - 1);
	kept >>= shift;
	if (rest > half || (rest == half && kept & 1))
		kept++;
	return (uint16_t)(sign | kept);
}

#define STEP(a, b, reduction)                                                          \
	((reduction) == ncclProd  ? (a) * (b)                                          \
	 : (reduction) == ncclMax ? ((a) > (b) ? (a) : (b))                            \
	 : (reduction) == ncclMin ? ((a) < (b) ? (a) : (b))                            \
				  : (a) + (b))

/* Signed sums wrap as the device's do: they are made on the unsigned type. */
#define PLAIN(name, type, arithmetic)                                                  \
	static void name(type *into, const type *from, uint64_t count,                 \
			 ncclRedOp_t reduction)                                        \
	{                                                                              \
		uint64_t i;                                                            \
                                                                                       \
		for (i = 0; i < count; i++) {                                          \
			type a = into[i], b = from[i];                                 \
                                                                                       \
			if (reduction == ncclMax)                                      \
				into[i] = a > b ? a : b;                               \
			else if (reduction == ncclMin)                                 \
				into[i] = a < b ? a : b;                               \
			else if (reduction == ncclProd)                                \
				into[i] = (type)((arithmetic)a * (arithmetic)b);       \
			else                                                           \
				into[i] = (type)((arithmetic)a + (arithmetic)b);       \
		}                                                                      \
	}

PLAIN(reduce_int8, int8_t, uint32_t)
PLAIN(reduce_uint8, uint8_t, uint32_t)
PLAIN(reduce_int32, int32_t, uint32_t)
PLAIN(reduce_uint32, uint32_t, uint32_t)
PLAIN(reduce_int64, int64_t, uint64_t)
PLAIN(reduce_uint64, uint64_t, uint64_t)
PLAIN(reduce_float, float, float)
PLAIN(reduce_double, double, double)

static void reduce_half(uint16_t *into, const uint16_t *from, uint64_t count,
			ncclRedOp_t reduction, float (*wide)(uint16_t),
			uint16_t (*narrow)(float))
{
	uint64_t i;

	for (i = 0; i < count; i++) {
		float a = wide(into[i]), b = wide(from[i]);

		into[i] = narrow(STEP(a, b, reduction));
	}
}

void reduce_into(char *into, const char *from, uint64_t count, ncclDataType_t type,
		 ncclRedOp_t reduction)
{
	void *a = into;
	const void *b = from;

	switch (type) {
	case ncclInt8:
		reduce_int8(a, b, count, reduction);
		break;
	case ncclUint8:
		reduce_uint8(a, b, count, reduction);
		break;
	case ncclInt32:
		reduce_int32(a, b, count, reduction);
		break;
	case ncclUint32:
		reduce_uint32(a, b, count, reduction);
		break;
	case ncclInt64:
		reduce_int64(a, b, count, reduction);
		break;
	case ncclUint64:
		reduce_uint64(a, b, count, reduction);
		break;
	case ncclFloat16:
		reduce_half(a, b, count, reduction, from_float16, to_float16);
		break;
	case ncclFloat32:
		reduce_float(a, b, count, reduction);
		break;
	case ncclFloat64:
		reduce_double(a, b, count, reduction);
		break;
	case ncclBfloat16:
		reduce_half(a, b, count, reduction, from_bfloat16, to_bfloat16);
		break;
	}
}

#define DIVIDE(ctype)                                                                  \
	do {                                                                           \
		for (i = 0; i < count; i++)                                            \
			((ctype *)at)[i] = (ctype)(((ctype *)at)[i] / (ctype)divisor); \
	} while (0)

void divide_by(char *values, uint64_t count, ncclDataType_t type, int divisor)
{
	void *at = values;
	uint64_t i;

	switch (type) {
	case ncclInt8:
		DIVIDE(int8_t);
		break;
	case ncclUint8:
		DIVIDE(uint8_t);
		break;
	case ncclInt32:
		DIVIDE(int32_t);
		break;
	case ncclUint32:
		DIVIDE(uint32_t);
		break;
	case ncclInt64:
		DIVIDE(int64_t);
		break;
	case ncclUint64:
		DIVIDE(uint64_t);
		break;
	case ncclFloat32:
		DIVIDE(float);
		break;
	case ncclFloat64:
		DIVIDE(double);
		break;
	case ncclFloat16:
		for (i = 0; i < count; i++)
			((uint16_t *)at)[i] = to_float16(
			    from_float16(((uint16_t *)at)[i]) / (float)divisor);
		break;
	case ncclBfloat16:
		for (i = 0; i < count; i++)
			((uint16_t *)at)[i] = to_bfloat16(
			    from_bfloat16(((uint16_t *)at)[i]) / (float)divisor);
		break;
	}
}
