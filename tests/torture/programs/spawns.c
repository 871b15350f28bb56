/* Other programs are started by vfork and exec; the parent sleeps uninterruptibly for a moment. */
#include "torture.h"
#include <spawn.h>
#include <sys/wait.h>

static void *work(void *arg)
{
	char *words[] = {"true", NULL}, *none[] = {NULL};
	while (!stop) {
		pid_t child;
		int status;
		must(posix_spawn(&child, "/bin/true", NULL, NULL, words, none) == 0);
		both();
		must(waitpid(child, &status, 0) == child && status == 0);
		both();
		nap(2000);
	}
	return arg;
}

int main(void)
{
	return run(3, work);
}
