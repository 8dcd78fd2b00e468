/* SPDX-License-Identifier: Apache-2.0
 *
 * noop_injection.c - an NVTX injection whose functions return at once.
 *
 * What NVTX costs with any tool at all: the yardstick for the agent's own cost.
 *
 *   cc -O2 -shared -fPIC -isystem NVTX noop_injection.c -o libnoop.so
 */
#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExt.h>

static int noop(void)
{
	return 0;
}

/* A start must return a range that exists, a creation a handle. */
static void *something(void)
{
	static int it;

	return &it;
}

static int returns_something(int module, unsigned int i)
{
	if (module == NVTX_CB_MODULE_CORE)
		return i >= NVTX_CBID_CORE_RangeStartEx &&
		       i <= NVTX_CBID_CORE_RangeStartW;
	return i == NVTX_CBID_CORE2_DomainRangeStartEx ||
	       (i >= NVTX_CBID_CORE2_DomainRegisterStringA &&
		i <= NVTX_CBID_CORE2_DomainCreateW);
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_export_table)
{
	const NvtxExportTableCallbacks *callbacks =
	    get_export_table(NVTX_ETID_CALLBACKS);
	const NvtxCallbackModule modules[] = {NVTX_CB_MODULE_CORE,
					      NVTX_CB_MODULE_CORE2};

	for (int m = 0; m < 2; m++) {
		NvtxFunctionTable table;
		unsigned int size;

		if (!callbacks->GetModuleFunctionTable(modules[m], &table, &size))
			continue;
		for (unsigned int i = 1; i < size; i++)
			if (table[i] != NULL)
				*table[i] = returns_something(modules[m], i)
						? (NvtxFunctionPointer)something
						: (NvtxFunctionPointer)noop;
	}
	return 1;
}
