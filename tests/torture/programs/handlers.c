/* Signal handlers run on the stacks of all threads, and on an alternate stack where ALTERNATE is set; they call the
 * replaced functions while those may be running below them. */
#include "torture.h"

static void handler(int signo)
{
	(void)signo;
	int kept = errno;
	both();
	errno = kept;
}

static void *work(void *arg)
{
#ifdef ALTERNATE
	stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
	sigaltstack(&stack, NULL);
#endif
	int pipes[2];
	must(pipe(pipes) == 0);
	while (!stop) {
		char byte = 5;
		both();
		must(write(pipes[1], &byte, 1) == 1);
		byte = 0;
		must(read(pipes[0], &byte, 1) == 1 && byte == 5); /* SA_RESTART: never EINTR */
		if ((long)arg == 0)
			kill(getpid(), SIGUSR1);
		struct timespec pause = {0, 300000};
		nanosleep(&pause, NULL); /* may be cut short by the handler: the program's own doing */
	}
	return NULL;
}

int main(void)
{
#ifdef ALTERNATE
	int flags = SA_RESTART | SA_ONSTACK;
#else
	int flags = SA_RESTART;
#endif
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	sigaction(SIGUSR1, &action, NULL);
	return run(4, work);
}
