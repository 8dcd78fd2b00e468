/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.h - what NVTX functions have in common: attributes are unpacked, and
 * the event goes the hot path of events.h.
 */
#ifndef CCTRACE_CALLS_H
#define CCTRACE_CALLS_H

#include <string.h>

#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExt.h>

#include "events.h"

struct attributes {
	uint64_t payload;
	uint32_t key;
	uint8_t payload_type;
};

static inline uint32_t key_of_attributes(struct cct_thread *thread,
					 struct cct_domain *domain,
					 const nvtxEventAttributes_t *attributes)
{
	uint32_t category = attributes->category;
	uint32_t color = 0;
	uint32_t flags = 0;

	if (attributes->colorType == NVTX_COLOR_ARGB) {
		color = attributes->color;
		flags = CCT_DICT_HAS_COLOR;
	}
	if (CCT_LIKELY(attributes->messageType == NVTX_MESSAGE_TYPE_REGISTERED)) {
		struct cct_string *string =
		    (struct cct_string *)attributes->message.registered;
		uint64_t cached;

		if (CCT_UNLIKELY(string == NULL))
			return cct_key_of_text(thread, domain, NULL, category, color,
					       flags);
		cached = atomic_load_explicit(&string->cached, memory_order_relaxed);
		if ((category | flags) == 0 && string->domain == domain &&
		    cached >> 32 == thread->epoch)
			return (uint32_t)cached;
		return cct_key_of_string(thread, domain, string, category, color,
					 flags);
	}
	if (attributes->messageType == NVTX_MESSAGE_TYPE_UNICODE)
		return cct_key_of_wide(thread, domain, attributes->message.unicode,
				       category, color, flags);
	return cct_key_of_text(thread, domain,
			       attributes->messageType == NVTX_MESSAGE_TYPE_ASCII
				   ? attributes->message.ascii
				   : NULL,
			       category, color, flags);
}

static inline void unpack_whole(struct cct_thread *thread, struct cct_domain *domain,
				const nvtxEventAttributes_t *attributes,
				struct attributes *out)
{
	/* The union's 32-bit members share the low half (little endian). */
	switch (attributes->payloadType) {
	case NVTX_PAYLOAD_TYPE_UNSIGNED_INT64:
	case NVTX_PAYLOAD_TYPE_INT64:
	case NVTX_PAYLOAD_TYPE_DOUBLE:
		out->payload = attributes->payload.ullValue;
		out->payload_type = (uint8_t)attributes->payloadType;
		break;
	case NVTX_PAYLOAD_TYPE_UNSIGNED_INT32:
	case NVTX_PAYLOAD_TYPE_INT32:
	case NVTX_PAYLOAD_TYPE_FLOAT:
		out->payload = attributes->payload.uiValue;
		out->payload_type = (uint8_t)attributes->payloadType;
		break;
	default: /* none, or the address of a binary payload: not ours to keep */
		out->payload = 0;
		out->payload_type = CCT_PAYLOAD_NONE;
	}
	out->key = key_of_attributes(thread, domain, attributes);
}

/* A caller's struct of another size, or none: what it does not have is 0. */
static CCT_NOINLINE void unpack_odd(struct cct_thread *thread,
				    struct cct_domain *domain,
				    const nvtxEventAttributes_t *attributes,
				    struct attributes *out)
{
	nvtxEventAttributes_t whole;

	memset(&whole, 0, sizeof(whole));
	if (attributes != NULL &&
	    attributes->size >= offsetof(nvtxEventAttributes_t, payload)) {
		size_t bytes = attributes->size;

		memcpy(&whole, attributes,
		       bytes < sizeof(whole) ? bytes : sizeof(whole));
		if (bytes < offsetof(nvtxEventAttributes_t, messageType))
			whole.payloadType = NVTX_PAYLOAD_UNKNOWN;
		if (bytes < sizeof(whole))
			whole.messageType = NVTX_MESSAGE_UNKNOWN;
	}
	unpack_whole(thread, domain, &whole, out);
}

static inline void unpack(struct cct_thread *thread, struct cct_domain *domain,
			  const nvtxEventAttributes_t *attributes,
			  struct attributes *out)
{
	if (CCT_LIKELY(attributes != NULL && attributes->size >= sizeof(*attributes)))
		unpack_whole(thread, domain, attributes, out);
	else
		unpack_odd(thread, domain, attributes, out);
}

/* How an event says what it is: by attributes, or by a text alone. */
struct said {
	const nvtxEventAttributes_t *attributes;
	const char *text;
	const wchar_t *wide;
	bool text_only;
};

static inline void take(struct cct_thread *thread, struct cct_domain *domain,
			struct said said, struct attributes *out)
{
	if (!said.text_only) {
		unpack(thread, domain, said.attributes, out);
		return;
	}
	out->payload = 0;
	out->payload_type = CCT_PAYLOAD_NONE;
	if (said.wide != NULL)
		out->key = cct_key_of_wide(thread, domain, said.wide, 0, 0, 0);
	else
		out->key = cct_key_of_text(thread, domain, said.text, 0, 0, 0);
}

static inline int push(struct cct_domain *domain, struct said said)
{
	struct cct_thread *thread = cct_enter();
	struct attributes event;
	int depth;

	if (CCT_UNLIKELY(thread == NULL))
		return NVTX_NO_PUSH_POP_TRACKING;
	take(thread, domain, said, &event);
	depth = cct_push(thread, domain, event.key, event.payload, event.payload_type);
	cct_leave(thread);
	return depth;
}

static inline int pop(struct cct_domain *domain)
{
	struct cct_thread *thread = cct_enter();
	int depth;

	if (CCT_UNLIKELY(thread == NULL))
		return NVTX_NO_PUSH_POP_TRACKING;
	depth = cct_pop(thread, domain);
	cct_leave(thread);
	return depth;
}

static inline void mark(struct cct_domain *domain, struct said said)
{
	struct cct_thread *thread = cct_enter();
	struct attributes event;

	if (CCT_UNLIKELY(thread == NULL))
		return;
	take(thread, domain, said, &event);
	cct_point(thread, CCT_REC_MARK, 0, event.key, event.payload,
		  event.payload_type);
	cct_leave(thread);
}

/* The chained tool's id, where it gave one, pairs the two ends for us too. */
static inline nvtxRangeId_t start(struct cct_domain *domain, struct said said,
				  nvtxRangeId_t chained_id)
{
	struct cct_thread *thread = cct_enter();
	nvtxRangeId_t id = chained_id;
	struct attributes event;

	if (CCT_UNLIKELY(thread == NULL))
		return id != 0 ? id : CCT_RANGE_LOST;
	if (id == 0)
		id = cct_range_id(thread);
	take(thread, domain, said, &event);
	if (!cct_point(thread, CCT_REC_START, id, event.key, event.payload,
		       event.payload_type) &&
	    chained_id == 0)
		id = CCT_RANGE_LOST;
	cct_leave(thread);
	return id;
}

static inline void end(nvtxRangeId_t id)
{
	struct cct_thread *thread;

	if (id == CCT_RANGE_LOST || id == 0)
		return;
	thread = cct_enter();
	if (CCT_UNLIKELY(thread == NULL))
		return;
	cct_point(thread, CCT_REC_END, id, 0, 0, CCT_PAYLOAD_NONE);
	cct_leave(thread);
}

#define BY_ATTRIBUTES(value) ((struct said){.attributes = (value)})
#define BY_TEXT(value) ((struct said){.text = (value), .text_only = true})
#define BY_WIDE(value) ((struct said){.wide = (value), .text_only = true})

#endif /* CCTRACE_CALLS_H */
