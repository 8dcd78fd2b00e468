/* SPDX-License-Identifier: Apache-2.0
 *
 * emit.h - NVTX for callers without a C compiler: the Python adapters load
 * libcctrace_emit.so by ctypes (path in CCTRACE_EMIT). It carries NVTX as any
 * program does, so whatever tool is injected sees these events.
 *
 * Handles are plain 64-bit numbers; 0 is always valid (the default domain, no
 * text) and is what every call returns when no tool is injected. All functions
 * may be called from any thread. None blocks or raises; from Python, PyDLL
 * spares the two GIL switches that CDLL makes per call.
 *
 *   emit = ctypes.PyDLL(os.environ["CCTRACE_EMIT"])
 *   domain = emit.cct_emit_domain(b"cctrace")      # once
 *   step = emit.cct_emit_string(domain, b"vllm.step")    # once per name
 *   emit.cct_emit_push(domain, step, 0, 0, 0)
 *   emit.cct_emit_pop(domain)
 *
 * (set restype and argtypes: handles and payloads are c_uint64.)
 */
#ifndef CCTRACE_EMIT_H
#define CCTRACE_EMIT_H

#include <stdint.h>

/* A domain, the same for the same name. */
uint64_t cct_emit_domain(const char *name);

/* A name for events of `domain`, the same for the same text. UTF-8. */
uint64_t cct_emit_string(uint64_t domain, const char *text);

/* Names category `category` (> 0) of `domain`. */
void cct_emit_category(uint64_t domain, uint32_t category, const char *name);

/* Opens a range on the calling thread; `payload` counts where `has_payload` is
 * not 0. Returns its depth within thread and domain, negative without a tool. */
int cct_emit_push(uint64_t domain, uint64_t string, uint32_t category, int has_payload,
		  uint64_t payload);

/* Closes the calling thread's innermost range of `domain`; returns its depth. */
int cct_emit_pop(uint64_t domain);

/* An instant. */
void cct_emit_mark(uint64_t domain, uint64_t string, uint32_t category, int has_payload,
		   uint64_t payload);

/* Opens a range that any thread may close, and names it; 0 without a tool. */
uint64_t cct_emit_start(uint64_t domain, uint64_t string, uint32_t category,
			int has_payload, uint64_t payload);
void cct_emit_end(uint64_t domain, uint64_t range);

#endif /* CCTRACE_EMIT_H */
