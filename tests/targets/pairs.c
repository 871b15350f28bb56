/* A loaded program that checks itself. Each thread calls left and right in turn and counts old and new answers, and how
 * often the version changed from one call to the next: a migration is one change, more means that generations were mixed.
 * Some threads run hot, some sleep between calls in a system call, one sits inside a replaced function when told so.
 * Commands on standard input, answers on standard output. What lingers does so until it is told to go on.
 *   usage: pairs HOT SLEEPING [FOREVER]   FOREVER: threads that sleep in poll without an end */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define MAX 64
struct thread {
	pthread_t id;
	atomic_int tid;
	int hot;
	atomic_ulong old, new, wrong, eintr, changes;
	atomic_ulong seen; /* bit n: version n was seen */
	int version;
	atomic_ulong longest; /* tsc cycles between two rounds of a hot thread */
};
static struct thread threads[MAX];
static int count;
static atomic_int stop, linger_now;
static int go_on[2], leave_handler[2]; /* pipes: a byte ends the waiting */
static atomic_int restless; /* who waits wakes all the time and sleeps again */
int calls_of_left; /* touched by the replaced function, so that a patch needs a data reference */

__attribute__((noinline)) int left(int x)
{
	calls_of_left += x & 1;
	return x * 3 + 1;
}

__attribute__((noinline)) int right(int x)
{
	char text[32];
	snprintf(text, sizeof text, "%d", x);
	return (int)strlen(text) * 1000 + 1;
}

__attribute__((noinline)) static int look(struct pollfd *readable, int ms)
{
	return poll(readable, 1, ms);
}

static void wait_for(int pipe[2])
{
	struct pollfd readable = {pipe[0], POLLIN, 0};
	int found = 0;
	char byte;
	for (int i = 0; restless && !found && i < 12000; i++)
		found = look(&readable, 5);
	if (!found)
		found = look(&readable, 60000);
	if (found == 1 && read(pipe[0], &byte, 1) != 1)
		abort();
}

/* sleeps inside when told so: the straggler */
__attribute__((noinline)) int linger(int x)
{
	if (atomic_exchange(&linger_now, 0))
		wait_for(go_on);
	return x + 1;
}

/* never called: a test may damage it */
__attribute__((noinline)) int unused(int x)
{
	return x * 5 + calls_of_left;
}

static void saw(struct thread *t, int version)
{
	if (version == 1)
		t->old++;
	else if (version >= 2 && version <= 4)
		t->new++;
	else
		t->wrong++;
	if (t->version && version != t->version)
		t->changes++;
	t->seen |= 1UL << (version & 7);
	t->version = version;
}

static void round_of(struct thread *t, int i)
{
	saw(t, left(i & 7) - (i & 7) * 3);
	saw(t, right(7) % 1000);
}

static void *work(void *arg)
{
	struct thread *t = arg;
	t->tid = (int)syscall(SYS_gettid);
	uint64_t last = __rdtsc();
	for (int i = 0; !stop; i++) {
		if (t->hot) {
			round_of(t, i);
			uint64_t now = __rdtsc();
			if (now - last > t->longest)
				t->longest = now - last;
			last = now;
			continue;
		}
		struct timespec ms20 = {0, 20000000};
		if (i % 2 ? nanosleep(&ms20, NULL) : poll(NULL, 0, 20))
			t->eintr++;
		round_of(t, i);
	}
	return NULL;
}

static void *forever(void *arg)
{
	poll(NULL, 0, -1);
	return arg;
}

static void handler(int signo)
{
	(void)signo;
	wait_for(leave_handler);
}

static void *lingerer(void *arg)
{
	/* an alternate stack inside the thread's own: frames lie below the handler's stack pointer */
	char alternate[65536];
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
	sigaltstack(&stack, NULL);
	struct thread *t = arg;
	t->tid = (int)syscall(SYS_gettid);
	while (!stop) {
		saw(t, linger(1) - 1);
		struct timespec ms5 = {0, 5000000};
		nanosleep(&ms5, NULL);
	}
	return NULL;
}

static void report(void)
{
	unsigned long old = 0, new = 0, wrong = 0, eintr = 0, changes = 0, longest = 0, seen = 0;
	int all_new = 0;
	for (int i = 0; i < count; i++) {
		struct thread *t = &threads[i];
		unsigned long o = atomic_exchange(&t->old, 0), n = atomic_exchange(&t->new, 0);
		old += o, new += n, wrong += t->wrong, eintr += t->eintr;
		if (t->changes > changes)
			changes = t->changes;
		all_new += n && !o;
		seen |= atomic_exchange(&t->seen, 0);
		unsigned long gap = atomic_exchange(&t->longest, 0);
		if (gap > longest)
			longest = gap;
	}
	printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"eintr\": %lu, \"changes\": %lu, \"all_new\": %d, "
	       "\"threads\": %d, \"longest\": %lu, \"seen\": %lu}\n",
	       old, new, wrong, eintr, changes, all_new, count, longest, seen);
}

int main(int argc, char **argv)
{
	if (argc > 8)
		return unused(argc);
	if (pipe(go_on) || pipe(leave_handler))
		return 1;
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
	sigaction(SIGUSR2, &action, NULL);
	int hot = argc > 1 ? atoi(argv[1]) : 2, sleeping = argc > 2 ? atoi(argv[2]) : 2;
	for (count = 0; count < hot + sleeping && count < MAX - 1; count++) {
		threads[count].hot = count < hot;
		pthread_create(&threads[count].id, NULL, work, &threads[count]);
	}
	pthread_create(&threads[count].id, NULL, lingerer, &threads[count]);
	count++;
	for (int i = 0; i < (argc > 3 ? atoi(argv[3]) : 0); i++) {
		pthread_t id;
		pthread_create(&id, NULL, forever, NULL);
	}
	for (int i = 0; i < count; i++)
		while (!threads[i].tid)
			usleep(1000);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "linger", 6)) {
			linger_now = 1;
			while (linger_now)
				usleep(1000);
			usleep(20000);
			printf("lingering\n");
		} else if (!strncmp(line, "restless", 8)) {
			restless = 1;
			printf("restless\n");
		} else if (!strncmp(line, "go on", 5)) {
			printf(write(go_on[1], "", 1) == 1 ? "going on\n" : "no pipe\n");
		} else if (!strncmp(line, "leave", 5)) {
			printf(write(leave_handler[1], "", 1) == 1 ? "leaving\n" : "no pipe\n");
		} else if (!strncmp(line, "tid", 3)) {
			printf("%d\n", threads[count - 1].tid);
		} else if (!strncmp(line, "handle", 6)) {
			pthread_kill(threads[count - 1].id, SIGUSR2);
			usleep(50000);
			printf("handling\n");
		} else if (!strncmp(line, "name", 4)) {
			prctl(PR_SET_NAME, "caf\xc3");
			printf("named\n");
		} else if (!strncmp(line, "report", 6)) {
			report();
		} else if (!strncmp(line, "quit", 4)) {
			break;
		}
		fflush(stdout);
	}
	stop = 1;
	if (write(leave_handler[1], "", 1) != 1 || write(go_on[1], "", 1) != 1)
		return 1;
	for (int i = 0; i < count; i++)
		pthread_join(threads[i].id, NULL);
	report();
	return 0;
}
