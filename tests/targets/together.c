/* Two functions that must change together. Each thread calls them as a pair all the time, in two ways: inside of `both`,
 * which is replaced as well, so that no migration can come in between; and one after the other, where one can, but then
 * this pair is the only one: from the next on both are of one version.
 * Commands on standard input, answers on standard output.   usage: together THREADS */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX 64
#define NAP_EVERY 4096 /* pairs; half of the threads sleep that often, so that they come by a wake-up point */
struct thread {
	pthread_t id;
	int naps, version;
	atomic_ulong pairs, mixed, torn, changes, wrong, seen;
};
static struct thread threads[MAX];
static atomic_int stop;

__attribute__((noipa)) int left(int x)
{
	return x * 3 + 1;
}

__attribute__((noipa)) int right(int x)
{
	return x * 5 + 1;
}

/* all calls from other places find the function that is in force by this way */
int (*volatile entry_of_right)(int) = right;

__attribute__((noipa)) int both(int x)
{
	int first = left(x) - x * 3;
	for (int i = 0; i < 8; i++)
		__asm__ volatile("pause");
	return first * 16 + entry_of_right(x) - x * 5;
}

static void saw(struct thread *t, int version)
{
	t->wrong += version < 1 || version > 3;
	t->changes += t->version && version != t->version;
	t->version = version;
	if (!(t->seen & 1UL << (version & 7)))
		t->seen |= 1UL << (version & 7);
}

static void *work(void *arg)
{
	struct thread *t = arg;
	for (int i = 1; !stop; i = (i + 1) & 0xffff) {
		int pair = both(i);
		saw(t, pair / 16);
		saw(t, pair % 16);
		t->mixed += pair / 16 != pair % 16;
		int first = left(i) - i * 3;
		saw(t, first);
		int second = right(i) - i * 5;
		saw(t, second);
		t->torn += first != second;
		t->pairs += 2;
		if (t->naps && i % NAP_EVERY == 0)
			usleep(500);
	}
	return NULL;
}

static void report(int count)
{
	unsigned long pairs = 0, mixed = 0, torn = 0, changes = 0, wrong = 0, seen = 0, slowest = -1UL;
	for (int i = 0; i < count; i++) {
		struct thread *t = &threads[i];
		unsigned long n = atomic_exchange(&t->pairs, 0);
		pairs += n, mixed += t->mixed, torn += t->torn, wrong += t->wrong, seen |= atomic_exchange(&t->seen, 0);
		if (t->changes > changes)
			changes = t->changes;
		if (n < slowest)
			slowest = n;
	}
	printf("{\"pairs\": %lu, \"slowest\": %lu, \"mixed\": %lu, \"torn\": %lu, \"changes\": %lu, \"wrong\": %lu, "
	       "\"seen\": %lu}\n",
	       pairs, slowest, mixed, torn, changes, wrong, seen);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 4;
	for (int i = 0; i < count && i < MAX; i++) {
		threads[i].naps = i % 2;
		pthread_create(&threads[i].id, NULL, work, &threads[i]);
	}
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) && !strncmp(line, "report", 6))
		report(count);
	stop = 1;
	for (int i = 0; i < count && i < MAX; i++)
		pthread_join(threads[i].id, NULL);
	report(count);
	return 0;
}
