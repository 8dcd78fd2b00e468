/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.c - asking the recorder for a segment.
 *
 * One connection per request; both descriptors are closed before it returns,
 * so a program that closes all of its descriptors does no harm. Every wait has
 * an end: a recorder that is gone or stuck costs the engine some seconds once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { WAIT_S = 2, SLOTS_MAX = 1 << 16 };

static struct sockaddr_un address;
static bool debug;
/* A recorder that let one request time out is not asked again, by forked
 * children neither: a process tree waits for it once. */
static bool silent;

void cct_debug(const char *what, int error)
{
	char line[256];
	int bytes;

	if (!debug)
		return;
	bytes =
	    snprintf(line, sizeof(line), "cctrace agent, process %d: %s (errno %d)\n",
		     (int)getpid(), what, error);
	if (bytes > 0)
		(void)!write(STDERR_FILENO, line, (size_t)bytes);
}

static void read_environment(void)
{
	const char *path = getenv("CCTRACE_SOCKET");
	const char *wanted = getenv("CCTRACE_AGENT_DEBUG");

	debug = wanted != NULL && strcmp(wanted, "1") == 0;
	if (path == NULL || *path == 0) {
		cct_debug("CCTRACE_SOCKET is not set", 0);
	} else if (strlen(path) >= sizeof(address.sun_path)) {
		cct_debug("CCTRACE_SOCKET is too long", 0);
	} else {
		address.sun_family = AF_UNIX;
		strcpy(address.sun_path, path);
	}
}

bool cct_wire_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, read_environment);
	return address.sun_family == AF_UNIX;
}

static bool before_deadline(time_t deadline_s)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec < deadline_s;
}

static time_t deadline(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + WAIT_S;
}

static int connect_recorder(void)
{
	struct timeval wait = {.tv_sec = WAIT_S};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	time_t end_s = deadline();

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) == 0 &&
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0) {
		int rc;

		do {
			rc = connect(fd, (struct sockaddr *)&address, sizeof(address));
		} while (rc < 0 && errno == EINTR && before_deadline(end_s));
		if (rc == 0)
			return fd;
	}
	silent = errno == EAGAIN;
	cct_debug("cannot reach the recorder", errno);
	close(fd);
	return -1;
}

/* The memfd that came with a message, or -1. Any further one is closed. */
static int received_fd(struct msghdr *message)
{
	int fd = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL;
	     c = CMSG_NXTHDR(message, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int one;

			memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof(one));
			if (fd < 0)
				fd = one;
			else
				close(one);
		}
	}
	return fd;
}

static int exchange(int socket_fd, const struct cct_request *request,
		    struct cct_reply *reply)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec part = {.iov_base = reply, .iov_len = sizeof(*reply)};
	struct msghdr message = {
	    .msg_iov = &part,
	    .msg_iovlen = 1,
	    .msg_control = &control,
	    .msg_controllen = sizeof(control),
	};
	time_t end_s = deadline();
	ssize_t bytes;
	int fd;

	do {
		bytes = send(socket_fd, request, sizeof(*request), MSG_NOSIGNAL);
	} while (bytes < 0 && errno == EINTR && before_deadline(end_s));
	if (bytes != (ssize_t)sizeof(*request)) {
		cct_debug("cannot ask the recorder", errno);
		return -1;
	}
	do {
		bytes = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
	} while (bytes < 0 && errno == EINTR && before_deadline(end_s));
	if (bytes < 0) {
		silent = errno == EAGAIN;
		cct_debug("the recorder does not answer", errno);
		return -1;
	}
	fd = received_fd(&message);
	if (fd < 0 && (message.msg_flags & MSG_CTRUNC) != 0) {
		cct_debug("no descriptor is free for the segment", 0);
		errno = EMFILE;
		return -1;
	}
	if (bytes != (ssize_t)sizeof(*reply) || reply->magic != CCT_WIRE_MAGIC ||
	    reply->version != CCT_WIRE_VERSION || reply->status != CCT_REPLY_OK) {
		cct_debug("the recorder refuses", 0);
		if (fd >= 0)
			close(fd);
		errno = EPERM;
		return -1;
	}
	return fd;
}

/* Whether `count` pieces, `stride` bytes apart, of which each needs `bytes`,
 * lie within the segment. */
static bool fits(const struct cct_segment *segment, uint64_t offset, uint64_t count,
		 uint64_t stride, uint64_t bytes)
{
	uint64_t end = segment->segment_bytes;

	return offset % 8 == 0 && stride % 8 == 0 && stride >= bytes && offset <= end &&
	       offset >= sizeof(*segment) && stride <= end &&
	       count * stride <= end - offset;
}

static bool valid(const struct cct_segment *segment, size_t bytes,
		  enum cct_request_type type)
{
	uint64_t records = segment->ring_records;

	if (segment->magic != CCT_MAGIC || segment->version != CCT_SHM_VERSION ||
	    segment->segment_bytes != bytes)
		return false;
	if (segment->slots == 0 || segment->slots > SLOTS_MAX || records < 2 ||
	    (records & (records - 1)) != 0)
		return false;
	if (type == CCT_REQ_HELLO &&
	    (segment->dict_bytes / 8 > UINT32_MAX ||
	     !fits(segment, segment->dict_offset, 1, segment->dict_bytes & ~7ull, 0)))
		return false;
	return fits(segment, segment->slots_offset, segment->slots,
		    sizeof(struct cct_slot), sizeof(struct cct_slot)) &&
	       fits(segment, segment->rings_offset, segment->slots,
		    segment->ring_stride, records * sizeof(struct cct_record)) &&
	       fits(segment, segment->stacks_offset, segment->slots,
		    segment->stack_stride,
		    segment->stack_frames * sizeof(struct cct_frame));
}

static struct cct_segment *map_segment(int fd, uint64_t bytes,
				       enum cct_request_type type)
{
	struct stat file;
	int seals = fcntl(fd, F_GET_SEALS);
	struct cct_segment *segment;

	/* A file that can shrink could kill the engine with SIGBUS. */
	if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &file) != 0 ||
	    (uint64_t)file.st_size < bytes || bytes < sizeof(*segment)) {
		cct_debug("not a sealed segment of the size announced", 0);
		return NULL;
	}
	segment = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (segment == MAP_FAILED) {
		cct_debug("cannot map the segment", errno);
		return NULL;
	}
	if (!valid(segment, bytes, type)) {
		cct_debug("the segment's header makes no sense", 0);
		munmap(segment, bytes);
		return NULL;
	}
	madvise(segment, bytes, MADV_DONTDUMP);
	return segment;
}

struct cct_segment *cct_wire_request(enum cct_request_type type, uint64_t *token,
				     size_t *bytes)
{
	struct cct_request request = {
	    .magic = CCT_WIRE_MAGIC,
	    .version = CCT_WIRE_VERSION,
	    .type = (uint16_t)type,
	    .pid = (uint32_t)getpid(),
	    .tid = (uint32_t)syscall(SYS_gettid),
	    .token = type == CCT_REQ_HELLO ? 0 : *token,
	};
	struct cct_segment *segment = NULL;
	struct cct_reply reply = {0};
	int socket_fd = silent ? -1 : connect_recorder();
	int fd;

	if (socket_fd < 0)
		return NULL;
	fd = exchange(socket_fd, &request, &reply);
	close(socket_fd);
	if (fd < 0)
		return NULL;
	segment = map_segment(fd, reply.segment_bytes, type);
	close(fd);
	if (segment != NULL) {
		*token = reply.token;
		*bytes = reply.segment_bytes;
	}
	return segment;
}
