/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * user_crypto: what libcrypto encrypts and decrypts under the CUDA driver.
 *
 * Attach points: EVP_EncryptUpdate, EVP_DecryptUpdate (ctx, out, outl, in, inl) of
 *                libcrypto. Not EVP_CipherUpdate: it calls one of the two.
 * Requires:      uprobes.
 * Per-event cost: a lookup for each call of a traced thread; an entry, a return and a
 *                record for those that count.
 * Blind spots:   EVP_Cipher, and libraries that bring their own encryption.
 *
 * Counted are calls made inside a probed CUDA call, and calls that come straight from
 * the driver's own crypto library, whichever thread they are made on. The engine's TLS
 * is neither. Bytes with no place to put them are authenticated data: not encrypted.
 */

#define CRYPTO_ENCRYPT CALLS_SITE(CCT_KIND_CRYPTO, 0)
#define CRYPTO_DECRYPT CALLS_SITE(CCT_KIND_CRYPTO, 1)

/* Where a process has the code of the driver's crypto library. */
struct crypto_range {
	u64 first;
	u64 end;
};

BPF_HASH(crypto_callers, u32, struct crypto_range, 4096);

static __always_inline bool crypto_from_driver(struct pt_regs *ctx, u32 pid)
{
	struct crypto_range *range = crypto_callers.lookup(&pid);
	u64 caller = 0;

	if (!range)
		return false;
	if (bpf_probe_read_user(&caller, sizeof(caller), (void *)PT_REGS_SP(ctx))) {
		cct_lose(CCT_KIND_CRYPTO, CCT_LOST_READ);
		return false;
	}
	return caller >= range->first && caller < range->end;
}

static __always_inline void crypto_enter(struct pt_regs *ctx, u32 site, u32 direction)
{
	struct cct_thread *thread = cct_current();
	u64 pid_tgid = bpf_get_current_pid_tgid();
	int size_bytes = (int)PT_REGS_PARM5(ctx);
	bool inside = false;

	if (!thread || !PT_REGS_PARM2(ctx) || size_bytes <= 0)
		return;
#ifdef CCT_CUDA_CALLS
	inside = cuda_inside((u32)pid_tgid);
#endif
	if (!inside && !crypto_from_driver(ctx, pid_tgid >> 32))
		return;
	calls_enter(ctx, site, (u32)pid_tgid, size_bytes, 0, direction);
}

static __always_inline void crypto_leave(struct pt_regs *ctx, u32 site, u32 op)
{
	struct calls_frame frame;
	struct cct_event *event;

	if (!calls_leave(ctx, site, (u32)bpf_get_current_pid_tgid(), &frame))
		return;
	event = calls_event(site, op, &frame);
	if (event)
		cct_submit(event);
}

int on_crypto_encrypt_entry(struct pt_regs *ctx)
{
	crypto_enter(ctx, CRYPTO_ENCRYPT, CCT_TO_DEVICE);
	return 0;
}

int on_crypto_encrypt_return(struct pt_regs *ctx)
{
	crypto_leave(ctx, CRYPTO_ENCRYPT, CCT_IO_ENCRYPT);
	return 0;
}

int on_crypto_decrypt_entry(struct pt_regs *ctx)
{
	crypto_enter(ctx, CRYPTO_DECRYPT, CCT_FROM_DEVICE);
	return 0;
}

int on_crypto_decrypt_return(struct pt_regs *ctx)
{
	crypto_leave(ctx, CRYPTO_DECRYPT, CCT_IO_DECRYPT);
	return 0;
}
