/* What every target program of the torture run shares: two functions that are replaced, counters, and a command loop.
 * A program defines work(), which is run by each of its threads until `stop`, and starts with RUN(threads). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int stop;
static atomic_ulong old_calls, new_calls, wrong, eintr;

#ifndef ELSEWHERE /* left and right live in a library */
int calls_of_left;

__attribute__((noinline)) int left(int x)
{
	calls_of_left += x & 1;
	return x * 3 + 1;
}

__attribute__((noinline)) int right(int x)
{
	char text[32];
	return snprintf(text, sizeof text, "%d", x) * 1000 + 1;
}
#endif

static void count(int version)
{
	if (version == 1)
		old_calls++;
	else if (version == 2)
		new_calls++;
	else
		wrong++;
}

static void both(void)
{
	static _Thread_local int i;
	i = (i + 1) & 7;
	count(left(i) - i * 3);
	count(right(7) % 1000);
}

static inline void nap(long microseconds)
{
	struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
	if (nanosleep(&pause, NULL))
		eintr++;
}

static inline void must(int holds)
{
	if (!holds)
		wrong++;
}

static void answer_commands(void)
{
	char line[64];
	printf("ready\n");
	fflush(stdout);
	do {
		if (!fgets(line, sizeof line, stdin)) {
			if (errno == EINTR && !feof(stdin)) {
				clearerr(stdin);
				line[0] = 0;
				continue;
			}
			break;
		}
		unsigned long before = atomic_exchange(&old_calls, 0), after = atomic_exchange(&new_calls, 0);
		if (!strncmp(line, "quit", 4))
			stop = 1;
		printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"eintr\": %lu}\n", before, after, wrong, eintr);
		fflush(stdout);
	} while (!stop);
	stop = 1;
}

static inline int run(int threads, void *(*work)(void *))
{
	pthread_t ids[64];
	for (long i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, (void *)i))
			exit(3);
	answer_commands();
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	return wrong || eintr ? 1 : 0;
}
