/* SPDX-License-Identifier: Apache-2.0
 *
 * emit.c - libcctrace_emit.so: plain functions over NVTX (see emit.h).
 */
#include "emit.h"

#include <nvtx3/nvToolsExt.h>

#define EXPORT __attribute__((visibility("default")))

static nvtxDomainHandle_t domain_of(uint64_t handle)
{
	return (nvtxDomainHandle_t)(uintptr_t)handle;
}

static nvtxEventAttributes_t attributes_of(uint64_t string, uint32_t category,
					   int has_payload, uint64_t payload)
{
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .category = category,
	    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
	    .message.registered = (nvtxStringHandle_t)(uintptr_t)string,
	};

	if (string == 0)
		attributes.messageType = NVTX_MESSAGE_UNKNOWN;
	if (has_payload) {
		attributes.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
		attributes.payload.ullValue = payload;
	}
	return attributes;
}

EXPORT uint64_t cct_emit_domain(const char *name)
{
	return (uintptr_t)nvtxDomainCreateA(name);
}

EXPORT uint64_t cct_emit_string(uint64_t domain, const char *text)
{
	return (uintptr_t)nvtxDomainRegisterStringA(domain_of(domain), text);
}

EXPORT void cct_emit_category(uint64_t domain, uint32_t category, const char *name)
{
	nvtxDomainNameCategoryA(domain_of(domain), category, name);
}

EXPORT int cct_emit_push(uint64_t domain, uint64_t string, uint32_t category,
			 int has_payload, uint64_t payload)
{
	nvtxEventAttributes_t attributes =
	    attributes_of(string, category, has_payload, payload);

	return nvtxDomainRangePushEx(domain_of(domain), &attributes);
}

EXPORT int cct_emit_pop(uint64_t domain)
{
	return nvtxDomainRangePop(domain_of(domain));
}

EXPORT void cct_emit_mark(uint64_t domain, uint64_t string, uint32_t category,
			  int has_payload, uint64_t payload)
{
	nvtxEventAttributes_t attributes =
	    attributes_of(string, category, has_payload, payload);

	nvtxDomainMarkEx(domain_of(domain), &attributes);
}

EXPORT uint64_t cct_emit_start(uint64_t domain, uint64_t string, uint32_t category,
			       int has_payload, uint64_t payload)
{
	nvtxEventAttributes_t attributes =
	    attributes_of(string, category, has_payload, payload);

	return nvtxDomainRangeStartEx(domain_of(domain), &attributes);
}

EXPORT void cct_emit_end(uint64_t domain, uint64_t range)
{
	nvtxDomainRangeEnd(domain_of(domain), range);
}
