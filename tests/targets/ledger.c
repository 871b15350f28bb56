/* A program whose patch migrates data. Its threads ask `fee` of each item now and then, and tell old answers
 * from new ones. `calls` counts the hooks of the patch, `behave` tells them what to do: 0 or a number to
 * return, -1 to wait until told to go on, -2 to follow a wild pointer, -3 never to return.
 * Commands on standard input, answers on standard output. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ITEMS 64
#define THREADS 4
struct item {
	int value;
};
struct item items[ITEMS];
volatile int calls[4], behave[4], go;
static atomic_ulong old, new, wrong, changes, kept;
static atomic_int stop;

/* noipa: the builder would see which registers callers take for untouched, this test has no builder */
__attribute__((noipa)) int fee(const struct item *item)
{
	kept += item->value & 1;
	return item->value;
}

static void *work(void *arg)
{
	int last = 0;
	while (!stop) {
		for (int i = 0; i < ITEMS; i++) {
			int surcharge = fee(&items[i]) - items[i].value;
			int now = surcharge == 0 ? 1 : surcharge == 1000 ? 2 : 0;
			*(now == 2 ? &new : now == 1 ? &old : &wrong) += 1;
			changes += last && now != last;
			last = now;
		}
		struct timespec ms5 = {0, 5000000};
		nanosleep(&ms5, NULL);
	}
	return arg;
}

static void crashed(int signo)
{
	_exit(100 + signo);
}

static void report(void)
{
	struct sigaction action;
	sigaction(SIGSEGV, NULL, &action);
	printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"changes\": %lu, \"calls\": [%d, %d, %d, %d], \"handler\": %d}\n",
	       atomic_exchange(&old, 0), atomic_exchange(&new, 0), wrong, changes, calls[0], calls[1], calls[2], calls[3],
	       action.sa_handler == crashed);
}

int main(void)
{
	pthread_t ids[THREADS];
	signal(SIGSEGV, crashed);
	for (int i = 0; i < ITEMS; i++)
		items[i].value = i;
	for (int i = 0; i < THREADS; i++)
		pthread_create(&ids[i], NULL, work, NULL);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	int which, how;
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "behave %d %d", &which, &how) == 2) {
			behave[which & 3] = how;
			printf("as told\n");
		} else if (!strncmp(line, "go", 2)) {
			go = 1;
			printf("going on\n");
		} else if (!strncmp(line, "fork", 4)) {
			pid_t child = fork();
			if (child == 0) {
				sleep(60);
				_exit(0);
			}
			printf("%d\n", child);
		} else if (!strncmp(line, "report", 6)) {
			report();
		} else if (!strncmp(line, "quit", 4)) {
			break;
		}
		fflush(stdout);
	}
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(ids[i], NULL);
	report();
	return 0;
}
