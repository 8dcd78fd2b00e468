/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_library.c - a library with an NVTX copy of its own, as engines load many.
 */
#include <nvtx3/nvToolsExt.h>

/* Emits `count` ranges called `name` in the domain "shared". */
__attribute__((visibility("default"))) void emit_ranges(const char *name, int count)
{
	nvtxDomainHandle_t domain = nvtxDomainCreateA("shared");
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
	};

	attributes.message.registered = nvtxDomainRegisterStringA(domain, name);
	for (int i = 0; i < count; i++) {
		nvtxDomainRangePushEx(domain, &attributes);
		nvtxDomainRangePop(domain);
	}
}

/* Leaves a range open; returns its depth. */
__attribute__((visibility("default"))) int open_range(const char *name)
{
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .messageType = NVTX_MESSAGE_TYPE_ASCII,
	    .message.ascii = name,
	};

	return nvtxDomainRangePushEx(nvtxDomainCreateA("shared"), &attributes);
}
