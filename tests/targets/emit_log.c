/* SPDX-License-Identifier: Apache-2.0
 *
 * emit_log.c - emit.h for tests: writes each event as a line of text.
 *
 * Lines go to the file EMIT_LOG: "PID push|pop|mark DOMAIN NAME CATEGORY PAYLOAD",
 * with "-" for what an event does not have. One write(2) a line, so that lines of
 * several processes never mix.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "emit.h"

static char *texts[4096];
static uint64_t texts_count;
static char *categories[64];

static uint64_t keep(const char *text)
{
	for (uint64_t i = 0; i < texts_count; i++) {
		if (strcmp(texts[i], text) == 0)
			return i + 1;
	}
	texts[texts_count] = strdup(text);
	return ++texts_count;
}

static const char *text_of(uint64_t handle)
{
	return handle > 0 && handle <= texts_count ? texts[handle - 1] : "-";
}

static void line(const char *kind, uint64_t domain, uint64_t string, uint32_t category,
		 int has_payload, uint64_t payload)
{
	char buffer[512];
	char number[32] = "-";
	int fd =
	    open(getenv("EMIT_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (has_payload)
		snprintf(number, sizeof number, "%" PRIu64, payload);
	int bytes = snprintf(buffer, sizeof buffer, "%d %s %s %s %s %s\n",
			     (int)getpid(), kind, text_of(domain), text_of(string),
			     category != 0 ? categories[category % 64] : "-", number);
	if (write(fd, buffer, (size_t)bytes) != bytes)
		abort();
	close(fd);
}

uint64_t cct_emit_domain(const char *name)
{
	return keep(name);
}

uint64_t cct_emit_string(uint64_t domain, const char *text)
{
	return domain != 0 ? keep(text) : 0;
}

void cct_emit_category(uint64_t domain, uint32_t category, const char *name)
{
	if (domain != 0)
		categories[category % 64] = strdup(name);
}

int cct_emit_push(uint64_t domain, uint64_t string, uint32_t category, int has_payload,
		  uint64_t payload)
{
	line("push", domain, string, category, has_payload, payload);
	return 0;
}

int cct_emit_pop(uint64_t domain)
{
	line("pop", domain, 0, 0, 0, 0);
	return 0;
}

void cct_emit_mark(uint64_t domain, uint64_t string, uint32_t category, int has_payload,
		   uint64_t payload)
{
	line("mark", domain, string, category, has_payload, payload);
}

uint64_t cct_emit_start(uint64_t domain, uint64_t string, uint32_t category,
			int has_payload, uint64_t payload)
{
	line("start", domain, string, category, has_payload, payload);
	return string;
}

void cct_emit_end(uint64_t domain, uint64_t range)
{
	line("end", domain, range, 0, 0, 0);
}
