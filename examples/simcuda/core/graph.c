/* SPDX-License-Identifier: Apache-2.0
 *
 * graph.c - graphs of work, captured from streams and launched as one (see graph.h).
 *
 * Nodes run one after the other in the order of their capture: a graph lasts as long as
 * the sum of its nodes, whatever its shape.
 */
#define _GNU_SOURCE
#include "graph.h"
#include "clock.h"
#include "state.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct sim_node_list {
	struct sim_shared shared;
	size_t count;
	uint64_t size_bytes;
	int has_body;   /* a node of unknown length: runs on the stream's thread */
	int has_effect; /* nodes that do something to memory */
	struct sim_work nodes[];
};

static void list_release(struct sim_shared *shared)
{
	struct sim_node_list *list = (struct sim_node_list *)shared;
	size_t i;

	for (i = 0; i < list->count; i++)
		shared_put(list->nodes[i].arg);
	free(list);
}

static struct sim_node_list *list_of(const struct sim_graph *graph)
{
	struct sim_node_list *list =
	    calloc(1, sizeof(*list) + graph->count * sizeof(*list->nodes));
	size_t i;

	if (!list)
		return NULL;
	list->shared.refs = 1;
	list->shared.release = list_release;
	list->count = graph->count;
	for (i = 0; i < graph->count; i++) {
		list->nodes[i] = graph->nodes[i];
		shared_get(graph->nodes[i].arg);
		list->size_bytes += graph->nodes[i].size_bytes;
		list->has_body |= graph->nodes[i].body != NULL;
		list->has_effect |= graph->nodes[i].effect != NULL;
	}
	return list;
}

static uint64_t node_ns(const struct sim_work *node)
{
	return node->function ? kernel_ns(node->function) : node->dur_ns;
}

static uint64_t list_ns(const struct sim_node_list *list)
{
	uint64_t sum_ns = 0;
	size_t i;

	for (i = 0; i < list->count; i++)
		sum_ns += node_ns(&list->nodes[i]);
	return sum_ns;
}

static void list_effect(struct sim_shared *shared)
{
	struct sim_node_list *list = (struct sim_node_list *)shared;
	size_t i;

	for (i = 0; i < list->count; i++)
		if (list->nodes[i].effect)
			list->nodes[i].effect(list->nodes[i].arg);
}

static uint64_t list_body(struct sim_shared *shared, uint64_t ready_ns)
{
	struct sim_node_list *list = (struct sim_node_list *)shared;
	size_t i;

	for (i = 0; i < list->count; i++) {
		struct sim_work *node = &list->nodes[i];

		if (node->body) {
			clock_wait_until(ready_ns);
			ready_ns = node->body(node->arg, ready_ns);
			continue;
		}
		ready_ns += node_ns(node);
		if (node->effect)
			node->effect(node->arg);
	}
	clock_wait_until(ready_ns);
	return ready_ns;
}

CUresult graph_new(struct sim_graph **created)
{
	static atomic_uint_fast64_t last_id;
	struct sim_graph *graph = handle_new(HANDLE_GRAPH);

	if (!graph)
		return CUDA_ERROR_OUT_OF_MEMORY;
	graph->id = 1 + atomic_fetch_add(&last_id, 1);
	*created = graph;
	return CUDA_SUCCESS;
}

void graph_destroy(struct sim_graph *graph)
{
	size_t i;

	for (i = 0; i < graph->count; i++)
		shared_put(graph->nodes[i].arg);
	free(graph->nodes);
	handle_free(graph);
}

CUresult graph_append(struct sim_graph *graph, const struct sim_work *work)
{
	CUresult result = CUDA_SUCCESS;

	pthread_mutex_lock(&sim_lock);
	if (graph->count == graph->room) {
		size_t room = graph->room ? graph->room * 2 : 64;
		struct sim_work *nodes = realloc(graph->nodes, room * sizeof(*nodes));

		if (!nodes) {
			result = CUDA_ERROR_OUT_OF_MEMORY;
			goto out;
		}
		graph->nodes = nodes;
		graph->room = room;
	}
	shared_get(work->arg);
	graph->nodes[graph->count++] = *work;
out:
	pthread_mutex_unlock(&sim_lock);
	return result;
}

