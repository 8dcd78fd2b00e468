/* SPDX-License-Identifier: Apache-2.0
 *
 * nvtx_workload.c - makes known NVTX events and writes down which (nvtx_log.h).
 *
 *   nvtx_workload MODE LOGDIR [ARGUMENT]
 *
 * Every mode is a function below; its comment says what it emits.
 */
#include "nvtx_log.h"

#include <locale.h>
#include <signal.h>
#include <sys/time.h>

/* Three threads and the main one, 37 rounds each: three domains interleaved,
 * every form of message; 11 ranges started on one thread and ended on another. */
static nvtxRangeId_t crossing[11];

static void *mixed_thread(void *argument)
{
	const char *name = argument;

	for (int i = 0; i < 37; i++) {
		struct event outer = {.domain = "alpha", .name = name};
		struct event inner = {.domain = "beta", .name = "inner", .form = ASCII};
		struct event plain = {.name = "plain", .form = PLAIN_ASCII};
		struct event wide = {.name = "wëit", .form = PLAIN_WIDE};

		inner.category = (uint32_t)(i % 5);
		inner.has_color = i % 2;
		inner.color = inner.has_color ? 0xFF000000u + (uint32_t)i : 0;
		outer.payload_type = NVTX_PAYLOAD_TYPE_INT64;
		outer.payload = (uint64_t)(int64_t)-i;
		log_push(outer);
		log_push(inner);
		log_push(plain);
		log_mark(wide);
		log_push(outer);
		log_pop("alpha");
		log_pop("beta"); /* out of order: the default domain's is above */
		log_pop(NULL);
		log_pop("alpha");
	}
	return NULL;
}

static void *ending_thread(void *argument)
{
	(void)argument;
	for (int i = 0; i < 11; i++)
		log_end(i % 2 ? "alpha" : NULL, crossing[i]);
	return NULL;
}

static void mixed(void)
{
	static char names[3][8] = {"one", "two", "three"};
	pthread_t threads[4];

	log_begin();
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, mixed_thread, names[i]);
	for (int i = 0; i < 11; i++) {
		struct event event = {.domain = i % 2 ? "alpha" : NULL,
				      .name = "crossing",
				      .form = i % 3 ? WIDE : ASCII};

		crossing[i] = log_start(event);
	}
	pthread_create(&threads[3], NULL, ending_thread, NULL);
	mixed_thread("main");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

/* One event per type of payload, colour, category, form and odd name. */
static void kinds(void)
{
	const double ratio = -0.1;
	const float half = 0.5f;
	struct event event = {.domain = "kinds", .name = "payload"};

	for (int type = 1; type <= 6; type++) {
		event.payload_type = (nvtxPayloadType_t)type;
		event.payload = UINT64_MAX - 6;
		if (type == NVTX_PAYLOAD_TYPE_DOUBLE)
			memcpy(&event.payload, &ratio, sizeof(ratio));
		if (type >= NVTX_PAYLOAD_TYPE_UNSIGNED_INT32)
			event.payload = UINT32_MAX - 6;
		if (type == NVTX_PAYLOAD_TYPE_FLOAT)
			memcpy(&event.payload, &half, sizeof(half));
		log_mark(event);
		log_push(event);
		log_pop("kinds");
	}
	event = (struct event){.domain = "kinds", .name = "", .form = ASCII};
	log_mark(event);
	event.form = REGISTERED;
	log_mark(event);
	event.form = NO_MESSAGE;
	log_mark(event);
	event.category = 7;
	log_mark(event);
	event.domain = NULL;
	event.category = 0;
	log_mark(event);
	event = (struct event){.domain = "kinds", .name = "日本語 😀", .form = WIDE};
	log_mark(event);
	event.form = ASCII;
	event.has_color = true; /* 0 is a colour */
	log_mark(event);
	event.color = 0x80FF00AAu;
	log_mark(event);
	event.form = REGISTERED;
	log_mark(event);
	nvtxNameOsThreadA((uint32_t)syscall(SYS_gettid), "named by NVTX");
}

/* What programs should not do: NULL and short structs, texts too long. Their
 * events are marks; nothing is logged, the test knows them. */
