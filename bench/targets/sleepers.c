/* Threads that sleep, each in one of three ways, and wake now and then to call a function; and memory that is touched.
 * Prints "ready" when all threads sleep and all memory is resident; ends when standard input does.
 *   usage: sleepers THREADS MEGABYTES SEED */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SHORTEST_MS 100
#define LONGEST_MS 400
#define STACK_BYTES (64 * 1024)
static atomic_int started;
static unsigned seed;

__attribute__((noinline)) uint64_t work(uint64_t x)
{
	return x * 6364136223846793005u + 1;
}

static void on_condition(long ns)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += ns;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&lock);
	while (pthread_cond_timedwait(&never, &lock, &until) == 0)
		;
	pthread_mutex_unlock(&lock);
}

static void *sleeper(void *arg)
{
	long me = (long)arg;
	unsigned state = seed + (unsigned)me;
	uint64_t x = 1;
	atomic_fetch_add(&started, 1);
	for (;;) {
		long ms = SHORTEST_MS + rand_r(&state) % (LONGEST_MS - SHORTEST_MS);
		struct timespec pause = {0, ms * 1000000L};
		if (me % 3 == 0)
			nanosleep(&pause, NULL);
		else if (me % 3 == 1)
			poll(NULL, 0, (int)ms);
		else
			on_condition(pause.tv_nsec);
		x = work(x);
	}
	return (void *)x;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int threads = atoi(argv[1]);
	size_t bytes = (size_t)atol(argv[2]) << 20;
	seed = (unsigned)atoi(argv[3]);
	if (bytes) {
		char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED || madvise(memory, bytes, MADV_NOHUGEPAGE)) {
			perror("memory");
			return 1;
		}
		memset(memory, 1, bytes);
	}
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_BYTES);
	/* The main thread is one of them. */
	for (long i = 1; i < threads; i++) {
		pthread_t id;
		int error = pthread_create(&id, &small, sleeper, (void *)i);
		if (error) {
			fprintf(stderr, "thread %ld: %s\n", i, strerror(error));
			return 1;
		}
	}
	while (started < threads - 1)
		usleep(1000);
	printf("ready\n");
	fflush(stdout);
	char end;
	return read(0, &end, 1) > 0;
}
