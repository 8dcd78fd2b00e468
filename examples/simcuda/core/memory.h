/* SPDX-License-Identifier: Apache-2.0
 *
 * memory.h - which address ranges are what: device, pinned, registered or managed.
 *
 * Device memory is plain memory of the process at its own address (a host that reads it
 * directly gets away with it here, and would fault on a real device).
 */
#ifndef SIMCUDA_MEMORY_H
#define SIMCUDA_MEMORY_H

#include <cuda.h>

#include "sim.h"

enum range_owner {
	OWNER_HEAP,     /* freed by free() */
	OWNER_MAPPING,  /* freed by munmap() */
	OWNER_CALLER,   /* cuMemHostRegister: not ours */
	OWNER_RESERVED, /* cuMemAddressReserve: part of a reservation */
};

struct range {
	uint64_t begin;
	uint64_t size_bytes;
	void *allocation; /* what cuMemMap mapped there */
	uint32_t flags;
	int16_t device;
	uint8_t memory; /* enum sim_memory */
	uint8_t owner;
	uint8_t fresh; /* no copy has touched it yet */
};

/* Allocate and enter a range; NULL if there is no memory. */
void *memory_alloc(uint64_t size_bytes, enum sim_memory memory, int device,
		   uint32_t flags);
/* Enter a range that exists. */
CUresult memory_enter(const struct range *range);
/* Take out the range that begins there and is of that memory (two kinds may be given),
 * without freeing it. */
CUresult memory_remove(uint64_t begin, enum sim_memory memory, enum sim_memory other,
		       struct range *removed);
/* Give the bytes back; device memory counts as free from now. */
void memory_release(const struct range *range);
/* The range that holds an address; 0 if none. */
int memory_find(uint64_t address, struct range *found);
/* Whether the whole of [address, address + size) lies in one range that is found. */
int memory_holds(const struct range *range, uint64_t address, uint64_t size_bytes);
/* Whether this is the first copy that touches the range there. */
int memory_take_fresh(uint64_t address);
/* Bytes of device memory in use. */
uint64_t memory_used_bytes(int device);
/* Count device memory that is made elsewhere (arrays); 0 if the device is full. */
int memory_charge(int device, uint64_t size_bytes);
void memory_discharge(int device, uint64_t size_bytes);

#endif
