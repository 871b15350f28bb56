/* A thread whose stack is a small part of a large mapping, and which sleeps: left answers 1 or 2 on each line of input.
   On "fork" a thread forks; the answer is the child, which sleeps. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK = 1 << 18, ALL = 1 << 25 };

__attribute__((noinline)) int left(int x)
{
	return x * 3 + 1;
}

static void *sleep_for_ever(void *arg)
{
	for (;;)
		poll(NULL, 0, -1);
	return arg;
}

static void *fork_one(void *arg)
{
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		printf("%d\n", getpid());
		fflush(stdout);
		sleep_for_ever(arg);
	}
	waitpid(child, NULL, 0);
	return arg;
}

int main(void)
{
	char line[64];
	void *all = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_attr_t attributes;
	pthread_t id;
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, all, STACK);
	pthread_create(&id, &attributes, sleep_for_ever, NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "fork\n")) {
			pthread_create(&id, NULL, fork_one, NULL);
			continue;
		}
		printf("%d\n", left(line[0]) - line[0] * 3);
		fflush(stdout);
	}
}
