/* SPDX-License-Identifier: Apache-2.0
 *
 * graph.h - kernels, graphs and stream capture.
 */
#ifndef SIMCUDA_GRAPH_H
#define SIMCUDA_GRAPH_H

#include "device.h"

/* One piece of work before it is queued: what an op is made of, or a graph's node. */
struct sim_work {
	uint8_t kind; /* enum truth_op */
	uint8_t copy_kind;
	uint8_t host_memory;
	uint8_t is_bridge;    /* takes a copy engine */
	const void *function; /* a kernel: its duration is looked up */
	uint64_t dur_ns;
	uint64_t size_bytes;
	void (*effect)(struct sim_shared *arg);
	uint64_t (*body)(struct sim_shared *arg, uint64_t ready_ns);
	struct sim_shared *arg;
};

struct sim_graph {
	struct handle handle;
	struct sim_work *nodes;
	size_t count, room;
	uint64_t id;
	struct sim_stream *origin; /* while it is captured */
	int is_invalid;
};

struct sim_graph_exec {
	struct handle handle;
	struct sim_node_list *list; /* shared with the launches in flight */
};

/* Queue work on a stream, or append it to the graph that the stream captures. The
 * caller keeps its reference of the argument. With `queued` the op is given back with a
 * reference, NULL if it was captured. */
CUresult work_submit(struct sim_stream *stream, const struct sim_work *work,
		     uint64_t latency_ns, struct sim_op **queued);

/* How long a kernel lasts. */
uint64_t kernel_ns(const void *function);
/* Launch one: a handle of a special function runs its body. */
CUresult kernel_launch(struct sim_call *call, const void *function, CUstream stream,
		       int per_thread, void **params);
void *kernel_new_special(const char *name,
			 uint64_t (*body)(void *arg, uint64_t ready_ns),
			 void (*release)(void *arg));

CUresult graph_new(struct sim_graph **created);
void graph_destroy(struct sim_graph *graph);
CUresult graph_append(struct sim_graph *graph, const struct sim_work *work);
CUresult graph_instantiate(struct sim_graph *graph, struct sim_graph_exec **created);
/* Take over the nodes of a graph of as many. */
CUresult graph_exec_update(struct sim_graph_exec *exec, struct sim_graph *graph);
void graph_exec_destroy(struct sim_graph_exec *exec);
CUresult graph_launch(struct sim_call *call, struct sim_graph_exec *exec,
		      CUstream stream, int per_thread);

CUresult capture_begin(struct sim_stream *stream);
CUresult capture_end(struct sim_stream *stream, struct sim_graph **captured);
/* A stream joins what an event was recorded in. */
void capture_join(struct sim_stream *stream, struct sim_graph *graph);
void graph_invalidate(struct sim_graph *graph);
/* The stream goes away: no capture may go on in it. */
void graph_stream_gone(struct sim_stream *stream);

#endif
