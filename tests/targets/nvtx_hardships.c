/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_hardships.c - programs that leave the agent little, or leave it suddenly.
 *
 *   jumps        handlers that interrupt NVTX calls and leave by siglongjmp
 *   keys         no thread-specific key is left for the agent
 *   descriptors  no descriptor is free at the first events
 *   raw_exit     more threads than there are slots, none of which runs destructors
 *   memory       an address space too small for a segment of the usual size
 *
 * Exits with 0 where it found itself unharmed. "late" marks come when the hardship
 * is over.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <nvtx3/nvToolsExt.h>

enum {
	JUMPS = 503,
	LATE = 1009,
	EARLY = 5,
	/* The agent looks again once in 1024 events. */
	AFTER_CLOSING = 5003,
	THREADS = 4799, /* 64 segments of 64 slots are 4096 */
	LIMIT_BYTES = 600 << 20,
	WANTED_BYTES = 200 << 20,
};

static void late(int count)
{
	for (int i = 0; i < count; i++)
		nvtxMarkA("late");
}

static sigjmp_buf back;
static volatile sig_atomic_t jumps;

static void leave(int number)
{
	(void)number;
	jumps++;
	siglongjmp(back, 1);
}

static int jump(void)
{
	struct itimerval timer = {{0, 100}, {0, 100}};
	static volatile unsigned int names;

	nvtxMarkA("first");
	signal(SIGALRM, leave);
	setitimer(ITIMER_REAL, &timer, NULL);
	sigsetjmp(back, 1);
	while (jumps < JUMPS) {
		char name[32];

		snprintf(name, sizeof(name), "name %u", names++);
		nvtxMarkA(name); /* takes the agent's lock: it is new */
	}
	memset(&timer, 0, sizeof(timer));
	setitimer(ITIMER_REAL, &timer, NULL);
	signal(SIGALRM, SIG_IGN);
	late(LATE);
	return 0;
}

static pthread_key_t first_key;
static void *at_exit;

static void destroyed(void *value)
{
	at_exit = value;
}

static void *with_key(void *value)
{
	pthread_setspecific(first_key, value);
	late(1);
	return pthread_getspecific(first_key);
}

static int keys(void)
{
	static int mine;
	pthread_key_t more;
	pthread_t thread;
	void *seen;

	pthread_key_create(&first_key, destroyed);
	while (pthread_key_create(&more, NULL) == 0)
		;
	pthread_create(&thread, NULL, with_key, &mine);
	pthread_join(thread, &seen);
	return seen == &mine && at_exit == &mine ? 0 : 1;
}

static int descriptors(void)
{
	struct rlimit few = {64, 64};
	int last = -1;
	int fd;

	nvtxDomainCreateA("loads the agent");
	setrlimit(RLIMIT_NOFILE, &few);
	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		last = fd;
	for (int i = 0; i < EARLY; i++)
		nvtxMarkA("early");
	close(last);
	close(last - 1);
	late(AFTER_CLOSING);
	return 0;
}

static void *leave_at_once(void *nothing)
{
	late(1);
	syscall(SYS_exit, 0);
	return nothing;
}

static int raw_exit(void)
{
	for (int i = 0; i < THREADS; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, leave_at_once, NULL) != 0)
			return 1;
		pthread_join(thread, NULL);
	}
	return 0;
}

static int memory(void)
{
	struct rlimit limit = {LIMIT_BYTES, LIMIT_BYTES};

	setrlimit(RLIMIT_AS, &limit);
	late(LATE);
	return malloc(WANTED_BYTES) == NULL;
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} modes[] = {{"jumps", jump},
		     {"keys", keys},
		     {"descriptors", descriptors},
		     {"raw_exit", raw_exit},
		     {"memory", memory}};

	for (size_t i = 0; count == 2 && i < sizeof(modes) / sizeof(modes[0]); i++)
		if (strcmp(arguments[1], modes[i].name) == 0)
			return modes[i].run();
	return 2;
}
