/* SPDX-License-Identifier: Apache-2.0
 *
 * profile.c - reading a profile: the strict part of TOML that profiles use.
 *
 * [section], key = integer, float, true, false or "string", and comments. Every key
 * must be known and every known key must be there: a misspelt figure is an error, not a
 * zero.
 */
#define _GNU_SOURCE
#include "profile.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PROFILE "b300"
#define ENTRIES_MAX 128
#define TEXT_MAX 128

struct profile sim_profile;

struct entry {
	char key[TEXT_MAX]; /* with its section: copy.h2d.pinned.mode */
	char value[TEXT_MAX];
	int line;
	int is_string;
	int used;
};

static struct {
	char path[4096];
	struct entry entries[ENTRIES_MAX];
	int count;
	int failed;
} file;

static void fail(int line, const char *what, const char *detail, const char *hint)
{
	if (line)
		fprintf(stderr, "simcuda: %s:%d: %s: %s\nhint: %s\n", file.path, line,
			what, detail, hint);
	else
		fprintf(stderr, "simcuda: %s: %s: %s\nhint: %s\n", file.path, what,
			detail, hint);
	file.failed = 1;
}

static char *trim(char *text)
{
	char *end = text + strlen(text);

	while (isspace((unsigned char)*text))
		text++;
	while (end > text && isspace((unsigned char)end[-1]))
		*--end = 0;
	return text;
}

static void cut_comment(char *text)
{
	int quoted = 0;

	for (; *text; text++) {
		if (*text == '"')
			quoted = !quoted;
		if (*text == '#' && !quoted) {
			*text = 0;
			return;
		}
	}
}

static struct entry *find(const char *key)
{
	int i;

	for (i = 0; i < file.count; i++)
		if (strcmp(file.entries[i].key, key) == 0)
			return &file.entries[i];
	return NULL;
}

static int parse_line(char *text, int line, char *section)
{
	struct entry *entry;
	char *equals, *key, *value;
	size_t length;

	cut_comment(text);
	text = trim(text);
	length = strlen(text);
	if (!length)
		return 0;
	if (text[0] == '[') {
		if (text[length - 1] != ']' || length < 3 || length > TEXT_MAX / 2) {
			fail(line, "not a section", text,
			     "write [name] or [name.name]");
			return -1;
		}
		text[length - 1] = 0;
		snprintf(section, TEXT_MAX / 2, "%s", trim(text + 1));
		return 0;
	}
	equals = strchr(text, '=');
	if (!equals || !*section) {
		fail(line, "not a key with a value inside a section", text,
		     "write key = value below a [section]");
		return -1;
	}
	*equals = 0;
	key = trim(text);
	value = trim(equals + 1);
	length = strlen(value);
	if (file.count == ENTRIES_MAX || strlen(key) >= TEXT_MAX / 2 ||
	    length >= TEXT_MAX || !length) {
		fail(line, "too many keys, or one too long or empty", key,
		     "a profile has the keys that README.md lists");
		return -1;
	}
	entry = &file.entries[file.count];
	snprintf(entry->key, sizeof(entry->key), "%s.%s", section, key);
	if (find(entry->key)) {
		fail(line, "key given twice", entry->key, "keep one of them");
		return -1;
	}
	entry->line = line;
	entry->is_string = value[0] == '"';
	if (entry->is_string) {
		if (length < 2 || value[length - 1] != '"') {
			fail(line, "unfinished string", value, "end it with \"");
			return -1;
		}
		value[length - 1] = 0;
		value++;
	}
	memcpy(entry->value, value, strlen(value) + 1);
	file.count++;
	return 0;
}

static struct entry *need(const char *key, int is_string)
{
	struct entry *entry = find(key);

	if (!entry) {
		fail(0, "key missing", key, "README.md lists the keys of a profile");
		return NULL;
	}
	entry->used = 1;
	if (entry->is_string != is_string) {
		fail(entry->line, is_string ? "not a string" : "not a number or bool",
		     key,
		     is_string ? "write it in \"quotes\"" : "write it without quotes");
		return NULL;
	}
	return entry;
}

