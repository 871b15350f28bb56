/* Threads are born and die all the time; some are detached. */
#include "torture.h"

static void *child(void *arg)
{
	both();
	if ((long)arg & 1)
		nap(200);
	both();
	return (void *)7;
}

static void *work(void *arg)
{
	while (!stop) {
		pthread_t id;
		void *result;
		must(pthread_create(&id, NULL, child, arg) == 0);
		both();
		must(pthread_join(id, &result) == 0 && result == (void *)7);
		nap(300);
	}
	return NULL;
}

int main(void)
{
	return run(4, work);
}
