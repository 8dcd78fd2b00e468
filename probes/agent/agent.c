/* SPDX-License-Identifier: Apache-2.0
 *
 * agent.c - libcctrace_agent.so: an NVTX v3 injection that writes every event
 * to shared memory the recorder owns.
 *
 * NVTX loads the library named by NVTX_INJECTION64_PATH and calls
 * InitializeInjectionNvtx2 once per library that carries a copy of NVTX (see
 * nvtx3/nvtxDetail/nvtxInit.h). Each copy has tables of its own to fill in; the
 * state behind them is one per process. The recorder is asked for memory at the
 * first event, not here, so that a process without events costs nothing.
 *
 * Environment: CCTRACE_SOCKET, where the recorder listens; CCTRACE_NVTX_CHAIN,
 * an NVTX injection to call as well; CCTRACE_AGENT_DEBUG=1, talk on stderr.
 */
#include <errno.h>

#include "agent.h"
#include "chain.h"

__attribute__((visibility("default"))) int
InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_export_table)
{
	const NvtxExportTableCallbacks *callbacks =
	    get_export_table(NVTX_ETID_CALLBACKS);
	int saved_errno = errno;
	NvtxFunctionTable table = NULL;
	unsigned int size = 0;
	bool wanted = cct_wire_init();

	/* 0 makes NVTX forget us: its calls become what they are without a tool. */
	if (callbacks == NULL || !cct_state_init() || (!wanted && !cct_chain_wanted()))
		return 0;
	cct_chain_init(get_export_table);
	if (!wanted && !cct_chain.active)
		return 0;
	if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size))
		cct_install_core(table, size);
	if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size))
		cct_install_core2(table, size);
	errno = saved_errno;
	return 1;
}
