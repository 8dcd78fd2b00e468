/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cipher_program LIBCRYPTO DRIVER: encrypts in the driver's name and in its own, then
 * inside a function that has the name of one of CUDA's.
 *
 * Before each part it prints a line and waits for one.
 */
#include <stdint.h>

#include "cipher_calls.h"

static void *crypto;

__attribute__((noinline, visibility("default"))) int
cuMemcpyHtoD_v2(uint64_t dst, const void *src, size_t size)
{
	__asm__ volatile("" : : "r"(dst), "r"(src));
	cipher_calls(crypto, "EVP_EncryptUpdate", 1, 13, (int)size);
	return 0;
}

static void *load(const char *path)
{
	void *library = dlopen(path, RTLD_NOW);

	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return library;
}

static void wait_for_line(const char *part)
{
	char line[16];

	puts(part);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(1);
}

int main(int argc, char **argv)
{
	void (*driver_ciphers)(void *);
	int result;

	if (argc != 3)
		return 2;
	crypto = load(argv[1]);
	driver_ciphers =
	    (void (*)(void *))cipher_symbol(load(argv[2]), "driver_ciphers");
	wait_for_line("driver");
	driver_ciphers(crypto);
	cipher_calls(crypto, "EVP_EncryptUpdate", 1, 11, 127);
	wait_for_line("own");
	result = cuMemcpyHtoD_v2(0, argv, 61);
	wait_for_line("end");
	return result;
}
