/* SPDX-License-Identifier: Apache-2.0
 *
 * chain.c - loads another NVTX injection library behind the agent.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "chain.h"

struct cct_chain cct_chain;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static bool busy;
static NvtxInitializeInjectionNvtxFunc_t initialize_tool;
static NvtxGetExportTableFunc_t real_get_table;

bool cct_chain_wanted(void)
{
	const char *path = getenv("CCTRACE_NVTX_CHAIN");

	return path != NULL && *path != 0;
}

static int module_table(NvtxCallbackModule module, NvtxFunctionTable *table,
			unsigned int *size)
{
	static NvtxFunctionPointer *core[NVTX_CBID_CORE_SIZE + 1];
	static NvtxFunctionPointer *core2[NVTX_CBID_CORE2_SIZE + 1];
	const NvtxExportTableCallbacks *real;

	/* As in NVTX itself: place 0 is empty, and so is the one after the last. */
	for (int i = 1; i < NVTX_CBID_CORE_SIZE; i++)
		core[i] = &cct_chain.core[i];
	for (int i = 1; i < NVTX_CBID_CORE2_SIZE; i++)
		core2[i] = &cct_chain.core2[i];
	switch (module) {
	case NVTX_CB_MODULE_CORE:
	case NVTX_CB_MODULE_CORE2:
		if (table != NULL)
			*table = module == NVTX_CB_MODULE_CORE ? core : core2;
		if (size != NULL)
			*size = module == NVTX_CB_MODULE_CORE ? NVTX_CBID_CORE_SIZE
							      : NVTX_CBID_CORE2_SIZE;
		return 1;
	case NVTX_CB_MODULE_SYNC:
		return 0;
	default:
		real = real_get_table(NVTX_ETID_CALLBACKS);
		return real == NULL ? 0
				    : real->GetModuleFunctionTable(module, table, size);
	}
}

static const void *get_table(uint32_t id)
{
	static const NvtxExportTableCallbacks callbacks = {
	    .struct_size = sizeof(callbacks),
	    .GetModuleFunctionTable = module_table,
	};

	return id == NVTX_ETID_CALLBACKS ? &callbacks : real_get_table(id);
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_export_table);

static NvtxInitializeInjectionNvtxFunc_t load_tool(const char *path)
{
	const char *slash = strrchr(path, '/');
	NvtxInitializeInjectionNvtxFunc_t found = NULL;
	void *library;

	/* Another agent would record everything twice. */
	if (strcmp(slash == NULL ? path : slash + 1, "libcctrace_agent.so") == 0)
		return NULL;
	library = dlopen(path, RTLD_LAZY);
	if (library == NULL) {
		cct_debug("cannot load the library in CCTRACE_NVTX_CHAIN", errno);
		return NULL;
	}
	*(void **)&found = dlsym(library, "InitializeInjectionNvtx2");
	if (found == NULL)
		cct_debug("CCTRACE_NVTX_CHAIN is no NVTX injection", 0);
	return found == InitializeInjectionNvtx2 ? NULL : found;
}

void cct_chain_init(NvtxGetExportTableFunc_t get_export_table)
{
	static bool loaded;
	const char *path = getenv("CCTRACE_NVTX_CHAIN");

	pthread_mutex_lock(&lock);
	/* A tool that uses NVTX itself comes back here; it is not its own chain. */
	if (!busy && path != NULL && *path != 0) {
		busy = true;
		if (!loaded)
			initialize_tool = load_tool(path);
		loaded = true;
		real_get_table = get_export_table;
		if (initialize_tool != NULL && initialize_tool(get_table) != 0)
			cct_chain.active = true;
		else if (!cct_chain.active)
			memset(&cct_chain, 0, sizeof(cct_chain));
		busy = false;
	}
	pthread_mutex_unlock(&lock);
}
