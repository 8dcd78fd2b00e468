/* SPDX-License-Identifier: Apache-2.0
 *
 * handles.c - what programs create once and use often: domains, registered
 * strings, names of categories and threads.
 *
 * Handles outlive a fork, since the child goes on using them; what they hold
 * of a dictionary is marked with the epoch it belongs to. Creating one twice
 * gives the same handle, so a program that does so in a loop does not grow.
 */
#define _GNU_SOURCE
#include <string.h>

#include "agent.h"

enum { BUCKETS = 1024 };

/* The name of a category or a thread. */
struct label {
	struct label *next;
	struct cct_domain *domain;
	uint32_t type; /* CCT_DICT_CATEGORY or CCT_DICT_THREAD */
	uint32_t id;
	uint32_t bytes;
	uint32_t flags;
	const char *text;
};

static struct cct_domain *domains;
static uint32_t domain_serials;
static struct cct_string *strings[BUCKETS];
static struct label *labels[BUCKETS];
static char wide_text[CCT_TEXT_MAX]; /* lock held */

struct text {
	const char *start;
	uint32_t bytes;
	uint32_t flags;
};

static struct text text_of(const char *text, const wchar_t *wide)
{
	struct text result = {.start = text};

	if (wide != NULL) {
		result.start = wide_text;
		result.bytes = cct_utf8_from_wide(wide, wide_text, &result.flags);
	} else {
		result.bytes = cct_text_bytes(text, &result.flags);
	}
	return result;
}

static uint32_t bucket_of(const struct text *text, const void *domain)
{
	uint64_t hash = (uintptr_t)domain;

	for (uint32_t i = 0; i < text->bytes; i++) /* FNV-1a's multiplier */
		hash = (hash ^ (unsigned char)text->start[i]) * 0x100000001B3u;
	return (uint32_t)(hash ^ hash >> 32) % BUCKETS;
}

static struct cct_domain *find_domain(const struct text *text)
{
	struct cct_domain *domain = domains;

	while (domain != NULL && (domain->bytes != text->bytes ||
				  memcmp(domain->text, text->start, text->bytes) != 0))
		domain = domain->next;
	return domain;
}

struct cct_domain *cct_domain_create(const char *text, const wchar_t *wide)
{
	struct cct_domain *domain;
	struct cct_guard guard;
	struct cct_hold hold;
	struct text name;

	if (text == NULL && wide == NULL)
		return NULL;
	if (!cct_guard_enter(&guard)) {
		cct_lose_in_image(CCT_LOSS_REENTRANT);
		return NULL;
	}
	cct_lock(&hold);
	name = text_of(text, wide);
	domain = find_domain(&name);
	if (domain == NULL)
		domain = cct_alloc(sizeof(*domain) + name.bytes + 1);
	if (domain != NULL && domain->serial == 0) {
		domain->bytes = name.bytes;
		domain->flags = name.flags;
		memcpy(domain->text, name.start, name.bytes);
		domain->serial = ++domain_serials;
		domain->next = domains;
		__atomic_store_n(&domains, domain, __ATOMIC_RELEASE);
	}
	if (domain != NULL)
		domain->users++;
	cct_unlock(&hold);
	cct_guard_leave(&guard);
	return domain;
}

static struct cct_string *find_string(struct cct_string *string,
				      const struct cct_domain *domain,
				      const struct text *text)
{
	while (string != NULL &&
	       (string->domain != domain || string->bytes != text->bytes ||
		memcmp(string->text, text->start, text->bytes) != 0))
		string = string->next;
	return string;
}