static double number(const char *key, double least)
{
	struct entry *entry = need(key, 0);
	char digits[TEXT_MAX], *end;
	size_t length = 0;
	const char *from;
	double value;

	if (!entry)
		return 0;
	for (from = entry->value; *from; from++)
		if (*from != '_')
			digits[length++] = *from;
	digits[length] = 0;
	errno = 0;
	value = strtod(digits, &end);
	if (errno || *end || end == digits || !(value >= least) || value > 1e18) {
		fail(entry->line, "not a number in range", entry->value,
		     "times and sizes are >= 0, bandwidths and counts > 0");
		return 0;
	}
	return value;
}

static uint64_t integer(const char *key, double least)
{
	double value = number(key, least);
	struct entry *entry = find(key);

	if (entry && strpbrk(entry->value, ".eE")) {
		fail(entry->line, "not an integer", entry->value,
		     "nanoseconds, bytes and counts are integers");
		return 0;
	}
	return (uint64_t)value;
}

static int boolean(const char *key)
{
	struct entry *entry = need(key, 0);

	if (!entry)
		return 0;
	if (strcmp(entry->value, "true") == 0)
		return 1;
	if (strcmp(entry->value, "false") != 0)
		fail(entry->line, "not a bool", entry->value, "write true or false");
	return 0;
}

static enum copy_mode mode(const char *key)
{
	static const char *const names[] = {"async", "staged", "host_synchronous"};
	struct entry *entry = need(key, 1);
	unsigned i;

	for (i = 0; entry && i < 3; i++)
		if (strcmp(entry->value, names[i]) == 0)
			return (enum copy_mode)i;
	if (entry)
		fail(entry->line, "no such mode", entry->value,
		     "modes are async, staged and host_synchronous");
	return MODE_ASYNC;
}

static void figures(struct copy_figures *into, const char *section, int has_mode)
{
	char key[TEXT_MAX];

	if (has_mode) {
		snprintf(key, sizeof(key), "%s.mode", section);
		into->mode = mode(key);
	}
	snprintf(key, sizeof(key), "%s.host_ns", section);
	into->host_ns = integer(key, 0);
	snprintf(key, sizeof(key), "%s.latency_ns", section);
	into->latency_ns = integer(key, 0);
	snprintf(key, sizeof(key), "%s.gb_per_s", section);
	into->gb_per_s = number(key, 1e-6);
}

static void take_all(struct profile *p)
{
	static const char *const directions[] = {"h2d", "d2h"};
	static const char *const kinds[] = {"pinned", "pageable", "managed"};
	struct entry *entry;
	char section[TEXT_MAX];
	int d, k, i;

	p->confidential = boolean("profile.confidential");
	entry = need("device.name", 1);
	if (entry)
		memcpy(p->device_name, entry->value, sizeof(p->device_name));
	p->device_count = integer("device.count", 1);
	p->device_memory_bytes = integer("device.memory_bytes", 1);
	p->capability_major = integer("device.capability_major", 1);
	p->capability_minor = integer("device.capability_minor", 0);
	p->launch_host_ns = integer("launch.host_ns", 0);
	p->launch_latency_ns = integer("launch.latency_ns", 0);
	p->graph_host_ns = integer("launch.graph_host_ns", 0);
	p->kernel_ns = integer("launch.kernel_ns", 0);
	p->sync_host_ns = integer("sync.host_ns", 0);
	p->query_host_ns = integer("sync.query_ns", 0);
	p->event_host_ns = integer("sync.event_ns", 0);
	p->alloc_device_ns = integer("alloc.device_ns", 0);
	p->alloc_host_ns = integer("alloc.host_ns", 0);
	p->alloc_async_ns = integer("alloc.async_ns", 0);
	p->free_ns = integer("alloc.free_ns", 0);
	p->first_copy_ns = integer("alloc.first_copy_ns", 0);
	p->copies_at_once = integer("copy.at_once", 1);
	for (d = 0; d < DIRECTIONS; d++) {
		for (k = 0; k < HOST_KINDS; k++) {
			snprintf(section, sizeof(section), "copy.%s.%s", directions[d],
				 kinds[k]);
			figures(&p->bridge[d][k], section, 1);
		}
	}
	figures(&p->d2d, "copy.d2d", 0);
	figures(&p->p2p, "copy.p2p", 0);
	p->memset_host_ns = integer("memset.host_ns", 0);
	p->memset_gb_per_s = number("memset.gb_per_s", 1e-6);
	p->collective_latency_ns = integer("collective.latency_ns", 0);
	p->collective_gb_per_s = number("collective.gb_per_s", 1e-6);
	if (p->device_count > 64 || p->copies_at_once > 64)
		fail(0, "too many", "device.count or copy.at_once", "at most 64");
	for (i = 0; i < file.count; i++)
		if (!file.entries[i].used)
			fail(file.entries[i].line, "unknown key", file.entries[i].key,
			     "README.md lists the keys of a profile");
}

