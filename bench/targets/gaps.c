/* Threads that read the time stamp counter in a tight loop and keep a histogram of the gaps between two readings.
 * A thread that is stopped, by anybody, sees a gap. Commands on standard input: reset, report, quit.
 *   usage: gaps THREADS */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#define MAX 16
#define BUCKETS 32 /* bucket n counts gaps of [2^n, 2^(n+1)) ns; below 1 us is not counted */
static atomic_ulong gaps[MAX][BUCKETS];
static atomic_ulong longest[MAX];
static atomic_int stop;
static double cycles_per_ns;

__attribute__((noinline)) uint64_t step(uint64_t x)
{
	return x * 6364136223846793005u + 1;
}

static void *spin(void *arg)
{
	long me = (long)arg;
	uint64_t last = __rdtsc(), x = 1;
	while (!stop) {
		x = step(x);
		uint64_t now = __rdtsc();
		uint64_t ns = (uint64_t)((double)(now - last) / cycles_per_ns);
		if (ns >= 1000) {
			gaps[me][63 - __builtin_clzll(ns)]++;
			if (ns > longest[me])
				longest[me] = ns;
		}
		last = now;
	}
	return (void *)x;
}

static void calibrate(void)
{
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	uint64_t start = __rdtsc();
	do
		clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < 100000000);
	cycles_per_ns = (double)(__rdtsc() - start) / (double)((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 2;
	pthread_t id[MAX];
	calibrate();
	for (long i = 0; i < n; i++)
		pthread_create(&id[i], NULL, spin, (void *)i);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4)) {
		unsigned long top = 0;
		printf("{\"buckets\": [");
		for (int b = 0; b < BUCKETS; b++) {
			unsigned long sum = 0;
			for (int i = 0; i < n; i++)
				sum += atomic_exchange(&gaps[i][b], 0);
			printf("%s%lu", b ? ", " : "", sum);
		}
		for (int i = 0; i < n; i++) {
			unsigned long mine = atomic_exchange(&longest[i], 0);
			if (mine > top)
				top = mine;
		}
		printf("], \"longest_ns\": %lu}\n", top);
		fflush(stdout);
	}
	stop = 1;
	for (int i = 0; i < n; i++)
		pthread_join(id[i], NULL);
	return 0;
}