struct cct_string *cct_string_register(struct cct_domain *domain, const char *text,
				       const wchar_t *wide)
{
	struct cct_string *string;
	struct cct_guard guard;
	struct cct_hold hold;
	struct text name;
	uint32_t bucket;

	if (text == NULL && wide == NULL)
		return NULL;
	if (!cct_guard_enter(&guard)) {
		cct_lose_in_image(CCT_LOSS_REENTRANT);
		return NULL;
	}
	cct_lock(&hold);
	name = text_of(text, wide);
	bucket = bucket_of(&name, domain);
	string = find_string(strings[bucket], domain, &name);
	if (string == NULL) {
		string = cct_alloc(sizeof(*string) + name.bytes + 1);
		if (string != NULL) {
			string->domain = domain;
			string->bytes = name.bytes;
			string->flags = name.flags;
			memcpy(string->text, name.start, name.bytes);
			string->next = strings[bucket];
			__atomic_store_n(&strings[bucket], string, __ATOMIC_RELEASE);
		}
	}
	cct_unlock(&hold);
	cct_guard_leave(&guard);
	return string;
}

static void append_label(const struct label *label)
{
	struct cct_dict_entry entry = {
	    .type = label->type,
	    .id = label->id,
	    .domain = cct_domain_id_locked(label->domain),
	    .flags = CCT_DICT_HAS_TEXT | label->flags,
	    .bytes = label->bytes,
	};

	if (!cct_dict_append_locked(&entry, label->text))
		cct_lose(cct_image->maps[0].segment->losses, CCT_LOSS_STRING_TABLE_FULL,
			 0);
}

/* A forked child goes on using the categories its parent named. */
void cct_categories_replay_locked(void)
{
	for (uint32_t bucket = 0; bucket < BUCKETS; bucket++)
		for (struct label *label = labels[bucket]; label != NULL;
		     label = label->next)
			if (label->type == CCT_DICT_CATEGORY && label->text != NULL)
				append_label(label);
}

static bool keep_label(const struct label *wanted)
{
	struct text name = {wanted->text, wanted->bytes, 0};
	struct label **first =
	    &labels[(wanted->id ^ (uintptr_t)wanted->domain >> 4) % BUCKETS];
	struct label *label = *first;
	char *copy;

	while (label != NULL &&
	       (label->type != wanted->type || label->id != wanted->id ||
		label->domain != wanted->domain))
		label = label->next;
	if (label != NULL && label->text != NULL && label->bytes == name.bytes &&
	    memcmp(label->text, name.start, name.bytes) == 0)
		return false; /* as it was called before */
	copy = cct_alloc(name.bytes + 1);
	if (copy == NULL)
		return true;
	memcpy(copy, name.start, name.bytes);
	if (label == NULL) {
		label = cct_alloc(sizeof(*label));
		if (label == NULL)
			return true;
		*label = *wanted;
		label->text = copy;
		label->next = *first;
		__atomic_store_n(first, label, __ATOMIC_RELEASE);
	} else {
		label->text = copy;
		label->bytes = wanted->bytes;
		label->flags = wanted->flags;
	}
	return true;
}

static void set_label(struct label *label, const char *text, const wchar_t *wide)
{
	struct cct_guard guard;
	struct cct_hold hold;
	struct text name;

	if (text == NULL && wide == NULL)
		return;
	if (!cct_guard_enter(&guard)) {
		cct_lose_in_image(CCT_LOSS_REENTRANT);
		return;
	}
	cct_lock(&hold);
	name = text_of(text, wide);
	label->text = name.start;
	label->bytes = name.bytes;
	label->flags = name.flags;
	if (cct_attach_locked() && keep_label(label))
		append_label(label);
	cct_unlock(&hold);
	cct_guard_leave(&guard);
}

void cct_name_category(struct cct_domain *domain, uint32_t category, const char *text,
		       const wchar_t *wide)
{
	struct label label = {
	    .type = CCT_DICT_CATEGORY, .id = category, .domain = domain};

	set_label(&label, text, wide);
}

void cct_name_thread(uint32_t tid, const char *text, const wchar_t *wide)
{
	struct label label = {.type = CCT_DICT_THREAD, .id = tid};

	set_label(&label, text, wide);
}
