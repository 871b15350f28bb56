/* A program whose main thread has ended while another works on: left answers 1 or 2 on each line of input. */
#include <pthread.h>
#include <stdio.h>

__attribute__((noinline)) int left(int x)
{
	return x * 3 + 1;
}

static void *work(void *arg)
{
	char line[64];
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		printf("%d\n", left(line[0]) - line[0] * 3);
		fflush(stdout);
	}
	return arg;
}

int main(void)
{
	pthread_t id;
	pthread_create(&id, NULL, work, NULL);
	pthread_exit(NULL);
}