static void odd(void)
{
	nvtxEventAttributes_t *attributes = calloc(1, 40);
	char *text = malloc(70001);
	wchar_t *wide = calloc(70001, sizeof(*wide));

	memset(text, 'x', 70000);
	memcpy(text + 65534, "\xC3\xA9", 2); /* a character across the limit */
	text[70000] = 0;
	wmemset(wide, L'y', 70000);
	wide[5] = (wchar_t)0xD800;
	nvtxMarkEx(NULL);
	nvtxMarkA(NULL);
	nvtxMarkW(NULL);
	nvtxMarkA(text);
	nvtxMarkW(wide);
	/* Up to `message`, which is not there, nor readable as far as we know. */
	attributes->version = NVTX_VERSION;
	attributes->size = 40;
	attributes->category = 6;
	attributes->payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
	attributes->payload.ullValue = 17;
	attributes->messageType = NVTX_MESSAGE_TYPE_ASCII;
	nvtxMarkEx(attributes);
	attributes->size = 0;
	nvtxMarkEx(attributes);
	nvtxDomainMarkEx(nvtxDomainCreateA(NULL), attributes);
	if (nvtxDomainRegisterStringA(NULL, NULL) != NULL)
		fail("registering NULL gave a handle");
	nvtxNameCategoryA(1, NULL);
	nvtxDomainDestroy(NULL);
	nvtxRangeEnd(0);
	nvtxDomainDestroy(domain_handle("odd"));
	log_mark((struct event){.domain = "odd", .name = "after its destruction"});
	nvtxMarkA(text); /* counted anew */
	free(attributes);
	free(text);
	free(wide);
}

/* Frames of two domains closed in every order, and pops of nothing. */
static void interleaved(void)
{
	const char *domains[] = {"a", "b", NULL};

	log_pop("a");
	for (int round = 0; round < 31; round++) {
		for (int i = 0; i < 7; i++)
			log_push((struct event){.domain = domains[(round + i) % 3],
						.name = "range",
						.form = ASCII});
		for (int i = 0; i < 7; i++)
			log_pop(domains[(round * i) % 3]);
		for (int i = 0; i < 3; i++)
			while (depth_in(domains[i]) > 0)
				log_pop(domains[i]);
	}
	log_pop(NULL);
}

/* COUNT pushes in two domains, then their pops; the test's stack holds less.
 * What is pushed beyond it is not logged. */
static void deep(int frames, int count)
{
	for (int i = 0; i < count; i++) {
		const char *domain = i % 3 ? "a" : "b";

		if (i < frames)
			log_push((struct event){.domain = domain, .name = "deep"});
		else
			nvtxDomainRangePushEx(domain_handle(domain), NULL);
	}
	for (int i = count - 1; i >= 0; i--) {
		const char *domain = i % 3 ? "a" : "b";

		if (i < frames)
			log_pop(domain);
		else
			nvtxDomainRangePop(domain_handle(domain));
	}
	log_burst("a", "after");
}

/* Five ranges and three starts left open, and no clean exit. */
static void open_at_exit(void)
{
	log_burst("a", "before");
	for (int i = 0; i < 5; i++)
		log_push((struct event){.domain = i % 2 ? "a" : NULL, .name = "open"});
	log_pop("a");
	for (int i = 0; i < 3; i++)
		log_start((struct event){.domain = "a", .name = "started"});
	log_open();
	_exit(7);
}

static void *burst_thread(void *argument)
{
	log_burst("threads", argument);
	return NULL;
}

/* 61 threads, one after the other; with "step" one per line of stdin. */
static void threads(bool step)
{
	for (int i = 0; i < 61; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, burst_thread, "thread") != 0)
			fail("cannot make a thread");
		pthread_join(thread, NULL);
		if (step) {
			puts("next");
			fflush(stdout);
			if (getchar() == EOF)
				fail("nobody steps");
		}
	}
}

/* A thread that leaves two ranges open, and emits from a destructor that runs
 * after the agent's own. */
static void last_words(void *value)
{
	struct event event = {.name = value, .form = ASCII};

	log_mark(event);
}

static void *leaving_thread(void *key)
{
	pthread_setspecific(*(pthread_key_t *)key, "last words");
	for (int i = 0; i < 3; i++)
		log_push((struct event){.domain = "a", .name = "left open"});
	log_pop("a");
	log_open();
	return NULL;
}

