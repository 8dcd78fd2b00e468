/* SPDX-License-Identifier: Apache-2.0
 *
 * exchange.c - what the kernels of NCCL do: wait for the other ranks, move the data.
 *
 * The data is really moved and reduced, piece by piece through the shared segment. The
 * time it takes on the device is the profile's: from when the last rank is ready.
 */
#define _GNU_SOURCE
#include "../core/clock.h"
#include "nccl.h"

#include <stdlib.h>
#include <string.h>

#define POLL_NS 20000
#define LOOK_NS 100000000 /* how often a poller looks whether the others live */

void work_release(void *arg)
{
	struct work *work = arg, *next;

	for (; work; work = next) {
		next = work->next;
		comm_put(work->comm);
		free(work);
	}
}

static char *slot_of(const struct sim_comm *comm, int rank)
{
	return comm->slots + (uint64_t)rank * SLOT_BYTES;
}

/* Bring `size` bytes of every rank's own from `from` (NULL: it has none to bring) into
 * the slots, and let `take` have them piece by piece. */
static int gather(struct sim_comm *comm, const char *from, uint64_t size_bytes,
		  void (*take)(const struct work *work, uint64_t at, uint64_t bytes),
		  const struct work *work)
{
	uint64_t at, bytes;

	for (at = 0; at < size_bytes; at += bytes) {
		bytes = size_bytes - at < SLOT_BYTES ? size_bytes - at : SLOT_BYTES;
		if (from)
			memcpy(slot_of(comm, comm->rank), from + at, bytes);
		if (!comm_barrier(comm))
			return 0;
		take(work, at, bytes);
		if (!comm_barrier(comm))
			return 0;
	}
	return 1;
}

static void reduce_slots(const struct work *work, char *into, uint64_t skip_bytes,
			 uint64_t bytes)
{
	struct sim_comm *comm = work->comm;
	uint64_t count = bytes / type_bytes(work->type);
	int rank;

	/* In the order of ranks, so that all of them get the same bits. */
	memcpy(into, slot_of(comm, 0) + skip_bytes, bytes);
	for (rank = 1; rank < comm->rank_count; rank++)
		reduce_into(into, slot_of(comm, rank) + skip_bytes, count, work->type,
			    work->reduction);
	if (work->reduction == ncclAvg)
		divide_by(into, count, work->type, comm->rank_count);
}

static void take_reduced(const struct work *work, uint64_t at, uint64_t bytes)
{
	if (work->kind == WORK_REDUCE && work->root != work->comm->rank)
		return;
	reduce_slots(work, work->recv + at, 0, bytes);
}

/* Of a piece of everybody's whole, what lies in this rank's share. */
static void take_share(const struct work *work, uint64_t at, uint64_t bytes)
{
	uint64_t share = work->count * type_bytes(work->type);
	uint64_t begin = share * (uint64_t)work->comm->rank, end = begin + share;
	uint64_t from = at > begin ? at : begin;
	uint64_t until = at + bytes < end ? at + bytes : end;

	if (from < until)
		reduce_slots(work, work->recv + (from - begin), from - at,
			     until - from);
}

static void take_gathered(const struct work *work, uint64_t at, uint64_t bytes)
{
	uint64_t share = work->count * type_bytes(work->type);
	int rank;

	for (rank = 0; rank < work->comm->rank_count; rank++)
		memmove(work->recv + (uint64_t)rank * share + at,
			slot_of(work->comm, rank), bytes);
}

static void take_root(const struct work *work, uint64_t at, uint64_t bytes)
{
	memmove(work->recv + at, slot_of(work->comm, work->root), bytes);
}

static int exchange(const struct work *work)
{
	struct sim_comm *comm = work->comm;
	uint64_t bytes = work->count * type_bytes(work->type);

	switch (work->kind) {
	case WORK_ALL_REDUCE:
	case WORK_REDUCE:
		return gather(comm, work->send, bytes, take_reduced, work);
	case WORK_ALL_GATHER:
		return gather(comm, work->send, bytes, take_gathered, work);
	case WORK_REDUCE_SCATTER:
		return gather(comm, work->send, bytes * (uint64_t)comm->rank_count,
			      take_share, work);
	case WORK_BROADCAST:
		return gather(comm, comm->rank == work->root ? work->send : NULL, bytes,
			      take_root, work);
	default:
		return 0;
	}
}

/* How many bytes set the time: the larger of what goes in and what comes out. */
static uint64_t bytes_of(const struct work *work)
{
	uint64_t bytes = work->count * type_bytes(work->type);

	if (work->kind == WORK_ALL_GATHER || work->kind == WORK_REDUCE_SCATTER)
		bytes *= (uint64_t)work->comm->rank_count;
	return bytes;
}

