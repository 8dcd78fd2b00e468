/* SPDX-License-Identifier: Apache-2.0
 *
 * audit_loader.c - loads libraries from paths nobody could know, and calls them at
 * once.
 *
 *   audit_loader load PATH...            one after another; prints the sum of results
 *   audit_loader fork PATH...            each in a forked child of its own
 *   audit_loader family PATH...          the first by itself, then each in a forked
 * child audit_loader exec PATH...            after executing itself once more
 *   audit_loader storm PATH...           under a timer signal every 100 us
 *   audit_loader hold PATH FIFO FIFO     loads, opens the first for writing, and waits
 * for the second's end audit_loader threads PATH...         one thread each, of which
 * each has 1 MiB of thread-local memory audit_loader few PATH...             with no
 * descriptor free but one
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static __thread volatile char wide[1 << 20];

static int load(const char *path)
{
	void *library;
	int (*call)(int);

	errno = ERANGE;
	library = dlopen(path, RTLD_NOW);
	if (library == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	call = (int (*)(int))dlsym(library, "audit_call");
	if (call == NULL) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return call(1);
}

static void *load_in_thread(void *path)
{
	wide[sizeof(wide) - 1] = 1;
	return (void *)(long)(load(path) + wide[sizeof(wide) - 1] - 1);
}

static int load_in_child(const char *path)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(load(path));
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		exit(1);
	return WEXITSTATUS(status);
}

static void on_alarm(int signum)
{
	(void)signum;
}

static void begin_storm(void)
{
	struct sigaction action = {.sa_handler = on_alarm}; /* no SA_RESTART */
	struct itimerval timer = {{0, 100}, {0, 100}};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void leave_one_descriptor(void)
{
	struct rlimit limit = {4, 4};

	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		exit(1);
}

static void refuse_sockets(void)
{
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
		exit(77);
}

static void hold(char **argv)
{
	char byte;

	load(argv[2]);
	close(open(argv[3], O_WRONLY));
	(void)!read(open(argv[4], O_RDONLY), &byte, 1);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long sum = 0;

	if (strcmp(mode, "exec") == 0) {
		argv[1] = "load";
		execv("/proc/self/exe", argv);
		return 1;
	}
	if (strcmp(mode, "hold") == 0 && argc == 5) {
		hold(argv);
		return 0;
	}
	if (strcmp(mode, "storm") == 0)
		begin_storm();
	if (strcmp(mode, "few") == 0)
		leave_one_descriptor();
	if (strcmp(mode, "sandbox") == 0)
		refuse_sockets();
	for (int i = 2; i < argc; i++) {
		if (strcmp(mode, "fork") == 0 ||
		    (strcmp(mode, "family") == 0 && i > 2)) {
			sum += load_in_child(argv[i]);
		} else if (strcmp(mode, "threads") == 0) {
			pthread_t thread;
			void *result;

			if (pthread_create(&thread, NULL, load_in_thread, argv[i]) !=
				0 ||
			    pthread_join(thread, &result) != 0)
				return 1;
			sum += (long)result;
		} else {
			sum += load(argv[i]);
		}
	}
	printf("%ld\n", sum);
	return dup(STDIN_FILENO) == STDERR_FILENO + 1 ? 0 : 3;
}
