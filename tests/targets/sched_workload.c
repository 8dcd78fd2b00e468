/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sched_workload: waits of known kind and number, with the kernel's own counts of them.
 *
 * Writes lines of words to stdout, times in ns of CLOCK_MONOTONIC:
 *   span NAME PID TID BEGIN END VOLUNTARY INVOLUNTARY
 *       one stretch of a thread, with the context switches that getrusage(2) counted
 *   wait TID BEGIN END VOLUNTARY     one sleep
 *   peer NAME TID                    the thread that does the waking
 *   process PID BEFORE AFTER REAPED  a child: around fork(2), and after it was reaped
 *   thread TID BEFORE AFTER JOINED   a thread: around its creation, and after its end
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct counts {
	uint64_t at_ns;
	long voluntary, involuntary;
};

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int own_tid(void)
{
	return (int)syscall(SYS_gettid);
}

/* A time at which the counts are known: no switch came between the two. */
static struct counts take(void)
{
	struct rusage before, after;
	struct counts found;

	do {
		getrusage(RUSAGE_THREAD, &before);
		found.at_ns = now_ns();
		getrusage(RUSAGE_THREAD, &after);
	} while (before.ru_nvcsw != after.ru_nvcsw ||
		 before.ru_nivcsw != after.ru_nivcsw);
	found.voluntary = before.ru_nvcsw;
	found.involuntary = before.ru_nivcsw;
	return found;
}

static void tell_span(const char *name, struct counts begin)
{
	struct counts end = take();

	printf("span %s %d %d %llu %llu %ld %ld\n", name, getpid(), own_tid(),
	       (unsigned long long)begin.at_ns, (unsigned long long)end.at_ns,
	       end.voluntary - begin.voluntary, end.involuntary - begin.involuntary);
}

static void sleep_for(long ns)
{
	struct timespec left = {0, ns};

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

static void sleeps(const char *name, int times, long ns)
{
	struct counts begin = take();

	for (int i = 0; i < times; i++) {
		struct counts before = take();

		sleep_for(ns);
		struct counts after = take();

		printf("wait %d %llu %llu %ld\n", own_tid(),
		       (unsigned long long)before.at_ns,
		       (unsigned long long)after.at_ns,
		       after.voluntary - before.voluntary);
	}
	tell_span(name, begin);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static int first_cpu(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		die("sched_getaffinity");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &set))
			return cpu;
	return 0;
}

/* Two threads that wake each other through two pipes. */
static int to_waiter[2], to_waker[2], rounds;

static void *waiter(void *unused)
{
	char byte;
	struct counts begin;

	if (write(to_waker[1], "r", 1) != 1)
		die("write");
	begin = take();
	for (int i = 0; i < rounds; i++)
		if (read(to_waiter[0], &byte, 1) != 1 ||
		    write(to_waker[1], "x", 1) != 1)
			die("pipe");
	tell_span("waiter", begin);
	return unused;
}

static void ping_pong(int times)
{
	pthread_t thread;
	char byte;

	rounds = times;
	if (pipe(to_waiter) || pipe(to_waker))
		die("pipe");
	printf("peer waiter %d\n", own_tid());
	pthread_create(&thread, NULL, waiter, NULL);
	if (read(to_waker[0], &byte, 1) != 1)
		die("read");
	for (int i = 0; i < times; i++)
		if (write(to_waiter[1], "x", 1) != 1 ||
		    read(to_waker[0], &byte, 1) != 1)
			die("pipe");
	pthread_join(thread, NULL);
}

/* One that waits for a mutex (a futex) while its holder sleeps. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;

static void *contender(void *unused)
{
	struct counts begin;

	pthread_barrier_wait(&both);
	begin = take();
	for (int i = 0; i < rounds; i++) {
		pthread_mutex_lock(&lock);
		pthread_mutex_unlock(&lock);
		pthread_barrier_wait(&both);
		pthread_barrier_wait(&both);
	}
	tell_span("contender", begin);
	return unused;
}

static void contend(int times)
{
	pthread_t thread;

	rounds = times;
	printf("peer contender %d\n", own_tid());
	pthread_barrier_init(&both, NULL, 2);
	pthread_create(&thread, NULL, contender, NULL);
	pthread_mutex_lock(&lock);
	pthread_barrier_wait(&both);
	for (int i = 0; i < times; i++) {
		sleep_for(1100000);
		pthread_mutex_unlock(&lock);
		pthread_barrier_wait(&both);
		pthread_mutex_lock(&lock);
		pthread_barrier_wait(&both);
	}
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
}

/* Two threads that both want the one CPU. */
static long spin_ns;

