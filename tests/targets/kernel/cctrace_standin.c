// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * cctrace_standin: functions that only a confidential guest with an NVIDIA GPU has, and
 * known numbers of calls of them.
 *
 * Named and called as the real ones are; they do nothing. Writing "new", "old" or "csl"
 * to the parameter `run` makes the calls as that generation of the driver does;
 * "convert" calls the kernel's own functions for page conversion, "exits" the handler
 * of virtualization exceptions; "ioctl ADDRESS" passes the parameters there, in the
 * memory of who writes, to the entry of control requests.
 */
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/set_memory.h>
#include <linux/string.h>

#define ENCRYPTIONS 7
#define ENCRYPTED_BYTES 4093
#define DECRYPTIONS 5
#define DECRYPTED_BYTES 4091
#define BUFFERS_TAKEN 13
#define BUFFERS_REFUSED 2
#define BUFFERS_GIVEN_BACK 11
#define CONVERSIONS 3
#define CONVERTED_PAGES 2
#define REQUESTS 7
#define OTHER_REQUESTS 3
#define RM_CONTROL 0xc020462a
#define RM_OTHER 0xc020462b

struct exception {
	u64 exit_reason;
	u64 more[4];
};

/* What the compiler may not look into, so that it neither drops nor merges calls. */
#define OPAQUE __attribute__((noipa)) noinline

typedef int (*decrypt_old)(void *, void *, const void *, const void *, size_t,
			   const void *);

void uvm_conf_computing_cpu_encrypt(void *channel, void *dst, const void *src, void *iv,
				    size_t size, void *tag);
int uvm_conf_computing_cpu_decrypt(void *channel, void *dst, const void *src,
				   const void *iv, u32 key_version, size_t size,
				   const void *tag);
int nvUvmInterfaceCslEncrypt(void *context, u32 size, const u8 *in, void *iv, u8 *out,
			     u8 *tag);
int nvUvmInterfaceCslDecrypt(void *context, u32 size, const u8 *in, const void *iv,
			     u32 key, u8 *out, const u8 *more, u32 more_size,
			     const u8 *tag);
int uvm_conf_computing_dma_buffer_alloc(void *pool, void **buffer, void *tracker);
void uvm_conf_computing_dma_buffer_free(void *pool, void *buffer, void *tracker);
bool tdx_handle_virt_exception(void *regs, struct exception *ve);
long nvidia_unlocked_ioctl(void *file, unsigned int request, unsigned long argument);

OPAQUE void uvm_conf_computing_cpu_encrypt(void *channel, void *dst, const void *src,
					   void *iv, size_t size, void *tag)
{
	barrier();
}

OPAQUE int uvm_conf_computing_cpu_decrypt(void *channel, void *dst, const void *src,
					  const void *iv, u32 key_version, size_t size,
					  const void *tag)
{
	barrier();
	return 0;
}

OPAQUE int nvUvmInterfaceCslEncrypt(void *context, u32 size, const u8 *in, void *iv,
				    u8 *out, u8 *tag)
{
	barrier();
	return 0;
}

OPAQUE int nvUvmInterfaceCslDecrypt(void *context, u32 size, const u8 *in,
				    const void *iv, u32 key, u8 *out, const u8 *more,
				    u32 more_size, const u8 *tag)
{
	barrier();
	return 0;
}

/* The pool is empty for a caller without a tracker. */
OPAQUE int uvm_conf_computing_dma_buffer_alloc(void *pool, void **buffer, void *tracker)
{
	barrier();
	return tracker ? 0 : 0x51; /* NV_ERR_NO_MEMORY */
}

OPAQUE void uvm_conf_computing_dma_buffer_free(void *pool, void *buffer, void *tracker)
{
	barrier();
}

OPAQUE bool tdx_handle_virt_exception(void *regs, struct exception *ve)
{
	barrier();
	return true;
}

OPAQUE long nvidia_unlocked_ioctl(void *file, unsigned int request,
				  unsigned long argument)
{
	barrier();
	return 0;
}

