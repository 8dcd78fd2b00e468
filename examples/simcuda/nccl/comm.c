/* SPDX-License-Identifier: Apache-2.0
 *
 * comm.c - communicators: where ranks meet, and how they wait for each other.
 */
#define _GNU_SOURCE
#include "nccl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COMM_MAGIC 0x4d4f434d4953u
#define JOIN_TIMEOUT_NS ((uint64_t)300 * 1000000000u)
#define LOOK_NS 100000000 /* how often a waiter looks whether the others live */
#define SPIN_NS 20000     /* before it sleeps */

struct sim_comm *comm_check(ncclComm_t value)
{
	return value && value->magic == COMM_MAGIC ? value : NULL;
}

static void futex_wait(uint32_t *word, uint32_t value)
{
	struct timespec timeout = {.tv_nsec = LOOK_NS};

	syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static uint64_t segment_bytes(int rank_count)
{
	uint64_t ranks = (uint64_t)rank_count;

	return 4096 + ranks * SLOT_BYTES + ranks * ranks * sizeof(struct mailbox);
}

_Static_assert(sizeof(struct segment) <= 4096, "slots begin at a page");

static ncclResult_t map_segment(struct sim_comm *comm)
{
	int fd = shm_open(comm->name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *base;

	if (fd < 0)
		goto fail;
	comm->mapped_bytes = segment_bytes(comm->rank_count);
	/* Every rank asks for the same size; a file that grows is zeroed. */
	if (ftruncate(fd, (off_t)comm->mapped_bytes) < 0)
		goto fail;
	base =
	    mmap(NULL, comm->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		goto fail;
	close(fd);
	comm->segment = (struct segment *)base;
	comm->slots = base + 4096;
	comm->mailboxes =
	    (struct mailbox *)(comm->slots + (uint64_t)comm->rank_count * SLOT_BYTES);
	return ncclSuccess;
fail:
	fprintf(stderr,
		"simcuda: NCCL: cannot map the segment %s: %s\n"
		"hint: /dev/shm must hold %llu bytes\n",
		comm->name, strerror(errno), (unsigned long long)comm->mapped_bytes);
	if (fd >= 0)
		close(fd);
	return ncclSystemError;
}

ncclResult_t comm_join(const ncclUniqueId *id, int rank, int rank_count, int device,
		       struct sim_comm **made)
{
	struct sim_comm *comm;
	uint32_t nobody = 0;
	ncclResult_t result;

	if (strncmp(id->internal, "/simcuda-", 9) != 0 ||
	    !memchr(id->internal, 0, sizeof(id->internal)))
		return ncclInvalidArgument;
	comm = calloc(1, sizeof(*comm));
	if (!comm)
		return ncclSystemError;
	comm->rank = rank;
	comm->rank_count = rank_count;
	comm->device = device;
	comm->refs = 1;
	memcpy(comm->name, id->internal, sizeof(comm->name));
	pthread_mutex_init(&comm->lock, NULL);
	result = map_segment(comm);
	if (result != ncclSuccess) {
		free(comm);
		return result;
	}
	if (!__atomic_compare_exchange_n(&comm->segment->rank_count, &nobody,
					 (uint32_t)rank_count, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE) &&
	    nobody != (uint32_t)rank_count) {
		munmap(comm->segment, comm->mapped_bytes);
		free(comm);
		return ncclInvalidArgument;
	}
	comm->segment->pids[rank] = (uint32_t)getpid();
	comm->magic = COMM_MAGIC;
	__atomic_fetch_add(&comm->segment->joined, 1, __ATOMIC_ACQ_REL);
	futex_wake(&comm->segment->joined);
	*made = comm;
	return ncclSuccess;
}

ncclResult_t comm_await(struct sim_comm *comm)
{
	uint64_t deadline_ns = sim_now_ns() + JOIN_TIMEOUT_NS;
	uint32_t joined;

	while ((joined = __atomic_load_n(&comm->segment->joined, __ATOMIC_ACQUIRE)) <
	       (uint32_t)comm->rank_count) {
		if (sim_now_ns() > deadline_ns) {
			fprintf(stderr,
				"simcuda: NCCL: %u of %d ranks came to %s in 300 s\n"
				"hint: every rank calls ncclCommInitRank with the same "
				"id and count\n",
				joined, comm->rank_count, comm->name);
			return ncclSystemError;
		}
		futex_wait(&comm->segment->joined, joined);
	}
	if (comm->rank == 0)
		shm_unlink(comm->name);
	return ncclSuccess;
}

void comm_put(struct sim_comm *comm)
{
	if (__atomic_sub_fetch(&comm->refs, 1, __ATOMIC_ACQ_REL))
		return;
	munmap(comm->segment, comm->mapped_bytes);
	pthread_mutex_destroy(&comm->lock);
	comm->magic = 0;
	free(comm);
}

int comm_is_whole(struct sim_comm *comm)
{
	int rank;

	if (__atomic_load_n(&comm->segment->is_broken, __ATOMIC_ACQUIRE)) {
		comm->async_error = ncclRemoteError;
		return 0;
	}
	for (rank = 0; rank < comm->rank_count; rank++) {
		if (kill((pid_t)comm->segment->pids[rank], 0) == 0 || errno != ESRCH)
			continue;
		fprintf(
		    stderr,
		    "simcuda: NCCL: rank %d (pid %u) is gone; rank %d waits no more\n"
		    "hint: its work is void; ncclCommGetAsyncError says so\n",
		    rank, comm->segment->pids[rank], comm->rank);
		__atomic_store_n(&comm->segment->is_broken, 1, __ATOMIC_RELEASE);
		comm->async_error = ncclRemoteError;
		futex_wake(&comm->segment->phase);
		return 0;
	}
	return 1;
}

int comm_barrier(struct sim_comm *comm)
{
	struct segment *segment = comm->segment;
	uint32_t phase = __atomic_load_n(&segment->phase, __ATOMIC_ACQUIRE);
	uint64_t spin_until_ns;

	if (__atomic_load_n(&segment->is_broken, __ATOMIC_ACQUIRE))
		return comm_is_whole(comm);
	if (__atomic_add_fetch(&segment->arrived, 1, __ATOMIC_ACQ_REL) ==
	    (uint32_t)comm->rank_count) {
		__atomic_store_n(&segment->arrived, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&segment->phase, phase + 1, __ATOMIC_RELEASE);
		futex_wake(&segment->phase);
		return 1;
	}
	spin_until_ns = sim_now_ns() + SPIN_NS;
	while (__atomic_load_n(&segment->phase, __ATOMIC_ACQUIRE) == phase) {
		if (sim_now_ns() < spin_until_ns) {
			__builtin_ia32_pause();
			continue;
		}
		futex_wait(&segment->phase, phase);
		if (__atomic_load_n(&segment->phase, __ATOMIC_ACQUIRE) == phase &&
		    !comm_is_whole(comm))
			return 0;
	}
	return 1;
}