static void *spinner(void *name)
{
	struct timespec used;
	struct counts begin;
	long start_ns;

	pthread_barrier_wait(&both);
	begin = take();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	start_ns = used.tv_sec * 1000000000l + used.tv_nsec;
	do
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	while (used.tv_sec * 1000000000l + used.tv_nsec - start_ns < spin_ns);
	tell_span(name, begin);
	return NULL;
}

static void spin(long ns)
{
	pthread_t threads[2];

	spin_ns = ns;
	pin(first_cpu());
	pthread_barrier_init(&both, NULL, 2);
	pthread_create(&threads[0], NULL, spinner, "spin0");
	pthread_create(&threads[1], NULL, spinner, "spin1");
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
}

static void processes(int count)
{
	for (int i = 0; i < count; i++) {
		uint64_t before = now_ns(), after;
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child)
			_exit(i % 7);
		after = now_ns();
		if (waitpid(child, NULL, 0) != child)
			die("waitpid");
		printf("process %d %llu %llu %llu\n", child, (unsigned long long)before,
		       (unsigned long long)after, (unsigned long long)now_ns());
	}
}

static void *short_lived(void *tid)
{
	*(int *)tid = own_tid();
	return NULL;
}

static void threads(int count)
{
	for (int i = 0; i < count; i++) {
		uint64_t before = now_ns(), after;
		pthread_t thread;
		int tid = 0;

		if (pthread_create(&thread, NULL, short_lived, &tid))
			die("pthread_create");
		after = now_ns();
		pthread_join(thread, NULL);
		printf("thread %d %llu %llu %llu\n", tid, (unsigned long long)before,
		       (unsigned long long)after, (unsigned long long)now_ns());
	}
}

static void run_child(void (*what)(char **), char **argv)
{
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		what(argv);
		fflush(stdout);
		_exit(0);
	}
	if (waitpid(child, NULL, 0) != child)
		die("waitpid");
}

static void forked(char **argv)
{
	(void)argv;
	sleeps("forked", 23, 300000);
}

static void become(char **argv)
{
	execl(argv[0], argv[0], "sleeps", "execed", "29", "300000", NULL);
	die("execl");
}

static void *becoming(void *argv)
{
	become(argv);
	return NULL;
}

/* exec in a thread that is not the first: it takes the first one's id over. */
static void become_in_thread(char **argv)
{
	pthread_t thread;

	pthread_create(&thread, NULL, becoming, argv);
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	static char log[1 << 20];
	const char *what = argc > 1 ? argv[1] : "";

	/* Written at the end: a write to a pipe may wait, too. */
	setvbuf(stdout, log, _IOFBF, sizeof(log));
	if (!strcmp(what, "sleeps") && argc == 5) {
		sleeps(argv[2], atoi(argv[3]), atol(argv[4]));
	} else if (!strcmp(what, "ping-pong") && argc == 3) {
		ping_pong(atoi(argv[2]));
	} else if (!strcmp(what, "contend") && argc == 3) {
		contend(atoi(argv[2]));
	} else if (!strcmp(what, "spin") && argc == 3) {
		spin(atol(argv[2]));
	} else if (!strcmp(what, "processes") && argc == 3) {
		processes(atoi(argv[2]));
	} else if (!strcmp(what, "threads") && argc == 3) {
		threads(atoi(argv[2]));
	} else if (!strcmp(what, "family") && argc == 2) {
		char *path[] = {"/proc/self/exe"};

		run_child(forked, path);
		run_child(become, path);
		run_child(become_in_thread, path);
	} else {
		fprintf(stderr, "sched_workload: no such work: %s\n", what);
		return 2;
	}
	return 0;
}
