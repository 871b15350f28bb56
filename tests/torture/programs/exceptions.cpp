// Exceptions are thrown and caught around the replaced functions, by callers that are not replaced.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <time.h>

extern "C" {
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
}

static std::atomic<bool> stop;
static std::atomic<unsigned long> old_calls, new_calls, wrong, eintr;

struct Guard {
	std::atomic<int> &count;
	explicit Guard(std::atomic<int> &c) : count(c) { count++; }
	~Guard() { count--; }
};

__attribute__((noinline)) static int thrower(int depth, std::atomic<int> &alive)
{
	Guard guard(alive);
	int version = left(depth) - depth * 3;
	(version == 1 ? old_calls : version == 2 ? new_calls : wrong)++;
	if (depth == 0)
		throw std::runtime_error(std::to_string(right(7) / 1000));
	return thrower(depth - 1, alive) + 1;
}

static void *work(void *)
{
	std::atomic<int> alive{0};
	while (!stop) {
		try {
			thrower(12, alive);
			wrong++;
		} catch (const std::runtime_error &error) {
			if (std::string(error.what()) != "1")
				wrong++;
		}
		if (alive != 0)
			wrong++;
		timespec pause = {0, 500000};
		if (nanosleep(&pause, nullptr))
			eintr++;
	}
	return nullptr;
}

int main()
{
	pthread_t ids[4];
	for (pthread_t &id : ids)
		pthread_create(&id, nullptr, work, nullptr);
	puts("ready");
	fflush(stdout);
	char line[64];
	while (!stop && fgets(line, sizeof line, stdin)) {
		stop = strncmp(line, "quit", 4) == 0;
		printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"eintr\": %lu}\n", old_calls.exchange(0),
		       new_calls.exchange(0), wrong.load(), eintr.load());
		fflush(stdout);
	}
	stop = true;
	for (pthread_t id : ids)
		pthread_join(id, nullptr);
	return wrong || eintr ? 1 : 0;
}
