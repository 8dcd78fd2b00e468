/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_processes.c - known NVTX events in every kind of child process.
 *
 *   nvtx_processes MODE LOGDIR [ARGUMENT]
 */
#include "nvtx_log.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static char *self;
static char *directory;

/* In a child nothing of the parent's is open. */
static void child_begins(void)
{
	open_count = 0;
}

/* A child that emits gives up what it inherited of its parent's segments. */
static void only_own_segment(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	int count = 0;

	if (maps == NULL)
		fail("cannot read /proc/self/maps");
	while (fgets(line, sizeof(line), maps) != NULL)
		count += strstr(line, "memfd:cctrace") != NULL;
	fclose(maps);
	if (count > 1)
		fail("the parent's segment is still mapped");
}

static void reap(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
	    WEXITSTATUS(status) != 0)
		fail("a child failed");
}

/* Parent, child and grandchild; the parent's open range is not the child's. */
static void forks(void)
{
	pid_t child;

	log_burst("p", "parent");
	log_push((struct event){.domain = "p", .name = "outer", .category = 3});
	child = fork();
	if (child == 0) {
		pid_t grandchild;

		child_begins();
		log_pop("p");
		log_burst("p", "child");
		grandchild = fork();
		if (grandchild == 0) {
			child_begins();
			log_burst("p", "grandchild");
			only_own_segment();
			_exit(0);
		}
		reap(grandchild);
		log_burst("q", "child");
		_exit(0);
	}
	log_burst("p", "parent");
	reap(child);
	log_pop("p");
}

/* A fork that libc knows nothing of. */
static void raw_clone(void)
{
	pid_t child;

	log_burst("p", "parent");
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0) {
		child_begins();
		log_burst("p", "child");
		_exit(0);
	}
	reap(child);
	log_burst("p", "parent");
}

static void spawn(void)
{
	char *arguments[] = {self, "burst", directory, NULL};
	pid_t child;

	log_burst("p", "parent");
	if (posix_spawn(&child, self, NULL, NULL, arguments, environ) != 0)
		fail("cannot spawn");
	reap(child);
	log_burst("p", "parent");
}

static void vfork_exec(void)
{
	pid_t child;

	log_burst("p", "parent");
	child = vfork();
	if (child == 0) {
		execl(self, self, "burst", directory, NULL);
		_exit(1);
	}
	reap(child);
	log_burst("p", "parent");
}

/* A daemon: its parent is gone when it emits. */
static void daemonize(void)
{
	int ends[2];
	char byte;

	if (pipe(ends) != 0)
		fail("pipe");
	log_burst("p", "parent");
	if (fork() == 0) {
		child_begins();
		setsid();
		if (fork() != 0)
			_exit(0);
		close(ends[0]);
		while (getppid() == getsid(0))
			sched_yield();
		log_burst("p", "daemon");
		_exit(0);
	}
	close(ends[1]);
	if (read(ends[0], &byte, 1) != 0) /* ends with the daemon */
		fail("pipe");
	wait(NULL);
}

/* Thirteen children that exec at once and never emit. */
static void exec_only(void)
{
	log_burst("p", "parent");
	for (int i = 0; i < 13; i++) {
		pid_t child = fork();

		if (child == 0) {
			execl("/bin/true", "true", NULL);
			_exit(1);
		}
		reap(child);
	}
}

/* The same process, another program in it. */
static void exec_self(void)
{
	log_burst("p", "first");
	execl(self, self, "burst", directory, NULL);
	fail("exec");
}

/* Forks while other threads emit and register new names. */
static volatile int stop;

static void *busy_thread(void *argument)
{
	for (int i = 0; !stop; i++) {
		char name[32];

		snprintf(name, sizeof(name), "%s %d", (char *)argument, i / 16);
		nvtxRangePushA(name);
		nvtxDomainRegisterStringA(NULL, name);
		nvtxRangePop();
	}
	return NULL;
}

static void *child_thread(void *argument)
{
	(void)argument;
	log_burst("q", "child's thread");
	return NULL;
}

static void fork_threads(void)
{
	static char names[2][8] = {"one", "two"};
	pthread_t threads[2];

	domain_handle("q");
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, busy_thread, names[i]);
	for (int i = 0; i < 101; i++) {
		pid_t child = fork();

		if (child == 0) {
			pthread_t thread;

			child_begins();
			log_burst("p", "child");
			pthread_create(&thread, NULL, child_thread, NULL);
			pthread_join(thread, NULL);
			_exit(0);
		}
		reap(child);
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

/* SIGKILL in the middle of it all. */
static void killed(void)
{
	log_burst("p", "parent");
	log_push((struct event){.domain = "p", .name = "open"});
	log_open();
	kill(getpid(), SIGKILL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";

	self = argv[0];
	directory = argc > 2 ? argv[2] : ".";
	log_directory = directory;
	nvtxInitialize(NULL);
	if (strcmp(mode, "fork") == 0)
		forks();
	else if (strcmp(mode, "clone") == 0)
		raw_clone();
	else if (strcmp(mode, "spawn") == 0)
		spawn();
	else if (strcmp(mode, "vfork") == 0)
		vfork_exec();
	else if (strcmp(mode, "setsid") == 0)
		daemonize();
	else if (strcmp(mode, "exec_only") == 0)
		exec_only();
	else if (strcmp(mode, "exec") == 0)
		exec_self();
	else if (strcmp(mode, "fork_threads") == 0)
		fork_threads();
	else if (strcmp(mode, "kill") == 0)
		killed();
	else if (strcmp(mode, "burst") == 0)
		log_burst("p", "burst");
	else
		return 2;
	return 0;
}
