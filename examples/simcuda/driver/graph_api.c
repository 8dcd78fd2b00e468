/* SPDX-License-Identifier: Apache-2.0
 *
 * graph_api.c - graphs, modules and functions of the driver API.
 */
#include "driver.h"

#include <stdio.h>
#include <string.h>

struct sim_module {
	struct handle handle;
};

CUresult cuGraphCreate(CUgraph *made, unsigned int flags)
{
	ENTER(cuGraphCreate);
	LEAVE_UNLESS_READY();
	if (!made || flags)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	LEAVE(graph_new((struct sim_graph **)made));
}

CUresult cuGraphDestroy(CUgraph value)
{
	ENTER(cuGraphDestroy);
	struct sim_graph *graph = handle_check(value, HANDLE_GRAPH);
	LEAVE_UNLESS_READY();
	if (!graph || graph->origin)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	graph_destroy(graph);
	LEAVE(CUDA_SUCCESS);
}

/* Nodes have no handles: a count is what programs ask for. */
CUresult cuGraphGetNodes(CUgraph value, CUgraphNode *nodes, size_t *count)
{
	ENTER(cuGraphGetNodes);
	struct sim_graph *graph = handle_check(value, HANDLE_GRAPH);
	size_t i;
	LEAVE_UNLESS_READY();
	if (!graph || !count)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	for (i = 0; nodes && i < *count; i++)
		nodes[i] = i < graph->count ? (CUgraphNode)&graph->nodes[i] : NULL;
	if (!nodes || *count > graph->count)
		*count = graph->count;
	LEAVE(CUDA_SUCCESS);
}

CUresult cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph value,
			      const CUgraphNode *dependencies, size_t dependency_count,
			      const CUDA_MEMCPY3D *copy, CUcontext context)
{
	ENTER(cuGraphAddMemcpyNode);
	struct sim_graph *graph = handle_check(value, HANDLE_GRAPH);
	struct copy_shape shape;
	CUresult result;
	(void)dependencies, (void)dependency_count; /* nodes run in order */
	(void)context;                              /* addresses say where they lie */
	LEAVE_UNLESS_READY();
	if (!graph || !node)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	result = copy_of_3d(copy, &shape);
	if (result == CUDA_SUCCESS && !shape.width_bytes)
		result = CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		result = copy_add_node(graph, &shape);
	if (result == CUDA_SUCCESS)
		*node = (CUgraphNode)&graph->nodes[graph->count - 1];
	LEAVE(result);
}

static CUresult instantiate(CUgraphExec *made, CUgraph value)
{
	struct sim_graph *graph = handle_check(value, HANDLE_GRAPH);
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	if (!made || !graph || graph->origin)
		return CUDA_ERROR_INVALID_VALUE;
	return graph_instantiate(graph, (struct sim_graph_exec **)made);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph,
				     unsigned long long flags)
{
	ENTER(cuGraphInstantiateWithFlags);
	(void)flags; /* where it is launched from, and when it frees */
	LEAVE(instantiate(made, graph));
}

CUresult cuGraphInstantiate_v2(CUgraphExec *made, CUgraph graph,
			       CUgraphNode *error_node, char *log, size_t log_bytes)
{
	ENTER(cuGraphInstantiate_v2);
	if (error_node)
		*error_node = NULL;
	if (log && log_bytes)
		*log = 0;
	LEAVE(instantiate(made, graph));
}

CUresult cuGraphExecUpdate_v2(CUgraphExec value, CUgraph graph_value,
			      CUgraphExecUpdateResultInfo *info)
{
	ENTER(cuGraphExecUpdate_v2);
	struct sim_graph_exec *exec = handle_check(value, HANDLE_GRAPH_EXEC);
	struct sim_graph *graph = handle_check(graph_value, HANDLE_GRAPH);
	CUresult result;
	LEAVE_UNLESS_READY();
	if (!exec || !graph || !info)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	result = graph_exec_update(exec, graph);
	memset(info, 0, sizeof(*info));
	info->result = result == CUDA_SUCCESS
			   ? CU_GRAPH_EXEC_UPDATE_SUCCESS
			   : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
	LEAVE(result);
}

CUresult cuGraphExecDestroy(CUgraphExec value)
{
	ENTER(cuGraphExecDestroy);
	struct sim_graph_exec *exec = handle_check(value, HANDLE_GRAPH_EXEC);
	LEAVE_UNLESS_READY();
	if (!exec)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	graph_exec_destroy(exec);
	LEAVE(CUDA_SUCCESS);
}

/* Modules hold no code: any image will do, and any name is a function. */
static CUresult load_module(CUmodule *made, const void *image)
{
	struct sim_module *module;
	CUresult result = state_check();

	if (result != CUDA_SUCCESS)
		return result;
	if (!made || !image)
		return CUDA_ERROR_INVALID_VALUE;
	module = handle_new(HANDLE_MODULE);
	*made = (CUmodule)module;
	return module ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuModuleLoadData(CUmodule *made, const void *image)
{
	ENTER(cuModuleLoadData);
	LEAVE(load_module(made, image));
}

CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned int count,
			    CUjit_option *options, void **values)
{
	ENTER(cuModuleLoadDataEx);
	(void)count, (void)options, (void)values; /* nothing is compiled */
	LEAVE(load_module(made, image));
}

CUresult cuModuleUnload(CUmodule value)
{
	ENTER(cuModuleUnload);
	struct sim_module *module = handle_check(value, HANDLE_MODULE);
	LEAVE_UNLESS_READY();
	if (!module)
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	handle_free(module);
	LEAVE(CUDA_SUCCESS);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	ENTER(cuModuleGetFunction);
	LEAVE_UNLESS_READY();
	if (!function || !name || !*name)
		LEAVE(CUDA_ERROR_INVALID_VALUE);
	if (!handle_check(module, HANDLE_MODULE))
		LEAVE(CUDA_ERROR_INVALID_HANDLE);
	*function = kernel_new_special(name, NULL, NULL);
	LEAVE(*function ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}
