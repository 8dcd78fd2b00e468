/* SPDX-License-Identifier: Apache-2.0
 *
 * text.c - lengths, cuts and conversion of the strings programs hand over.
 */
#define _GNU_SOURCE
#include <string.h>
#include <wchar.h>

#include "agent.h"

/* Where to cut text of more than `bytes` bytes: at most there, at the start of
 * a character (RFC 3629: bytes 10xxxxxx continue one). */
uint32_t cct_cut(const char *text, uint32_t bytes)
{
	uint32_t start = bytes;

	while (start > 0 && bytes - start < 4 &&
	       ((unsigned char)text[start] & 0xC0) == 0x80)
		start--;
	return bytes - start < 4 ? start : bytes; /* no UTF-8 anyway */
}

uint32_t cct_text_bytes(const char *text, uint32_t *flags)
{
	size_t bytes = strnlen(text, CCT_TEXT_MAX + 1);

	if (CCT_LIKELY(bytes <= CCT_TEXT_MAX))
		return (uint32_t)bytes;
	*flags |= CCT_DICT_TRUNCATED;
	return cct_cut(text, CCT_TEXT_MAX);
}

/* Converts to UTF-8; `out` holds CCT_TEXT_MAX bytes. What is no character
 * becomes U+FFFD. wchar_t is UTF-32 here (ISO C's __STDC_ISO_10646__). */
uint32_t cct_utf8_from_wide(const wchar_t *wide, char *out, uint32_t *flags)
{
	uint32_t bytes = 0;

	for (; *wide != 0; wide++) {
		uint32_t c = (uint32_t)*wide;
		uint32_t more;

		if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
			c = 0xFFFD;
		more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
		if (bytes + 1 + more > CCT_TEXT_MAX) {
			*flags |= CCT_DICT_TRUNCATED;
			break;
		}
		if (more == 0)
			out[bytes++] = (char)c;
		else
			out[bytes++] = (char)((0xFF00 >> (more + 1)) | (c >> 6 * more));
		while (more-- > 0)
			out[bytes++] = (char)(0x80 | (c >> 6 * more & 0x3F));
	}
	return bytes;
}
