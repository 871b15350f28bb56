/* Threads that sleep and one that runs: also built static, non-PIE, stripped, and with left and right in a library. */
#ifdef ELSEWHERE
int left(int x), right(int x);
#endif
#include "torture.h"

static void *work(void *arg)
{
	while (!stop) {
		both();
		if (arg)
			nap(700);
	}
	return NULL;
}

int main(void)
{
	return run(5, work);
}
