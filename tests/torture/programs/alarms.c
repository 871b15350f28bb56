/* Timers interrupt sleeping threads, with SA_RESTART and without: EINTR comes exactly when a handler ran. */
#include "torture.h"
#include <poll.h>

static _Thread_local volatile sig_atomic_t handled;

static void handler(int signo)
{
	(void)signo;
	handled++;
}

static void *work(void *arg)
{
	int signo = (long)arg % 2 ? SIGRTMIN : SIGRTMIN + 1;
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signo};
	event._sigev_un._tid = gettid();
	timer_t timer;
	must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	struct itimerspec every = {{0, 7000000}, {0, 7000000}};
	timer_settime(timer, 0, &every, NULL);
	while (!stop) {
		both();
		int before = handled;
		struct timespec pause = {0, 4000000};
		int result = (long)arg < 2 ? nanosleep(&pause, NULL) : poll(NULL, 0, 4);
		if (result && errno == EINTR && handled == before)
			eintr++;
		must(result == 0 || errno == EINTR);
	}
	timer_delete(timer);
	return NULL;
}

int main(void)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
	sigaction(SIGRTMIN, &action, NULL);
	action.sa_flags = 0;
	sigaction(SIGRTMIN + 1, &action, NULL);
	return run(4, work);
}
