/* The main thread has ended; another one answers. */
#include "torture.h"

static void *work(void *arg)
{
	while (!stop) {
		both();
		nap(500);
	}
	return arg;
}

static void *serve(void *arg)
{
	(void)arg;
	usleep(50000);
	exit(run(3, work));
}

int main(void)
{
	pthread_t id;
	pthread_create(&id, NULL, serve, NULL);
	pthread_exit(NULL);
}
