/* SPDX-License-Identifier: Apache-2.0
 *
 * chain.h - the NVTX tool that was to be injected before us, if any.
 *
 * It is given tables of its own to fill in; callbacks.c calls what it finds
 * there after recording. Programs hold our handles, so a chained tool is never
 * handed one: modules whose functions take handles are ours to translate (CORE,
 * CORE2) or hidden (SYNC, and the payload extension, which NVTX initialises by
 * a function we do not export). The others reach the tool directly.
 */
#ifndef CCTRACE_CHAIN_H
#define CCTRACE_CHAIN_H

#include <stdbool.h>

#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExt.h>

struct cct_chain {
	bool active;
	NvtxFunctionPointer core[NVTX_CBID_CORE_SIZE];
	NvtxFunctionPointer core2[NVTX_CBID_CORE2_SIZE];
};

extern struct cct_chain cct_chain;

/* The chained tool's function, of the type the NVTX header gives it. */
#define CCT_CHAINED(name)                                                              \
	((nvtx##name##_impl_fntype)cct_chain.core[NVTX_CBID_CORE_##name])
#define CCT_CHAINED2(name)                                                             \
	((nvtx##name##_impl_fntype)cct_chain.core2[NVTX_CBID_CORE2_##name])

/* Loads the tool that CCTRACE_NVTX_CHAIN names and initialises it for the NVTX
 * copy behind `get_table`. */
void cct_chain_init(NvtxGetExportTableFunc_t get_table);
bool cct_chain_wanted(void);

/* callbacks.c: puts our functions into a module's table. */
void cct_install_core(NvtxFunctionTable table, unsigned int size);
void cct_install_core2(NvtxFunctionTable table, unsigned int size);

#endif /* CCTRACE_CHAIN_H */
