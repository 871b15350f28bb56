/* What one call of a function costs, in cycles of the time stamp counter. Two threads measure: the main one, which can
 * migrate while it waits, and one that stays inside of a replaced function until it is told to go, and so keeps a
 * transition open and runs the old code. Commands on standard input: main, inside, release, stay (for another one after
 * a release), quit. Each of the first two answers with the cycles per call of every batch. */
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#define BATCHES 200
#define CALLS 10000
static sem_t go, done;
static volatile int released;
static double cost[BATCHES];

__attribute__((noinline)) uint64_t step(uint64_t x)
{
	return x * 6364136223846793005u + 1;
}

static void measure(void)
{
	static volatile uint64_t sink;
	uint64_t x = sink;
	for (int batch = 0; batch < BATCHES; batch++) {
		unsigned cpu;
		_mm_lfence();
		uint64_t start = __rdtsc();
		for (int i = 0; i < CALLS; i++)
			x = step(x);
		uint64_t end = __rdtscp(&cpu);
		_mm_lfence();
		cost[batch] = (double)(end - start) / CALLS;
	}
	sink = x;
}

__attribute__((noinline)) void stay(void)
{
	for (;;) {
		sem_wait(&go);
		if (released)
			return;
		measure();
		sem_post(&done);
	}
}

static void *inside(void *arg)
{
	stay();
	return arg;
}

static void print(void)
{
	for (int batch = 0; batch < BATCHES; batch++)
		printf("%s%.2f", batch ? " " : "", cost[batch]);
	printf("\n");
	fflush(stdout);
}

int main(void)
{
	pthread_t id;
	char line[64];
	sem_init(&go, 0, 0);
	sem_init(&done, 0, 0);
	pthread_create(&id, NULL, inside, NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4)) {
		if (!strncmp(line, "main", 4)) {
			measure();
			print();
		} else if (!strncmp(line, "inside", 6)) {
			sem_post(&go);
			sem_wait(&done);
			print();
		} else if (!strncmp(line, "release", 7)) {
			released = 1;
			sem_post(&go);
			pthread_join(id, NULL);
			printf("released\n");
			fflush(stdout);
		} else {
			released = 0;
			pthread_create(&id, NULL, inside, NULL);
			printf("inside\n");
			fflush(stdout);
		}
	}
	return 0;
}
