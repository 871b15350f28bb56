/* Children are forked in every state of the patch; each must be consistent by itself. */
#include "torture.h"
#include <sys/wait.h>

static void *work(void *arg)
{
	while (!stop) {
		pid_t child = fork();
		if (child == 0) {
			wrong = 0;
			int first = left(0);
			for (int i = 0; i < 200; i++) {
				both();
				must(left(0) == first); /* nobody migrates a child: it must not change */
			}
			_exit(wrong ? 1 : 0);
		}
		int status;
		pid_t got = waitpid(child, &status, 0);
		if (got < 0 && errno == EINTR)
			eintr++;
		must(got == child && status == 0);
		both();
		nap(3000);
	}
	return arg;
}

int main(void)
{
	return run(3, work);
}
