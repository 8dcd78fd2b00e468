/* SPDX-License-Identifier: Apache-2.0
 *
 * audit.c - libcctrace_audit.so: tells the recorder of a library before its code
 * can run.
 *
 * The dynamic loader (LD_AUDIT, glibc) calls la_objopen in the thread that loads,
 * when a library is mapped and none of its code, its constructors included, has
 * run. If its name is one that the recorder asked for, the recorder is told, and
 * the thread waits until probes are attached, or for a while.
 *
 * The loader gives an auditor a namespace of its own, with its own copy of every
 * library it needs; so this one needs none, libc neither. It returns 0 for every
 * object, so the loader audits no symbol, and calls through the PLT cost what they
 * cost without it. It holds no descriptor between calls and no memory beyond its
 * own pages. Whatever goes wrong, the program goes on.
 *
 * What other programs make of LD_AUDIT (tried with glibc 2.31, 2.36, 2.41 and 2.43):
 *   static, musl    they know no auditors, and say nothing
 *   set-user-ID     a path with a slash is ignored, and nothing said
 *   32-bit          the loader writes one line ("wrong ELF class ... ignored")
 *   another root    where this file cannot be seen: one line as well
 * The auditor takes one of the loader's 16 namespaces (dlmopen), an exec some 0.1 ms.
 * The room for thread-local memory of libraries loaded later does not shrink. A
 * filter (seccomp) that kills for socket(2) would kill; one that refuses does no harm.
 *
 * Environment, as it was when the program started:
 *   CCTRACE_SOCKET     the recorder's socket
 *   CCTRACE_LIBRARIES  beginnings of file names to tell of, joined by ':'
 */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "cctrace_shm.h"

#ifndef __x86_64__
#error "system calls are made by x86-64's convention"
#endif

#define EXPORT __attribute__((visibility("default")))

enum { WAIT_NS = 2000000000, NS_PER_S = 1000000000, NAMES_BYTES = 512 };

struct announcement {
	struct cct_request request;
	char path[CCT_LIBRARY_PATH_MAX];
};

static struct sockaddr_un address;
static char names[NAMES_BYTES];
/* The loader holds its lock around la_objopen: one call at a time. */
static struct announcement announcement;
/* A recorder that let one announcement time out is not asked again, by forked
 * children neither. */
static bool silent;

/* System V ABI, AMD64 supplement, A.2.1: number in rax, arguments in rdi, rsi, rdx,
 * r10, r8, r9; -errno or the result in rax; rcx and r11 are lost. */
static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8),
			   "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static int64_t now_ns(void)
{
	struct timespec now = {0, 0};

	call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0, 0, 0);
	return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* Copies a text with its NUL; false where it does not fit. */
static bool copy_text(char *to, size_t room, const char *from)
{
	for (size_t i = 0; i < room; i++) {
		to[i] = from[i];
		if (from[i] == 0)
			return true;
	}
	return false;
}

/* What follows `name=` in an entry of the environment, or NULL. */
static const char *value_of(const char *entry, const char *name)
{
	while (*name != 0 && *entry == *name) {
		entry++;
		name++;
	}
	return *name == 0 && *entry == '=' ? entry + 1 : NULL;
}

/* glibc passes these to constructors; there is no getenv in here. */
__attribute__((constructor)) static void read_environment(int argc, char **argv,
							  char **envp)
{
	(void)argc;
	(void)argv;
	for (; *envp != NULL; envp++) {
		const char *path = value_of(*envp, "CCTRACE_SOCKET");
		const char *wanted = value_of(*envp, "CCTRACE_LIBRARIES");

		if (path != NULL && *path != 0 &&
		    copy_text(address.sun_path, sizeof(address.sun_path), path))
			address.sun_family = AF_UNIX;
		if (wanted != NULL && !copy_text(names, sizeof(names), wanted))
			names[0] = 0;
	}
}

/* Whether a file name begins with one of `names`. */
static bool is_wanted(const char *path)
{
	const char *base = path;

	for (const char *c = path; *c != 0; c++)
		if (*c == '/')
			base = c + 1;
	for (const char *name = names; *name != 0;) {
		const char *c = base;

		while (*name != 0 && *name != ':' && *name == *c) {
			name++;
			c++;
		}
		if ((*name == 0 || *name == ':') && c != base)
			return true;
		while (*name != 0 && *name != ':')
			name++;
		if (*name == ':')
			name++;
	}
	return false;
}

static long connect_until(long fd, int64_t deadline_ns)
{
	long rc;

	do {
		int64_t left_ns = deadline_ns - now_ns();
		struct timeval wait = {.tv_sec = left_ns / NS_PER_S,
				       .tv_usec = left_ns % NS_PER_S / 1000};

		if (left_ns < 1000)
			return -EAGAIN;
		/* Without a limit a full queue of a stopped recorder would hold us. */
		rc = call(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, (long)&wait,
			  sizeof(wait), 0);
		if (rc < 0)
			return rc;
		rc = call(SYS_connect, fd, (long)&address, sizeof(address), 0, 0, 0);
	} while (rc == -EINTR);
	return rc;
}

/* Waits for an answer or an end; which one does not matter. */
static long wait_until(long fd, int64_t deadline_ns)
{
	struct pollfd peer = {.fd = (int)fd, .events = POLLIN};
	long rc;

	do {
		int64_t left_ns = deadline_ns - now_ns();
		struct timespec wait = {.tv_sec = left_ns / NS_PER_S,
					.tv_nsec = left_ns % NS_PER_S};

		if (left_ns <= 0)
			return -EAGAIN;
		rc = call(SYS_ppoll, (long)&peer, 1, (long)&wait, 0, 0, 0);
	} while (rc == -EINTR);
	return rc == 0 ? -EAGAIN : rc;
}

static void announce(const struct link_map *map)
{
	int64_t deadline_ns = now_ns() + WAIT_NS;
	size_t path_bytes = 0;
	long fd, rc;

	if (!copy_text(announcement.path, sizeof(announcement.path), map->l_name))
		return;
	while (announcement.path[path_bytes] != 0)
		path_bytes++;
	announcement.request.magic = CCT_WIRE_MAGIC;
	announcement.request.version = CCT_WIRE_VERSION;
	announcement.request.type = CCT_REQ_LIBRARY;
	announcement.request.pid = (uint32_t)call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	announcement.request.tid = (uint32_t)call(SYS_gettid, 0, 0, 0, 0, 0, 0);
	/* Lies in the mapping of the file, which thereby says what file it is. */
	announcement.request.token = (uint64_t)(uintptr_t)map->l_ld;
	fd = call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);
	if (fd < 0)
		return;
	rc = connect_until(fd, deadline_ns);
	if (rc == 0)
		rc = call(SYS_sendto, fd, (long)&announcement,
			  (long)(sizeof(announcement.request) + path_bytes),
			  MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);
	if (rc > 0)
		rc = wait_until(fd, deadline_ns);
	call(SYS_close, fd, 0, 0, 0, 0, 0);
	silent = rc == -EAGAIN;
}

/* 0: not wanted, the loader forgets this library. */
EXPORT unsigned int la_version(unsigned int version)
{
	return address.sun_family == AF_UNIX && names[0] != 0 ? version : 0;
}

/* 0: no symbol of or for this object is audited. */
EXPORT unsigned int la_objopen(struct link_map *map, Lmid_t lmid, uintptr_t *cookie)
{
	(void)lmid;
	(void)cookie;
	/* The program itself has an empty name. */
	if (!silent && map->l_name != NULL && is_wanted(map->l_name))
		announce(map);
	return 0;
}
