/* Threads that wait for ever, each in its own way, and count what they should not see: a wait that ended for no reason.
 *   cond, mutex, sem, join   glibc's own loops, which a spurious wake-up does not leave
 *   futex                    the program's own futex call, which returns to it
 *   aio                      aio_suspend, which takes every wake-up for the end of the operation
 * Commands: "report" answers the number of waits that ended; "quit". */
#define _GNU_SOURCE
#include <aio.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static sem_t empty;
static int word;
static atomic_int ended, started;
static pthread_t sleeper;

__attribute__((noinline)) int answer(int x)
{
	return x * 3 + 1;
}

static void *on(void *how)
{
	prctl(PR_SET_NAME, how);
	started++;
	if (!strcmp(how, "cond")) {
		pthread_mutex_lock(&lock);
		pthread_cond_wait(&never, &lock);
	} else if (!strcmp(how, "mutex")) {
		pthread_mutex_lock(&held);
	} else if (!strcmp(how, "sem")) {
		sem_wait(&empty);
	} else if (!strcmp(how, "join")) {
		pthread_join(sleeper, NULL);
	} else if (!strcmp(how, "futex")) {
		for (;; ended++)
			syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	} else if (!strcmp(how, "aio")) {
		int ends[2];
		char byte;
		if (pipe(ends))
			return NULL;
		struct aiocb reading = {.aio_fildes = ends[0], .aio_buf = &byte, .aio_nbytes = 1};
		const struct aiocb *list[] = {&reading};
		aio_read(&reading);
		aio_suspend(list, 1, NULL);
	}
	ended++;
	return NULL;
}

int main(void)
{
	static char *ways[] = {"cond", "mutex", "sem", "futex", "aio", "join"};
	sem_init(&empty, 0, 0);
	pthread_mutex_lock(&held);
	for (int i = 0; i < 6; i++) {
		pthread_t id;
		pthread_create(&id, NULL, on, ways[i]);
		if (!i)
			sleeper = id;
	}
	while (started < 6)
		usleep(1000);
	usleep(50000);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "quit", 4))
			break;
		printf("{\"ended\": %d, \"answer\": %d}\n", ended, answer(1) - 3);
		fflush(stdout);
	}
	_exit(0);
}