uint64_t collective_body(void *arg, uint64_t ready_ns)
{
	struct work *work = arg;
	struct sim_comm *comm = work->comm;
	uint64_t begin_ns = ready_ns;
	int rank;

	pthread_mutex_lock(&comm->lock);
	comm->segment->ready_ns[comm->rank] = ready_ns;
	if (!comm_barrier(comm) || !exchange(work)) {
		begin_ns = sim_now_ns();
	} else {
		for (rank = 0; rank < comm->rank_count; rank++)
			if (comm->segment->ready_ns[rank] > begin_ns)
				begin_ns = comm->segment->ready_ns[rank];
	}
	/* Nobody posts the next time before all have read this one. */
	comm_barrier(comm);
	pthread_mutex_unlock(&comm->lock);
	begin_ns += nccl.sim->collective_ns(bytes_of(work));
	clock_wait_until(begin_ns);
	return begin_ns;
}

struct progress {
	const struct work *work;
	struct mailbox *box;
	uint64_t done_bytes, posted_bytes, size_bytes;
	uint64_t ready_ns; /* the later of both sides */
};

/* Move on as far as the other side lets us; whether anything moved. */
static int move(struct progress *p, uint64_t ready_ns)
{
	struct mailbox *box = p->box;
	int is_full = (int)__atomic_load_n(&box->is_full, __ATOMIC_ACQUIRE);
	uint64_t left;

	if (p->work->kind == WORK_SEND) {
		if (is_full)
			return 0;
		if (p->done_bytes != p->posted_bytes) { /* taken: the peer was ready */
			p->done_bytes = p->posted_bytes;
			if (box->receiver_ready_ns > p->ready_ns)
				p->ready_ns = box->receiver_ready_ns;
		}
		left = p->size_bytes - p->posted_bytes;
		if (!left)
			return 0;
		box->size_bytes = (uint32_t)(left < MAIL_BYTES ? left : MAIL_BYTES);
		memcpy(box->data, p->work->send + p->posted_bytes, box->size_bytes);
		box->sender_ready_ns = ready_ns;
		p->posted_bytes += box->size_bytes;
		__atomic_store_n(&box->is_full, 1, __ATOMIC_RELEASE);
		return 1;
	}
	if (!is_full)
		return 0;
	left = p->size_bytes - p->done_bytes;
	if (box->size_bytes > left) /* the ranks disagree about the size */
		box->size_bytes = (uint32_t)left;
	memcpy(p->work->recv + p->done_bytes, box->data, box->size_bytes);
	p->done_bytes += box->size_bytes;
	if (box->sender_ready_ns > p->ready_ns)
		p->ready_ns = box->sender_ready_ns;
	box->receiver_ready_ns = ready_ns;
	__atomic_store_n(&box->is_full, 0, __ATOMIC_RELEASE);
	return 1;
}

static struct mailbox *box_of(const struct work *work)
{
	const struct sim_comm *comm = work->comm;
	int from = work->kind == WORK_SEND ? comm->rank : work->root;
	int to = work->kind == WORK_SEND ? work->root : comm->rank;

	return &comm->mailboxes[from * comm->rank_count + to];
}

/* A mailbox serves one transfer at a time: is an earlier one of the list still in it?
 */
static int must_wait(const struct progress *all, size_t i)
{
	size_t j;

	for (j = 0; j < i; j++)
		if (all[j].box == all[i].box &&
		    all[j].work->kind == all[i].work->kind &&
		    all[j].done_bytes < all[j].size_bytes)
			return 1;
	return 0;
}

uint64_t transfer_body(void *arg, uint64_t ready_ns)
{
	struct work *first = arg, *work;
	struct progress *all;
	uint64_t end_ns = ready_ns, looked_ns = sim_now_ns();
	size_t count = 0, i, open;

	for (work = first; work; work = work->next)
		count++;
	all = calloc(count, sizeof(*all));
	if (!all)
		return sim_now_ns();
	for (i = 0, work = first; work; work = work->next, i++)
		all[i] = (struct progress){.work = work,
					   .box = box_of(work),
					   .size_bytes =
					       work->count * type_bytes(work->type),
					   .ready_ns = ready_ns};
	do {
		int moved = 0;

		for (i = 0, open = 0; i < count; i++) {
			if (all[i].done_bytes == all[i].size_bytes)
				continue;
			if (!must_wait(all, i))
				moved |= move(&all[i], ready_ns);
			open += all[i].done_bytes < all[i].size_bytes;
		}
		if (!moved && open) {
			uint64_t now_ns = sim_now_ns();

			if (now_ns - looked_ns > LOOK_NS) {
				looked_ns = now_ns;
				if (!comm_is_whole(first->comm))
					break;
			}
			clock_sleep(POLL_NS);
		}
	} while (open);
	for (i = 0; i < count; i++) {
		uint64_t done_ns =
		    all[i].ready_ns + nccl.sim->collective_ns(all[i].size_bytes);

		if (done_ns > end_ns)
			end_ns = done_ns;
	}
	free(all);
	clock_wait_until(end_ns);
	return end_ns;
}
