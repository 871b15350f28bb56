/* Thread-local variables, and pointers to the replaced functions that are compared and called. */
#include "torture.h"

static _Thread_local long mine, rounds;
static int (*volatile known)(int) = left;

static void *work(void *arg)
{
	mine = (long)arg * 1000;
	while (!stop) {
		must(known == left);
		int version = known(2) - 6;
		count(version);
		both();
		mine++, rounds++;
		must(mine == (long)arg * 1000 + rounds);
		nap(400);
	}
	return NULL;
}

int main(void)
{
	return run(4, work);
}
