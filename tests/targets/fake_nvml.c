/* SPDX-License-Identifier: Apache-2.0
 *
 * A made-up libnvidia-ml.so for tests of cctrace/record/nvml.py, compiled against
 * the real nvml.h so that the layouts are NVIDIA's and not ours. The environment
 * variable FAKE_NVML says how it behaves.
 */
#include <nvml.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Prime, and unequal, so that a swapped field shows. */
#define GPU_MEMORY_BYTES 150754820107ULL
#define GPUS 3u

static int is(const char *behaviour)
{
	const char *chosen = getenv("FAKE_NVML");

	return chosen && strcmp(chosen, behaviour) == 0;
}

nvmlReturn_t nvmlInit_v2(void)
{
	if (is("hang"))
		for (;;)
			pause();
	if (is("crash"))
		abort();
	return is("no_init") ? NVML_ERROR_DRIVER_NOT_LOADED : NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void)
{
	return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
	return result == NVML_ERROR_DRIVER_NOT_LOADED ? "Driver Not Loaded" : "other";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
	strncpy(version, "595.45.04", length);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	*count = GPUS;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	if (index == 1)
		return NVML_ERROR_GPU_IS_LOST;
	*device = (nvmlDevice_t)(size_t)(0x1000 + index);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
	strncpy(name, "NVIDIA H200", length);
	name[10] = (char)('0' + ((size_t)device & 0xf)); /* H200, H202 */
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	(void)device;
	memory->total = GPU_MEMORY_BYTES;
	memory->free = 1;
	memory->used = 2;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	memset(pci, 0, sizeof(*pci));
	strcpy(pci->busIdLegacy, "wrong");
	strcpy(pci->busId, "00000000:01:00.0");
	pci->busId[10] = (char)('0' + ((size_t)device & 0xf));
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeCapabilities(nvmlConfComputeSystemCaps_t *caps)
{
	if (is("old"))
		return NVML_ERROR_NOT_SUPPORTED;
	caps->cpuCaps = NVML_CC_SYSTEM_CPU_CAPS_AMD_SNP_VTOM;
	caps->gpusCaps = NVML_CC_SYSTEM_GPUS_CC_CAPABLE;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned int *accepting)
{
	*accepting = NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
	if (is("old"))
		return NVML_ERROR_NOT_SUPPORTED;
	state->environment = NVML_CC_SYSTEM_ENVIRONMENT_SIM;
	state->ccFeature = NVML_CC_SYSTEM_FEATURE_ENABLED;
	state->devToolsMode = NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF;
	return NVML_SUCCESS;
}

#ifndef FAKE_NVML_R535 /* the first CC drivers had neither settings call */
nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_t *settings)
{
	if (settings->version != nvmlSystemConfComputeSettings_v1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (is("old"))
		return NVML_ERROR_NOT_SUPPORTED;
	settings->environment = NVML_CC_SYSTEM_ENVIRONMENT_PROD;
	settings->ccFeature = is("on") || is("devtools")
				  ? NVML_CC_SYSTEM_FEATURE_ENABLED
				  : NVML_CC_SYSTEM_FEATURE_DISABLED;
	settings->devToolsMode = is("devtools") ? NVML_CC_SYSTEM_DEVTOOLS_MODE_ON
						: NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF;
	settings->multiGpuMode = is("ppcie") ? NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE
					     : NVML_CC_SYSTEM_MULTIGPU_NONE;
	return NVML_SUCCESS;
}

nvmlReturn_t
nvmlSystemGetConfComputeSettings_v2(nvmlSystemConfComputeSettings_v2_t *settings)
{
	if (settings->version != nvmlSystemConfComputeSettings_v2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (!is("tdisp"))
		return NVML_ERROR_UNKNOWN;
	settings->environment = NVML_CC_SYSTEM_ENVIRONMENT_PROD;
	settings->ccFeature = NVML_CC_SYSTEM_FEATURE_ENABLED;
	settings->devToolsMode = NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF;
	settings->multiGpuMode = NVML_CC_SYSTEM_MULTIGPU_NVLE;
	settings->tdispState = NVML_CC_SYSTEM_TDISP_STATE_READY;
	return NVML_SUCCESS;
}
#endif
