/* SPDX-License-Identifier: Apache-2.0
 *
 * callbacks.c - the functions NVTX calls: each records, then calls the chained
 * tool's function where there is one.
 */
#include "calls.h"
#include "chain.h"

static struct cct_domain *domain_of(nvtxDomainHandle_t handle)
{
	return (struct cct_domain *)handle;
}

static nvtxDomainHandle_t chained_domain(const struct cct_domain *domain)
{
	return domain == NULL ? NULL : (nvtxDomainHandle_t)domain->chained;
}

/* What the chained tool is to see: its own handle of a registered message. */
static const nvtxEventAttributes_t *chained(const nvtxEventAttributes_t *attributes,
					    nvtxEventAttributes_t *copy)
{
	const struct cct_string *string;

	if (attributes == NULL || attributes->size < sizeof(*attributes) ||
	    attributes->messageType != NVTX_MESSAGE_TYPE_REGISTERED)
		return attributes;
	*copy = *attributes;
	copy->size = sizeof(*copy);
	string = (const struct cct_string *)attributes->message.registered;
	copy->message.registered =
	    string == NULL ? NULL : (nvtxStringHandle_t)string->chained;
	return copy;
}

static bool is_ours(nvtxRangeId_t id)
{
	return id >> 56 == CCT_RANGE_TAG >> 56;
}

/* Calls a function of the chained tool if there is one, else does nothing. */
#define FORWARD(name, ...)                                                             \
	do {                                                                           \
		if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(name) != NULL)       \
			CCT_CHAINED(name)(__VA_ARGS__);                                \
	} while (0)
#define FORWARD2(name, ...)                                                            \
	do {                                                                           \
		if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED2(name) != NULL)      \
			CCT_CHAINED2(name)(__VA_ARGS__);                               \
	} while (0)

/* ---- module CORE: the default domain ---- */

static void NVTX_API on_mark_ex(const nvtxEventAttributes_t *attributes)
{
	nvtxEventAttributes_t copy;

	mark(NULL, BY_ATTRIBUTES(attributes));
	FORWARD(MarkEx, chained(attributes, &copy));
}

static void NVTX_API on_mark_a(const char *text)
{
	mark(NULL, BY_TEXT(text));
	FORWARD(MarkA, text);
}

static void NVTX_API on_mark_w(const wchar_t *text)
{
	mark(NULL, BY_WIDE(text));
	FORWARD(MarkW, text);
}

static nvtxRangeId_t NVTX_API on_range_start_ex(const nvtxEventAttributes_t *attributes)
{
	nvtxEventAttributes_t copy;
	nvtxRangeId_t id = 0;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangeStartEx) != NULL)
		id = CCT_CHAINED(RangeStartEx)(chained(attributes, &copy));
	return start(NULL, BY_ATTRIBUTES(attributes), id);
}

static nvtxRangeId_t NVTX_API on_range_start_a(const char *text)
{
	nvtxRangeId_t id = 0;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangeStartA) != NULL)
		id = CCT_CHAINED(RangeStartA)(text);
	return start(NULL, BY_TEXT(text), id);
}

static nvtxRangeId_t NVTX_API on_range_start_w(const wchar_t *text)
{
	nvtxRangeId_t id = 0;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangeStartW) != NULL)
		id = CCT_CHAINED(RangeStartW)(text);
	return start(NULL, BY_WIDE(text), id);
}

static void NVTX_API on_range_end(nvtxRangeId_t id)
{
	end(id);
	if (!is_ours(id))
		FORWARD(RangeEnd, id);
}

/* Depths are the chained tool's where it tells them: the program sees what it
 * would see without us. */
static int NVTX_API on_range_push_ex(const nvtxEventAttributes_t *attributes)
{
	int depth = push(NULL, BY_ATTRIBUTES(attributes));
	nvtxEventAttributes_t copy;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangePushEx) != NULL)
		return CCT_CHAINED(RangePushEx)(chained(attributes, &copy));
	return depth;
}

static int NVTX_API on_range_push_a(const char *text)
{
	int depth = push(NULL, BY_TEXT(text));

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangePushA) != NULL)
		return CCT_CHAINED(RangePushA)(text);
	return depth;
}

static int NVTX_API on_range_push_w(const wchar_t *text)
{
	int depth = push(NULL, BY_WIDE(text));

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangePushW) != NULL)
		return CCT_CHAINED(RangePushW)(text);
	return depth;
}

static int NVTX_API on_range_pop(void)
{
	int depth = pop(NULL);

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED(RangePop) != NULL)
		return CCT_CHAINED(RangePop)();
	return depth;
}

static void NVTX_API on_name_category_a(uint32_t category, const char *name)
{
	cct_name_category(NULL, category, name, NULL);
	FORWARD(NameCategoryA, category, name);
}

static void NVTX_API on_name_category_w(uint32_t category, const wchar_t *name)
{
	cct_name_category(NULL, category, NULL, name);
	FORWARD(NameCategoryW, category, name);
}

