/* Threads are cancelled in blocking calls; their cleanup must run, and nobody else's. */
#include "torture.h"
#include <poll.h>

static int silent[2];

static void cleaned(void *arg)
{
	++*(int *)arg;
}

static void *victim(void *arg)
{
	pthread_cleanup_push(cleaned, arg);
	both();
	char byte;
	if (*(int *)arg)
		read(silent[0], &byte, 1);
	else
		poll(NULL, 0, -1);
	wrong++; /* nobody may come back from there */
	pthread_cleanup_pop(0);
	return NULL;
}

static void *work(void *arg)
{
	while (!stop) {
		int ran = (int)((long)arg & 1), before = ran;
		pthread_t id;
		void *result;
		must(pthread_create(&id, NULL, victim, &ran) == 0);
		nap(1500);
		must(pthread_cancel(id) == 0);
		must(pthread_join(id, &result) == 0 && result == PTHREAD_CANCELED && ran == before + 1);
		both();
	}
	return NULL;
}

int main(void)
{
	must(pipe(silent) == 0);
	return run(2, work);
}
