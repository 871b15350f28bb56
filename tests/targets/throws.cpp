/* Exceptions thrown out of, through and in functions that are replaced (throws_patch.cpp). Each thread counts versions,
 * and whether every object on the way was destroyed. Commands on standard input, answers on standard output. */
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif
#include "throws.h"

thread_local int *alive_here;
static std::atomic<unsigned long> seen[4], wrong, alive;
static std::atomic<bool> stop;

int *alive_of_thread() { return alive_here; }

/* never replaced */
extern "C" __attribute__((noipa)) int raise_fault(int version) { throw Fault{version}; }

static void saw(int version)
{
	(version >= 1 && version <= 3 ? seen[version] : wrong)++;
}

static void *work(void *arg)
{
	int count = 0;
	alive_here = &count;
	while (!stop) {
		try {
			saw(middle(0));
			middle(1);
			wrong++;
		} catch (const Fault &fault) {
			saw(fault.version);
		}
		int caught = catcher(5);
		saw(caught / 16);
		wrong += caught % 16 != 5 || count != 0;
		if (arg)
			usleep(2000);
	}
	alive += count;
	return nullptr;
}

static void report()
{
	unsigned long old = seen[1].exchange(0), two = seen[2].exchange(0), three = seen[3].exchange(0);
	printf("{\"old\": %lu, \"two\": %lu, \"three\": %lu, \"wrong\": %lu, \"alive\": %lu}\n", old, two, three,
	       wrong.load(), alive.load());
	fflush(stdout);
}

int main()
{
	pthread_t threads[4];
	for (long i = 0; i < 4; i++)
		pthread_create(&threads[i], nullptr, work, reinterpret_cast<void *>(i));
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) && !strncmp(line, "report", 6))
		report();
	stop = true;
	for (auto thread : threads)
		pthread_join(thread, nullptr);
	report();
	return 0;
}