static void NVTX_API on_name_os_thread_a(uint32_t tid, const char *name)
{
	cct_name_thread(tid, name, NULL);
	FORWARD(NameOsThreadA, tid, name);
}

static void NVTX_API on_name_os_thread_w(uint32_t tid, const wchar_t *name)
{
	cct_name_thread(tid, NULL, name);
	FORWARD(NameOsThreadW, tid, name);
}

/* ---- module CORE2: domains ---- */

static void NVTX_API on_domain_mark_ex(nvtxDomainHandle_t handle,
				       const nvtxEventAttributes_t *attributes)
{
	nvtxEventAttributes_t copy;

	mark(domain_of(handle), BY_ATTRIBUTES(attributes));
	FORWARD2(DomainMarkEx, chained_domain(domain_of(handle)),
		 chained(attributes, &copy));
}

static nvtxRangeId_t NVTX_API on_domain_range_start_ex(
    nvtxDomainHandle_t handle, const nvtxEventAttributes_t *attributes)
{
	struct cct_domain *domain = domain_of(handle);
	nvtxEventAttributes_t copy;
	nvtxRangeId_t id = 0;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED2(DomainRangeStartEx) != NULL)
		id = CCT_CHAINED2(DomainRangeStartEx)(chained_domain(domain),
						      chained(attributes, &copy));
	return start(domain, BY_ATTRIBUTES(attributes), id);
}

static void NVTX_API on_domain_range_end(nvtxDomainHandle_t handle, nvtxRangeId_t id)
{
	end(id);
	if (!is_ours(id))
		FORWARD2(DomainRangeEnd, chained_domain(domain_of(handle)), id);
}

static int NVTX_API on_domain_range_push_ex(nvtxDomainHandle_t handle,
					    const nvtxEventAttributes_t *attributes)
{
	struct cct_domain *domain = domain_of(handle);
	int depth = push(domain, BY_ATTRIBUTES(attributes));
	nvtxEventAttributes_t copy;

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED2(DomainRangePushEx) != NULL)
		return CCT_CHAINED2(DomainRangePushEx)(chained_domain(domain),
						       chained(attributes, &copy));
	return depth;
}

static int NVTX_API on_domain_range_pop(nvtxDomainHandle_t handle)
{
	struct cct_domain *domain = domain_of(handle);
	int depth = pop(domain);

	if (CCT_UNLIKELY(cct_chain.active) && CCT_CHAINED2(DomainRangePop) != NULL)
		return CCT_CHAINED2(DomainRangePop)(chained_domain(domain));
	return depth;
}

static void NVTX_API on_domain_name_category_a(nvtxDomainHandle_t handle,
					       uint32_t category, const char *name)
{
	cct_name_category(domain_of(handle), category, name, NULL);
	FORWARD2(DomainNameCategoryA, chained_domain(domain_of(handle)), category,
		 name);
}

static void NVTX_API on_domain_name_category_w(nvtxDomainHandle_t handle,
					       uint32_t category, const wchar_t *name)
{
	cct_name_category(domain_of(handle), category, NULL, name);
	FORWARD2(DomainNameCategoryW, chained_domain(domain_of(handle)), category,
		 name);
}

/* A registered string belongs to the tool's domain as it is now; after that
 * one was destroyed and created anew it must be registered again. */
static nvtxStringHandle_t NVTX_API on_register_string_a(nvtxDomainHandle_t handle,
							const char *text)
{
	struct cct_string *string = cct_string_register(domain_of(handle), text, NULL);

	if (CCT_UNLIKELY(cct_chain.active) && string != NULL &&
	    CCT_CHAINED2(DomainRegisterStringA) != NULL)
		string->chained = CCT_CHAINED2(DomainRegisterStringA)(
		    chained_domain(domain_of(handle)), text);
	return (nvtxStringHandle_t)string;
}

static nvtxStringHandle_t NVTX_API on_register_string_w(nvtxDomainHandle_t handle,
							const wchar_t *text)
{
	struct cct_string *string = cct_string_register(domain_of(handle), NULL, text);

	if (CCT_UNLIKELY(cct_chain.active) && string != NULL &&
	    CCT_CHAINED2(DomainRegisterStringW) != NULL)
		string->chained = CCT_CHAINED2(DomainRegisterStringW)(
		    chained_domain(domain_of(handle)), text);
	return (nvtxStringHandle_t)string;
}

/* Two threads may both create the tool's domain; the second gives its back. */
static void adopt(struct cct_domain *domain, nvtxDomainHandle_t created)
{
	void *none = NULL;

	if (created != NULL &&
	    !atomic_compare_exchange_strong(&domain->chained, &none, (void *)created) &&
	    none != (void *)created)
		FORWARD2(DomainDestroy, created);
}

static nvtxDomainHandle_t NVTX_API on_domain_create_a(const char *name)
{
	struct cct_domain *domain = cct_domain_create(name, NULL);

	if (CCT_UNLIKELY(cct_chain.active) && domain != NULL &&
	    domain->chained == NULL && CCT_CHAINED2(DomainCreateA) != NULL)
		adopt(domain, CCT_CHAINED2(DomainCreateA)(name));
	return (nvtxDomainHandle_t)domain;
}