static void leaving(void)
{
	pthread_t thread;
	pthread_key_t key;

	pthread_key_create(&key, last_words);
	pthread_create(&thread, NULL, leaving_thread, &key);
	pthread_join(thread, NULL);
}

/* A signal handler's own events, at any moment of the program's; prints how
 * many each side emitted. */
static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	nvtxRangePushA("handler");
	nvtxMarkA("handler");
	nvtxRangePop();
	handled++;
}

static void signals(void)
{
	struct itimerval every = {.it_interval.tv_usec = 50, .it_value.tv_usec = 50};
	struct sigaction action = {.sa_handler = handler};
	long emitted = 0;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	while (handled < 1009) {
		char name[32];

		/* New names now and then: the handler also meets the lock. */
		snprintf(name, sizeof(name), "main %ld", emitted / 64);
		nvtxRangePushA(name);
		nvtxDomainRegisterStringA(NULL, name);
		nvtxRangePop();
		emitted++;
	}
	memset(&every, 0, sizeof(every));
	setitimer(ITIMER_REAL, &every, NULL);
	printf("%ld %d\n", emitted, (int)handled);
}

/* All descriptors but the standard ones closed, before and after. */
static void close_descriptors(void)
{
	syscall(SYS_close_range, 3, ~0u, 0);
	log_burst("a", "before");
	syscall(SYS_close_range, 3, ~0u, 0);
	log_fd = -1;
	log_burst("a", "after");
	for (int i = 0; i < 11; i++) {
		pthread_t thread;

		pthread_create(&thread, NULL, burst_thread, "thread");
		pthread_join(thread, NULL);
	}
}

/* COUNT marks with COUNT / 10 different names. */
static void many(int count)
{
	for (int i = 0; i < count; i++) {
		char name[32];

		snprintf(name, sizeof(name), "many-%d", i / 10);
		nvtxMarkA(name);
	}
}

/* Four threads that see the same 4001 new names, in the same order, at once. */
static void *racing_thread(void *argument)
{
	nvtxDomainHandle_t domain = nvtxDomainCreateA("race");

	pthread_barrier_wait(argument);
	for (int i = 0; i < 4001; i++) {
		nvtxEventAttributes_t attributes = {
		    .version = NVTX_VERSION,
		    .size = NVTX_EVENT_ATTRIB_STRUCT_SIZE,
		    .messageType = NVTX_MESSAGE_TYPE_REGISTERED,
		};
		char name[32];

		snprintf(name, sizeof(name), "race-%d", i);
		attributes.message.registered = nvtxDomainRegisterStringA(domain, name);
		nvtxDomainMarkEx(domain, &attributes);
		attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
		attributes.message.ascii = name;
		nvtxDomainMarkEx(domain, &attributes);
	}
	return NULL;
}

static void race(void)
{
	pthread_barrier_t barrier;
	pthread_t threads[4];

	log_begin();
	pthread_barrier_init(&barrier, NULL, 4);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, racing_thread, &barrier);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int number = argc > 3 ? atoi(argv[3]) : 0;

	setlocale(LC_ALL, "C.UTF-8");
	nvtxInitialize(NULL); /* loading a tool may set errno; its calls may not */
	if (argc > 2)
		log_directory = argv[2];
	if (strcmp(mode, "mixed") == 0)
		mixed();
	else if (strcmp(mode, "kinds") == 0)
		kinds();
	else if (strcmp(mode, "odd") == 0)
		odd();
	else if (strcmp(mode, "interleaved") == 0)
		interleaved();
	else if (strcmp(mode, "deep") == 0)
		deep(number, argc > 4 ? atoi(argv[4]) : 0);
	else if (strcmp(mode, "open") == 0)
		open_at_exit();
	else if (strcmp(mode, "threads") == 0)
		threads(number != 0);
	else if (strcmp(mode, "signals") == 0)
		signals();
	else if (strcmp(mode, "close") == 0)
		close_descriptors();
	else if (strcmp(mode, "leaving") == 0)
		leaving();
	else if (strcmp(mode, "race") == 0)
		race();
	else if (strcmp(mode, "many") == 0)
		many(number);
	else
		return 2;
	return 0;
}
