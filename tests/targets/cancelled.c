/* Threads that are cancelled while they sleep in read or run towards it; each must run its clean-up handler.
 * Commands: "report" answers how many were cancelled and how many cleaned up; "quit". */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int ends[2];
static atomic_int cancelled, cleaned, stop;

__attribute__((noinline)) int answer(int x)
{
	return x * 3 + 1;
}

static void clean(void *arg)
{
	(void)arg;
	cleaned++;
}

static void *reader(void *arg)
{
	char byte;
	pthread_cleanup_push(clean, NULL);
	for (;;) /* a byte now and then: a wake-up and a cancellation may come together */
		if (read(ends[0], &byte, 1) == 1)
			answer(1);
	pthread_cleanup_pop(0);
	return arg;
}

static void *driver(void *arg)
{
	for (unsigned i = 0; !stop; i++) {
		pthread_t ids[4];
		for (int k = 0; k < 4; k++)
			pthread_create(&ids[k], NULL, reader, NULL);
		struct timespec pause = {0, 500000 + i % 7 * 300000};
		nanosleep(&pause, NULL);
		for (int k = 0; k < 4; k++) {
			if (k % 2 && write(ends[1], "", 1) != 1)
				return NULL;
			pthread_cancel(ids[k]);
			void *result;
			pthread_join(ids[k], &result);
			cancelled += result == PTHREAD_CANCELED;
		}
		nanosleep(&(struct timespec){0, 3000000}, NULL); /* the engine needs an instant without new threads */
	}
	return arg;
}

int main(void)
{
	if (pipe(ends))
		return 1;
	pthread_t id;
	pthread_create(&id, NULL, driver, NULL);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "quit", 4))
			break;
		printf("{\"cancelled\": %d, \"cleaned\": %d}\n", cancelled, cleaned);
		fflush(stdout);
	}
	stop = 1;
	pthread_join(id, NULL);
	printf("{\"cancelled\": %d, \"cleaned\": %d}\n", cancelled, cleaned);
	return 0;
}