static nvtxDomainHandle_t NVTX_API on_domain_create_w(const wchar_t *name)
{
	struct cct_domain *domain = cct_domain_create(NULL, name);

	if (CCT_UNLIKELY(cct_chain.active) && domain != NULL &&
	    domain->chained == NULL && CCT_CHAINED2(DomainCreateW) != NULL)
		adopt(domain, CCT_CHAINED2(DomainCreateW)(name));
	return (nvtxDomainHandle_t)domain;
}

/* Its events stay, and so does our handle: other libraries of the process may
 * have created the same domain. The tool's goes with the last of them. */
static void NVTX_API on_domain_destroy(nvtxDomainHandle_t handle)
{
	struct cct_domain *domain = domain_of(handle);
	nvtxDomainHandle_t last;

	if (domain == NULL || atomic_fetch_sub(&domain->users, 1) != 1)
		return;
	last = (nvtxDomainHandle_t)atomic_exchange(&domain->chained, NULL);
	if (last != NULL)
		FORWARD2(DomainDestroy, last);
}

/* ---- only ever called for a chained tool ---- */

static nvtxResourceHandle_t NVTX_API
on_resource_create(nvtxDomainHandle_t handle, nvtxResourceAttributes_t *attributes)
{
	nvtxResourceAttributes_t copy;
	const struct cct_string *string;

	if (CCT_CHAINED2(DomainResourceCreate) == NULL)
		return NULL;
	if (attributes != NULL && attributes->size >= sizeof(copy) &&
	    attributes->messageType == NVTX_MESSAGE_TYPE_REGISTERED) {
		copy = *attributes;
		copy.size = sizeof(copy);
		string = (const struct cct_string *)attributes->message.registered;
		copy.message.registered =
		    string == NULL ? NULL : (nvtxStringHandle_t)string->chained;
		attributes = &copy;
	}
	return CCT_CHAINED2(DomainResourceCreate)(chained_domain(domain_of(handle)),
						  attributes);
}

static void NVTX_API on_resource_destroy(nvtxResourceHandle_t resource)
{
	FORWARD2(DomainResourceDestroy, resource);
}

static void NVTX_API on_initialize(const void *reserved)
{
	FORWARD2(Initialize, reserved);
}

/* ---- tables ---- */

static void set(NvtxFunctionTable table, unsigned int size, unsigned int id,
		NvtxFunctionPointer function)
{
	if (id < size && table[id] != NULL)
		*table[id] = function;
}

#define SET(module, name, function)                                                    \
	set(table, size, NVTX_CBID_##module##_##name, (NvtxFunctionPointer)(function))

void cct_install_core(NvtxFunctionTable table, unsigned int size)
{
	SET(CORE, MarkEx, on_mark_ex);
	SET(CORE, MarkA, on_mark_a);
	SET(CORE, MarkW, on_mark_w);
	SET(CORE, RangeStartEx, on_range_start_ex);
	SET(CORE, RangeStartA, on_range_start_a);
	SET(CORE, RangeStartW, on_range_start_w);
	SET(CORE, RangeEnd, on_range_end);
	SET(CORE, RangePushEx, on_range_push_ex);
	SET(CORE, RangePushA, on_range_push_a);
	SET(CORE, RangePushW, on_range_push_w);
	SET(CORE, RangePop, on_range_pop);
	SET(CORE, NameCategoryA, on_name_category_a);
	SET(CORE, NameCategoryW, on_name_category_w);
	SET(CORE, NameOsThreadA, on_name_os_thread_a);
	SET(CORE, NameOsThreadW, on_name_os_thread_w);
}

void cct_install_core2(NvtxFunctionTable table, unsigned int size)
{
	SET(CORE2, DomainMarkEx, on_domain_mark_ex);
	SET(CORE2, DomainRangeStartEx, on_domain_range_start_ex);
	SET(CORE2, DomainRangeEnd, on_domain_range_end);
	SET(CORE2, DomainRangePushEx, on_domain_range_push_ex);
	SET(CORE2, DomainRangePop, on_domain_range_pop);
	SET(CORE2, DomainNameCategoryA, on_domain_name_category_a);
	SET(CORE2, DomainNameCategoryW, on_domain_name_category_w);
	SET(CORE2, DomainRegisterStringA, on_register_string_a);
	SET(CORE2, DomainRegisterStringW, on_register_string_w);
	SET(CORE2, DomainCreateA, on_domain_create_a);
	SET(CORE2, DomainCreateW, on_domain_create_w);
	SET(CORE2, DomainDestroy, on_domain_destroy);
	if (!cct_chain.active)
		return;
	SET(CORE2, DomainResourceCreate, on_resource_create);
	SET(CORE2, DomainResourceDestroy, on_resource_destroy);
	SET(CORE2, Initialize, on_initialize);
}
