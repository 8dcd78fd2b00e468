/* SPDX-License-Identifier: Apache-2.0 */
/* cipher_calls: known numbers of OpenSSL cipher calls, from whoever includes this. */
#ifndef CIPHER_CALLS_H
#define CIPHER_CALLS_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

/* The few declarations of <openssl/evp.h> that are needed, so that its package is not.
 */
typedef int (*cipher_update)(void *, unsigned char *, int *, const unsigned char *,
			     int);
typedef int (*cipher_init)(void *, const void *, void *, const unsigned char *,
			   const unsigned char *, int);

static void *cipher_symbol(void *library, const char *name)
{
	void *symbol = dlsym(library, name);

	if (!symbol) {
		fprintf(stderr, "libcrypto has no %s\n", name);
		exit(1);
	}
	return symbol;
}

/*
 * Make `calls` calls of `function` on `size_bytes` each, after one that only
 * authenticates as many.
 */
static inline void cipher_calls(void *library, const char *function, int encrypt,
				int calls, int size_bytes)
{
	void *(*make)(void) =
	    (void *(*)(void))cipher_symbol(library, "EVP_CIPHER_CTX_new");
	void (*drop)(void *) =
	    (void (*)(void *))cipher_symbol(library, "EVP_CIPHER_CTX_free");
	const void *(*gcm)(void) =
	    (const void *(*)(void))cipher_symbol(library, "EVP_aes_256_gcm");
	cipher_init init = (cipher_init)cipher_symbol(library, "EVP_CipherInit_ex");
	cipher_update update = (cipher_update)cipher_symbol(library, function);
	static unsigned char in[4096], out[4096 + 64];
	void *context = make();
	int written, ok;

	ok = context && init(context, gcm(), NULL, in, in, encrypt) == 1;
	ok = ok && update(context, NULL, &written, in, size_bytes) == 1;
	for (int i = 0; ok && i < calls; i++)
		ok = update(context, out, &written, in, size_bytes) == 1;
	if (!ok) {
		fprintf(stderr, "%s failed\n", function);
		exit(1);
	}
	drop(context);
}

#endif
