/* SPDX-License-Identifier: Apache-2.0
 *
 * dict.c - from names to keys.
 *
 * The dictionary log in the first segment is written once per name, under the
 * image's lock. Lookups take no lock: an open-addressing table in private
 * memory maps the hash of a name to its entry in the log. It only ever grows,
 * into a new table; the old one stays for readers that still hold it.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "events.h"

enum {
	TABLE_FIRST = 1 << 12, /* places; a power of two */
};

#define NO_DOMAIN_ENTRY 0x80000000u /* in ids of domains the log had no room for */

struct place {
	uint64_t hash;
	uint32_t offset8;     /* of the entry in the log, in units of 8 bytes */
	_Atomic uint32_t key; /* written last; 0: free */
};

struct cct_table {
	uint64_t places; /* a power of two */
	uint64_t used;
	struct place place[];
};

__extension__ typedef unsigned __int128 u128;

static uint64_t mix(uint64_t a, uint64_t b)
{
	u128 product = (u128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_name(const struct cct_dict_entry *entry, const char *text)
{
	uint64_t hash =
	    mix(((uint64_t)entry->domain << 32 | entry->category) ^ 0x9E3779B97F4A7C15u,
		((uint64_t)entry->color << 32 | entry->flags << 20 | entry->bytes) ^
		    0xC2B2AE3D27D4EB4Fu);
	uint32_t left = entry->bytes;
	uint64_t word = 0;

	for (; left >= 8; left -= 8, text += 8) {
		memcpy(&word, text, 8);
		hash = mix(hash ^ word, 0x9E3779B97F4A7C15u);
	}
	word = 0;
	memcpy(&word, text, left);
	hash = mix(hash ^ word, 0xC2B2AE3D27D4EB4Fu);
	return hash;
}

static struct cct_dict_entry *entry_at(uint32_t offset8)
{
	return (struct cct_dict_entry *)(cct_image->dict + 8 * (uint64_t)offset8);
}

static bool same_name(const struct cct_dict_entry *a, const struct cct_dict_entry *b,
		      const char *text)
{
	return a->domain == b->domain && a->category == b->category &&
	       a->color == b->color && a->flags == b->flags && a->bytes == b->bytes &&
	       memcmp(a + 1, text, a->bytes) == 0;
}

static uint32_t find(struct cct_table *table, uint64_t hash,
		     const struct cct_dict_entry *entry, const char *text,
		     const char **content)
{
	for (uint64_t i = hash;; i++) {
		struct place *place = &table->place[i & (table->places - 1)];
		uint32_t key = atomic_load_explicit(&place->key, memory_order_acquire);

		if (key == 0)
			return 0;
		if (place->hash == hash &&
		    same_name(entry_at(place->offset8), entry, text)) {
			*content = (const char *)(entry_at(place->offset8) + 1);
			return key;
		}
	}
}

/* The table is never more than half full, so there is a free place. */
static void insert(struct cct_table *table, uint64_t hash, uint32_t offset8,
		   uint32_t key)
{
	uint64_t i = hash & (table->places - 1);

	while (table->place[i].key != 0)
		i = (i + 1) & (table->places - 1);
	table->place[i].hash = hash;
	table->place[i].offset8 = offset8;
	atomic_store_explicit(&table->place[i].key, key, memory_order_release);
	table->used++;
}

static struct cct_table *new_table(uint64_t places)
{
	struct cct_table *table =
	    cct_map_image(sizeof(*table) + places * sizeof(table->place[0]));

	if (table != NULL)
		table->places = places;
	return table;
}

static struct cct_table *table_with_room(void)
{
	struct cct_table *table = cct_image->table;
	struct cct_table *bigger;

	if (table->used < table->places / 2)
		return table;
	bigger = new_table(table->places * 2);
	if (bigger == NULL)
		return NULL;
	for (uint64_t i = 0; i < table->places; i++)
		if (table->place[i].key != 0)
			insert(bigger, table->place[i].hash, table->place[i].offset8,
			       table->place[i].key);
	atomic_store_explicit(&cct_image->table, bigger, memory_order_release);
	return bigger;
}

bool cct_dict_init_locked(void)
{
	struct cct_image *image = cct_image;
	struct cct_segment *segment = image->maps[0].segment;
	struct cct_table *table = new_table(TABLE_FIRST);

	if (table == NULL)
		return false;
	image->dict = (uint8_t *)segment + segment->dict_offset;
	image->dict_bytes = segment->dict_bytes;
	image->table = table;
	cct_categories_replay_locked();
	return true;
}

/* Once an entry does not fit, none is tried again: names then are lost for
 * good, rather than some of them at random. */
bool cct_dict_append_locked(const struct cct_dict_entry *entry, const char *text)
{
	struct cct_image *image = cct_image;
	uint64_t bytes = sizeof(*entry) + ((entry->bytes + 7u) & ~7u);
	struct cct_dict_entry *place = (void *)(image->dict + image->dict_used);

	if (image->dict_full || bytes > image->dict_bytes - image->dict_used) {
		image->dict_full = 1;
		return false;
	}
	*place = *entry;
	memcpy(place + 1, text, entry->bytes);
	image->dict_used += bytes;
	__atomic_store_n(&image->maps[0].segment->dict_head, image->dict_used,
			 __ATOMIC_RELEASE);
	return true;
}

uint32_t cct_domain_id_locked(struct cct_domain *domain)
{
	uint64_t epoch = cct_image->epoch;
	uint64_t cached = domain == NULL ? epoch << 32 : domain->cached;
	struct cct_dict_entry entry = {.type = CCT_DICT_DOMAIN};

	if (cached >> 32 == epoch)
		return (uint32_t)cached;
	entry.id = cct_image->domains + 1;
	entry.flags = CCT_DICT_HAS_TEXT | domain->flags;
	entry.bytes = domain->bytes;
	if (cct_dict_append_locked(&entry, domain->text))
		cct_image->domains++;
	else
		entry.id = NO_DOMAIN_ENTRY | domain->serial; /* still tells it apart */
	domain->cached = epoch << 32 | entry.id;
	return entry.id;
}

uint32_t cct_domain_id_slow(struct cct_domain *domain)
{
	struct cct_hold hold;
	uint32_t id;

	cct_lock(&hold);
	id = cct_domain_id_locked(domain);
	cct_unlock(&hold);
	return id;
}

static uint32_t add_name(uint64_t hash, struct cct_dict_entry *entry, const char *text,
			 const char **content)
{
	struct cct_image *image = cct_image;
	struct cct_table *table;
	uint32_t offset8;
	uint32_t key;

	key = find(image->table, hash, entry, text, content);
	if (key != 0)
		return key;
	table = table_with_room();
	if (table == NULL)
		return 0;
	offset8 = (uint32_t)(image->dict_used / 8);
	entry->id = image->keys + 1;
	if ((entry->domain & NO_DOMAIN_ENTRY) != 0 ||
	    !cct_dict_append_locked(entry, text))
		return 0;
	insert(table, hash, offset8, ++image->keys);
	*content = (const char *)(entry_at(offset8) + 1);
	return image->keys;
}

/* The key of a name, 0 if it has nothing to tell or the dictionary is full.
 * Sets *content to the text in the log. */
static uint32_t key_of(struct cct_thread *thread, struct cct_domain *domain,
		       struct cct_dict_entry *entry, const char *text,
		       const char **content)
{
	struct cct_image *image = cct_image;
	struct cct_hold hold;
	uint64_t hash;
	uint32_t key;

	entry->type = CCT_DICT_KEY;
	entry->domain = cct_domain_id(thread, domain);
	if ((entry->flags & CCT_DICT_TRUNCATED) != 0)
		cct_lose(thread->slot->losses, CCT_LOSS_TRUNCATED_STRING, 0);
	if (entry->flags == 0 && entry->domain == 0 && entry->category == 0)
		return 0;
	hash = hash_name(entry, text);
	key = find(atomic_load_explicit(&image->table, memory_order_acquire), hash,
		   entry, text, content);
	if (key == 0 && !image->dict_full) {
		cct_lock(&hold);
		key = add_name(hash, entry, text, content);
		cct_unlock(&hold);
	}
	if (key == 0)
		cct_lose(thread->slot->losses, CCT_LOSS_STRING_TABLE_FULL, 0);
	return key;
}

static struct cct_cached *cached_place(struct cct_thread *thread, const void *text,
				       uint32_t category)
{
	uint64_t hash = ((uint64_t)(uintptr_t)text ^ (uint64_t)category << 48) *
			0x9E3779B97F4A7C15u;

	return &thread->names[hash >> 32 & (CCT_CACHED_NAMES - 1)];
}

static bool is_cached(const struct cct_cached *cached, const void *text,
		      const struct cct_domain *domain, uint32_t category,
		      uint32_t color, uint32_t flags)
{
	return cached->text == text && cached->domain == domain &&
	       cached->category == category && cached->color == color &&
	       cached->flags == flags;
}

uint32_t cct_key_of_text(struct cct_thread *thread, struct cct_domain *domain,
			 const char *text, uint32_t category, uint32_t color,
			 uint32_t flags)
{
	struct cct_cached *cached = cached_place(thread, text, category);
	struct cct_dict_entry entry = {
	    .category = category, .color = color, .flags = flags};
	const char *content = NULL;

	if (text == NULL) {
		text = "";
	} else {
		if (is_cached(cached, text, domain, category, color, flags) &&
		    strncmp(text, cached->content, cached->bytes) == 0 &&
		    text[cached->bytes] == 0)
			return cached->key;
		entry.bytes = cct_text_bytes(text, &entry.flags);
		entry.flags |= CCT_DICT_HAS_TEXT;
	}
	entry.id = key_of(thread, domain, &entry, text, &content);
	if (entry.id != 0 && (entry.flags & CCT_DICT_TRUNCATED) == 0 &&
	    (entry.flags & CCT_DICT_HAS_TEXT) != 0)
		*cached = (struct cct_cached){.text = text,
					      .domain = domain,
					      .category = category,
					      .color = color,
					      .flags = flags,
					      .key = entry.id,
					      .content = content,
					      .bytes = entry.bytes};
	return entry.id;
}

uint32_t cct_key_of_wide(struct cct_thread *thread, struct cct_domain *domain,
			 const wchar_t *text, uint32_t category, uint32_t color,
			 uint32_t flags)
{
	struct cct_dict_entry entry = {
	    .category = category, .color = color, .flags = flags};
	const char *content;

	if (text == NULL)
		return cct_key_of_text(thread, domain, NULL, category, color, flags);
	if (thread->scratch == NULL) {
		struct cct_hold hold;

		cct_lock(&hold);
		thread->scratch = cct_alloc(CCT_TEXT_MAX);
		cct_unlock(&hold);
		if (thread->scratch == NULL)
			return cct_key_of_text(thread, domain, NULL, category, color,
					       flags);
	}
	entry.bytes = cct_utf8_from_wide(text, thread->scratch, &entry.flags);
	entry.flags |= CCT_DICT_HAS_TEXT;
	return key_of(thread, domain, &entry, thread->scratch, &content);
}

uint32_t cct_key_of_string(struct cct_thread *thread, struct cct_domain *domain,
			   struct cct_string *string, uint32_t category, uint32_t color,
			   uint32_t flags)
{
	struct cct_cached *cached = cached_place(thread, string, category);
	struct cct_dict_entry entry = {
	    .category = category,
	    .color = color,
	    .flags = flags | string->flags | CCT_DICT_HAS_TEXT,
	    .bytes = string->bytes,
	};
	const char *content;

	if (CCT_LIKELY(is_cached(cached, string, domain, category, color, flags)))
		return cached->key;
	entry.id = key_of(thread, domain, &entry, string->text, &content);
	if (entry.id == 0 || (string->flags & CCT_DICT_TRUNCATED) != 0)
		return entry.id; /* each such event counts anew */
	*cached = (struct cct_cached){.text = string,
				      .domain = domain,
				      .category = category,
				      .color = color,
				      .flags = flags,
				      .key = entry.id};
	if (category == 0 && flags == 0 && string->domain == domain)
		atomic_store_explicit(&string->cached,
				      (uint64_t)thread->epoch << 32 | entry.id,
				      memory_order_relaxed);
	return entry.id;
}