static void use_buffers(u8 *page)
{
	void *buffer;
	int i;

	for (i = 0; i < BUFFERS_TAKEN; i++)
		uvm_conf_computing_dma_buffer_alloc(page, &buffer, page);
	for (i = 0; i < BUFFERS_REFUSED; i++)
		uvm_conf_computing_dma_buffer_alloc(page, &buffer, NULL);
	for (i = 0; i < BUFFERS_GIVEN_BACK; i++)
		uvm_conf_computing_dma_buffer_free(page, page, page);
}

static void encrypt(u8 *page, bool old)
{
	decrypt_old decrypt =
	    (decrypt_old)(unsigned long)uvm_conf_computing_cpu_decrypt;
	int i;

	for (i = 0; i < ENCRYPTIONS; i++)
		uvm_conf_computing_cpu_encrypt(page, page, page, page, ENCRYPTED_BYTES,
					       page);
	for (i = 0; i < DECRYPTIONS; i++) {
		if (old)
			decrypt(page, page, page, page, DECRYPTED_BYTES, page);
		else
			uvm_conf_computing_cpu_decrypt(page, page, page, page, 17,
						       DECRYPTED_BYTES, page);
	}
	use_buffers(page);
}

static void encrypt_csl(u8 *page)
{
	int i;

	for (i = 0; i < ENCRYPTIONS; i++)
		nvUvmInterfaceCslEncrypt(page, ENCRYPTED_BYTES, page, page, page, page);
	for (i = 0; i < DECRYPTIONS; i++)
		nvUvmInterfaceCslDecrypt(page, DECRYPTED_BYTES, page, page, 17, page,
					 NULL, 0, page);
}

static void convert(void)
{
	unsigned long pages = __get_free_pages(GFP_KERNEL, 1);
	int i;

	if (!pages)
		return;
	for (i = 0; i < CONVERSIONS; i++) {
		set_memory_decrypted(pages, CONVERTED_PAGES);
		set_memory_encrypted(pages, CONVERTED_PAGES);
	}
	free_pages(pages, 1);
}

/* 19 HLT, 23 I/O, 29 EPT violation, 31 of a number beyond the table. */
static void take_exits(void)
{
	static const struct {
		u64 reason;
		int count;
	} exits[] = {{12, 19}, {30, 23}, {48, 29}, {1000, 31}};
	struct exception ve = {};
	unsigned int which;
	int i;

	for (which = 0; which < ARRAY_SIZE(exits); which++) {
		ve.exit_reason = exits[which].reason;
		for (i = 0; i < exits[which].count; i++)
			tdx_handle_virt_exception(NULL, &ve);
	}
}

static void request(const char *address)
{
	unsigned long parameters;
	int i;

	if (kstrtoul(address, 0, &parameters))
		return;
	for (i = 0; i < REQUESTS; i++)
		nvidia_unlocked_ioctl(NULL, RM_CONTROL, parameters);
	for (i = 0; i < OTHER_REQUESTS; i++)
		nvidia_unlocked_ioctl(NULL, RM_OTHER, parameters);
}

static int run(const char *what, const struct kernel_param *parameter)
{
	u8 *page = (u8 *)__get_free_page(GFP_KERNEL);

	if (!page)
		return -ENOMEM;
	if (sysfs_streq(what, "new"))
		encrypt(page, false);
	else if (sysfs_streq(what, "old"))
		encrypt(page, true);
	else if (sysfs_streq(what, "csl"))
		encrypt_csl(page);
	else if (sysfs_streq(what, "convert"))
		convert();
	else if (sysfs_streq(what, "exits"))
		take_exits();
	else if (!strncmp(what, "ioctl ", 6))
		request(what + 6);
	free_page((unsigned long)page);
	return 0;
}

static const struct kernel_param_ops run_ops = {.set = run};
module_param_cb(run, &run_ops, NULL, 0200);
MODULE_PARM_DESC(run, "calls to make");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("stand-ins for functions that cctrace probes");
