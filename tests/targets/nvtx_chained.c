/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_chained.c - calls that a chained tool must see as they were made. Prints
 * the depths that push and pop returned.
 */
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>

/* As nvToolsExtCudaRt.h would do; the CUDA headers are not needed for it. */
static void name_cuda_device(int device, const char *name)
{
	nvtxNameCudaDeviceA_fakeimpl_fntype function;

	nvtxInitialize(NULL);
	function = nvtxGlobals_v3.nvtxNameCudaDeviceA_impl_fnptr;
	if (function != NULL)
		function(device, name);
}

int main(void)
{
	nvtxDomainHandle_t first = nvtxDomainCreateA("dom");
	nvtxDomainHandle_t second = nvtxDomainCreateA("dom");
	nvtxEventAttributes_t attributes = {
	    .version = NVTX_VERSION,
	    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
	    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
	    .message.registered = nvtxDomainRegisterStringA(first, "text"),
	};
	nvtxResourceAttributes_t resource = {
	    .version = NVTX_VERSION,
	    .size = sizeof(resource),
	    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
	    .message.registered = attributes.message.registered,
	};
	nvtxRangeId_t id;

	name_cuda_device(0, "gpu");
	nvtxDomainNameCategoryA(first, 3, "cat");
	printf("%d\n", nvtxDomainRangePushEx(first, &attributes));
	printf("%d\n", nvtxRangePushA("plain"));
	printf("%d\n", nvtxRangePop());
	printf("%d\n", nvtxDomainRangePop(second));
	nvtxDomainMarkEx(first, &attributes);
	nvtxMarkA("mark");
	id = nvtxDomainRangeStartEx(first, &attributes);
	printf("%llu\n", (unsigned long long)id);
	nvtxDomainRangeEnd(first, id);
	nvtxRangeEnd(nvtxRangeStartA("not the tool's"));
	printf("%d\n", nvtxDomainResourceCreate(first, &resource) != NULL);
	nvtxDomainDestroy(first); /* the second creation still holds it */
	nvtxDomainMarkEx(second, &attributes);
	nvtxDomainDestroy(second);
	return 0;
}
