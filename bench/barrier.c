/* Stop all threads of a process at once, as live patchers with a barrier do, hold them for the time of a page switch, let
 * them go. For comparison only: the engine never does this. What a real barrier patcher does besides while all stand
 * still (looking through every stack, and again when one is not quiescent) is left out in its favour.
 *   usage: barrier PID HOLD_US
 * Prints: threads, ns from the first thread's stop request to the last one's release. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

#define MOST 40000
static pid_t held[MOST];
static int signals[MOST]; /* what was about to be delivered */
static int count;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int is_held(pid_t tid)
{
	/* The kernel lists threads in the order of their birth, so a known one is most often found behind the last one. */
	static int place;
	for (int i = 0; i < count; i++) {
		int at = (place + i) % count;
		if (held[at] == tid) {
			place = at + 1;
			return 1;
		}
	}
	return 0;
}

/* Ask every thread that is not held yet to stop; returns how many were asked. */
static int ask_all(const char *path)
{
	int first = count;
	DIR *folder = opendir(path);
	if (!folder)
		return -1;
	for (struct dirent *entry; (entry = readdir(folder));) {
		pid_t tid = atoi(entry->d_name);
		if (tid <= 0 || count == MOST || (first && is_held(tid)))
			continue;
		if (ptrace(PTRACE_SEIZE, tid, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0)
			held[count++] = tid;
	}
	closedir(folder);
	return count - first;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	char path[64];
	int waited = 0, status;
	int64_t hold_ns = atol(argv[2]) * 1000LL;
	snprintf(path, sizeof path, "/proc/%d/task", atoi(argv[1]));
	int64_t start = now();
	/* New threads are born until all stand still, so list again until nobody is new. */
	for (int asked; (asked = ask_all(path)) != 0;) {
		if (asked < 0) {
			perror(path);
			return 1;
		}
		for (; waited < count; waited++) {
			while (waitpid(held[waited], &status, __WALL) < 0 && errno == EINTR)
				;
			signals[waited] = status >> 16 ? 0 : WSTOPSIG(status);
		}
	}
	int64_t all_stopped = now();
	while (now() - all_stopped < hold_ns)
		;
	for (int i = 0; i < count; i++)
		ptrace(PTRACE_DETACH, held[i], 0, signals[i]);
	printf("{\"threads\": %d, \"stop_ns\": %lld, \"total_ns\": %lld}\n", count, (long long)(all_stopped - start),
	       (long long)(now() - start));
	return count == 0;
}