CUresult graph_instantiate(struct sim_graph *graph, struct sim_graph_exec **created)
{
	struct sim_graph_exec *exec = handle_new(HANDLE_GRAPH_EXEC);

	if (!exec)
		return CUDA_ERROR_OUT_OF_MEMORY;
	exec->list = list_of(graph);
	if (!exec->list) {
		handle_free(exec);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*created = exec;
	return CUDA_SUCCESS;
}

CUresult graph_exec_update(struct sim_graph_exec *exec, struct sim_graph *graph)
{
	struct sim_node_list *list, *old = exec->list;

	if (graph->count != old->count)
		return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
	list = list_of(graph);
	if (!list)
		return CUDA_ERROR_OUT_OF_MEMORY;
	exec->list = list;
	shared_put(&old->shared);
	return CUDA_SUCCESS;
}

void graph_exec_destroy(struct sim_graph_exec *exec)
{
	shared_put(&exec->list->shared);
	handle_free(exec);
}

CUresult graph_launch(struct sim_call *call, struct sim_graph_exec *exec,
		      CUstream value, int per_thread)
{
	struct sim_node_list *list = exec->list;
	struct sim_stream *stream;
	struct sim_work work = {.kind = TRUTH_OP_GRAPH,
				.size_bytes = list->size_bytes,
				.arg = &list->shared};
	CUresult result;

	result = stream_find(value, per_thread, &stream);
	if (result != CUDA_SUCCESS)
		return result;
	if (list->has_body)
		work.body = list_body;
	else if (list->has_effect)
		work.effect = list_effect;
	work.dur_ns = list_ns(list);
	if (!stream->capture)
		clock_wait_until(call->entry_ns +
				 profile_jitter(sim_profile.graph_host_ns));
	return work_submit(stream, &work, sim_profile.launch_latency_ns, NULL);
}

CUresult work_submit(struct sim_stream *stream, const struct sim_work *work,
		     uint64_t latency_ns, struct sim_op **queued)
{
	struct sim_op *op;

	if (queued)
		*queued = NULL;
	if (stream->capture) {
		if (stream->capture->is_invalid)
			return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		return graph_append(stream->capture, work);
	}
	op = op_new(
	    (enum truth_op)work->kind,
	    profile_jitter(work->function ? kernel_ns(work->function) : work->dur_ns));
	if (!op)
		return CUDA_ERROR_OUT_OF_MEMORY;
	op->copy_kind = work->copy_kind;
	op->host_memory = work->host_memory;
	op->size_bytes = work->size_bytes;
	op->effect = work->effect;
	op->body = work->body;
	op->arg = work->arg;
	shared_get(op->arg);
	if (work->is_bridge)
		op->lanes = stream->context->lanes;
	pthread_mutex_lock(&sim_lock);
	op->enqueue_ns = sim_now_ns();
	op->floor_ns = op->enqueue_ns + profile_jitter(latency_ns);
	op_enqueue(stream, op);
	pthread_mutex_unlock(&sim_lock);
	if (queued)
		*queued = op;
	else
		op_put(op);
	return CUDA_SUCCESS;
}

CUresult capture_begin(struct sim_stream *stream)
{
	struct sim_graph *graph;
	CUresult result;

	if (stream == stream->context->legacy)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (stream->capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	result = graph_new(&graph);
	if (result != CUDA_SUCCESS)
		return result;
	graph->origin = stream;
	stream->capture_is_origin = 1;
	stream->capture = graph;
	return CUDA_SUCCESS;
}

void capture_join(struct sim_stream *stream, struct sim_graph *graph)
{
	if (!stream->capture)
		stream->capture = graph;
}

static void leave_capture(struct sim_graph *graph)
{
	struct sim_stream *other;

	pthread_mutex_lock(&sim_lock);
	for (other = graph->origin->context->streams; other; other = other->next) {
		if (other->capture != graph)
			continue;
		other->capture = NULL;
		other->capture_is_origin = 0;
	}
	graph->origin = NULL;
	pthread_mutex_unlock(&sim_lock);
}

CUresult capture_end(struct sim_stream *stream, struct sim_graph **captured)
{
	struct sim_graph *graph = stream->capture;

	*captured = NULL;
	if (!graph)
		return CUDA_ERROR_ILLEGAL_STATE;
	if (!stream->capture_is_origin)
		return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
	leave_capture(graph);
	if (graph->is_invalid) {
		graph_destroy(graph);
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	}
	*captured = graph;
	return CUDA_SUCCESS;
}

void graph_invalidate(struct sim_graph *graph)
{
	graph->is_invalid = 1;
}

void graph_stream_gone(struct sim_stream *stream)
{
	struct sim_graph *graph = stream->capture;

	if (!graph)
		return;
	graph->is_invalid = 1;
	if (stream->capture_is_origin) {
		leave_capture(graph);
		graph_destroy(graph);
	}
}