/* Where profiles lie: beside the library. */
static void find_file(const char *name)
{
	const char *directory = getenv("SIMCUDA_PROFILES");
	Dl_info info;
	char own[3072];
	char *slash;

	if (strchr(name, '/')) {
		snprintf(file.path, sizeof(file.path), "%s", name);
		return;
	}
	if (!directory || !*directory) {
		own[0] = 0;
		if (dladdr(&sim_profile, &info) && info.dli_fname)
			snprintf(own, sizeof(own), "%s", info.dli_fname);
		slash = strrchr(own, '/');
		snprintf(slash ? slash : own, 32, "/profiles");
		directory = own;
	}
	snprintf(file.path, sizeof(file.path), "%s/%s.toml", directory, name);
}

static int read_file(const char *name)
{
	char line[1024], section[TEXT_MAX / 2] = "";
	FILE *stream = fopen(file.path, "re");
	int number_of_line = 0;

	if (!stream) {
		fail(
		    0, "cannot read the profile", strerror(errno),
		    "SIMCUDA_PROFILE is b300, b300-cc, h200, h200-cc, or a path with a "
		    "slash in it");
		return -1;
	}
	while (!file.failed && fgets(line, sizeof(line), stream))
		parse_line(line, ++number_of_line, section);
	fclose(stream);
	if (!file.failed)
		take_all(&sim_profile);
	snprintf(sim_profile.name, sizeof(sim_profile.name), "%s", name);
	return file.failed ? -1 : 0;
}

static int read_environment(void)
{
	const char *jitter = getenv("SIMCUDA_JITTER"), *seed = getenv("SIMCUDA_SEED");
	char *end;

	if (jitter && *jitter) {
		sim_profile.jitter = strtod(jitter, &end);
		if (*end || !(sim_profile.jitter >= 0 && sim_profile.jitter < 1)) {
			fprintf(stderr,
				"simcuda: SIMCUDA_JITTER=%s is not a fraction\n"
				"hint: 0.1 spreads every time by up to 10%% each way\n",
				jitter);
			return -1;
		}
	}
	sim_profile.seed = 1;
	if (seed && *seed) {
		sim_profile.seed = strtoull(seed, &end, 10);
		if (*end) {
			fprintf(stderr,
				"simcuda: SIMCUDA_SEED=%s is not a number\n"
				"hint: any integer from 0 up\n",
				seed);
			return -1;
		}
	}
	return 0;
}

static int loaded = -1;

static void load_once(void)
{
	const char *name = getenv("SIMCUDA_PROFILE");

	if (!name || !*name)
		name = DEFAULT_PROFILE;
	find_file(name);
	loaded = read_file(name) || read_environment() ? -1 : 0;
}

int profile_load(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, load_once);
	return loaded;
}

uint64_t profile_jitter(uint64_t dur_ns)
{
	static atomic_uint_fast64_t threads;
	static __thread uint64_t state;
	double unit;

	if (sim_profile.jitter == 0)
		return dur_ns;
	/* xorshift64*, Marsaglia 2003 and Vigna 2016; each thread has its sequence. */
	if (!state)
		state = (sim_profile.seed + 1) * 0x9e3779b97f4a7c15u +
			atomic_fetch_add(&threads, 1) * 0xbf58476d1ce4e5b9u + 1;
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	unit = (double)((state * 0x2545f4914f6cdd1du) >> 11) / 9007199254740992.0;
	return (uint64_t)((double)dur_ns * (1 + sim_profile.jitter * (2 * unit - 1)));
}

uint64_t profile_transfer_ns(uint64_t size_bytes, double gb_per_s)
{
	/* A GB/s is a byte per nanosecond. */
	return (uint64_t)((double)size_bytes / gb_per_s);
}
