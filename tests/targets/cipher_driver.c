/* SPDX-License-Identifier: Apache-2.0 */
/* cipher_driver: a library in the place of the CUDA driver's own crypto library. */
#include "cipher_calls.h"

void driver_ciphers(void *library);

void driver_ciphers(void *library)
{
	cipher_calls(library, "EVP_EncryptUpdate", 1, 7, 1009);
	cipher_calls(library, "EVP_DecryptUpdate", 0, 5, 499);
	cipher_calls(library, "EVP_CipherUpdate", 1, 3, 251);
	cipher_calls(library, "EVP_CipherUpdate", 0, 2, 241);
}
