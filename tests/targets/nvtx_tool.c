/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_tool.c - another NVTX tool, which the agent is chained to.
 *
 * Writes each call it gets as a line to the file NVTX_TOOL_LOG names. It gives
 * out handles of its own and stops the program when it is handed any other.
 * NVTX_TOOL_MODE=refuse makes it decline, quiet emit nothing itself.
 */
#define _GNU_SOURCE
#include <nvtx3/nvToolsExt.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct handle {
	uint32_t magic;
	char text[60];
};

enum { DOMAIN_MAGIC = 0x444f4d, STRING_MAGIC = 0x535452 };

static int depth;
static nvtxRangeId_t ids = 41;

static void say(const char *call, const char *domain, const char *text)
{
	const char *path = getenv("NVTX_TOOL_LOG");
	char line[256];
	int bytes = snprintf(line, sizeof(line), "%s %s %s\n", call, domain, text);
	int fd = open(path == NULL ? "/dev/null" : path, O_WRONLY | O_CREAT | O_APPEND,
		      0600);

	if (fd < 0 || write(fd, line, (size_t)bytes) != bytes)
		abort();
	close(fd);
}

static const char *text_of(const void *pointer, uint32_t magic)
{
	const struct handle *handle = pointer;

	if (handle == NULL)
		return "-";
	if (handle->magic != magic)
		abort();
	return handle->text;
}

static const char *message(const nvtxEventAttributes_t *attributes)
{
	if (attributes->messageType == NVTX_MESSAGE_TYPE_REGISTERED)
		return text_of(attributes->message.registered, STRING_MAGIC);
	return attributes->message.ascii;
}

static void *new_handle(uint32_t magic, const char *text)
{
	struct handle *handle = calloc(1, sizeof(*handle));

	handle->magic = magic;
	snprintf(handle->text, sizeof(handle->text), "%s", text);
	return handle;
}

static nvtxDomainHandle_t create_domain(const char *name)
{
	say("DomainCreateA", "-", name);
	return new_handle(DOMAIN_MAGIC, name);
}

static void destroy_domain(nvtxDomainHandle_t domain)
{
	say("DomainDestroy", text_of(domain, DOMAIN_MAGIC), "");
}

static nvtxStringHandle_t register_string(nvtxDomainHandle_t domain, const char *text)
{
	say("RegisterStringA", text_of(domain, DOMAIN_MAGIC), text);
	return new_handle(STRING_MAGIC, text);
}

static void name_category(nvtxDomainHandle_t domain, uint32_t category,
			  const char *name)
{
	(void)category;
	say("NameCategoryA", text_of(domain, DOMAIN_MAGIC), name);
}

static void domain_mark(nvtxDomainHandle_t domain,
			const nvtxEventAttributes_t *attributes)
{
	say("DomainMarkEx", text_of(domain, DOMAIN_MAGIC), message(attributes));
}

static int domain_push(nvtxDomainHandle_t domain,
		       const nvtxEventAttributes_t *attributes)
{
	say("DomainRangePushEx", text_of(domain, DOMAIN_MAGIC), message(attributes));
	return depth++ + 1000;
}

static int domain_pop(nvtxDomainHandle_t domain)
{
	say("DomainRangePop", text_of(domain, DOMAIN_MAGIC), "");
	return --depth + 1000;
}

static nvtxRangeId_t domain_start(nvtxDomainHandle_t domain,
				  const nvtxEventAttributes_t *attributes)
{
	say("DomainRangeStartEx", text_of(domain, DOMAIN_MAGIC), message(attributes));
	return ++ids;
}

static void domain_end(nvtxDomainHandle_t domain, nvtxRangeId_t id)
{
	char text[24];

	snprintf(text, sizeof(text), "%d", (int)id);
	say("DomainRangeEnd", text_of(domain, DOMAIN_MAGIC), text);
}

static nvtxResourceHandle_t create_resource(nvtxDomainHandle_t domain,
					    nvtxResourceAttributes_t *attributes)
{
	const char *text = text_of(attributes->message.registered, STRING_MAGIC);

	say("ResourceCreate", text_of(domain, DOMAIN_MAGIC), text);
	return new_handle(0, text);
}

static void mark_a(const char *text)
{
	say("MarkA", "-", text);
}

static int push_a(const char *text)
{
	say("RangePushA", "-", text);
	return depth++ + 1000;
}

static int pop(void)
{
	say("RangePop", "-", "");
	return --depth + 1000;
}

static void name_cuda_device(int device, const char *name)
{
	(void)device;
	say("NameCudaDeviceA", "-", name);
}

static void set(NvtxGetExportTableFunc_t get_table, NvtxCallbackModule module,
		unsigned int id, void *function)
{
	const NvtxExportTableCallbacks *callbacks = get_table(NVTX_ETID_CALLBACKS);
	NvtxFunctionTable table;
	unsigned int size;

	if (!callbacks->GetModuleFunctionTable(module, &table, &size) || id >= size)
		abort();
	memcpy(table[id], &function, sizeof(function));
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table)
{
	const char *mode = getenv("NVTX_TOOL_MODE");
	const NvtxExportTableVersionInfo *version = get_table(NVTX_ETID_VERSIONINFO);

	if (version == NULL || version->version != NVTX_VERSION)
		abort();
	say("Initialize", "-", mode == NULL ? "" : mode);
	set(get_table, NVTX_CB_MODULE_CORE, NVTX_CBID_CORE_MarkA, mark_a);
	if (mode != NULL && strcmp(mode, "refuse") == 0)
		return 0;
	/* The tool uses NVTX itself, which must not come back to it. */
	if (mode == NULL)
		nvtxMarkA("the tool's own");
	set(get_table, NVTX_CB_MODULE_CORE, NVTX_CBID_CORE_RangePushA, push_a);
	set(get_table, NVTX_CB_MODULE_CORE, NVTX_CBID_CORE_RangePop, pop);
	set(get_table, NVTX_CB_MODULE_CUDART, NVTX_CBID_CUDART_NameCudaDeviceA,
	    name_cuda_device);
#define SET2(name, function)                                                           \
	set(get_table, NVTX_CB_MODULE_CORE2, NVTX_CBID_CORE2_##name, function)
	SET2(DomainMarkEx, domain_mark);
	SET2(DomainRangeStartEx, domain_start);
	SET2(DomainRangeEnd, domain_end);
	SET2(DomainRangePushEx, domain_push);
	SET2(DomainRangePop, domain_pop);
	SET2(DomainResourceCreate, create_resource);
	SET2(DomainNameCategoryA, name_category);
	SET2(DomainRegisterStringA, register_string);
	SET2(DomainCreateA, create_domain);
	SET2(DomainDestroy, destroy_domain);
	return 1;
}
