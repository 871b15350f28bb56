/* Each thread switches between three stacks of its own making (swapcontext); nobody is suspended in a replaced function. */
#include "torture.h"
#include <ucontext.h>

struct loom {
	ucontext_t home, other[2];
	int at, sum;
};
static _Thread_local struct loom loom;

static void body(void)
{
	for (;;) {
		both();
		loom.sum += loom.at + 1;
		swapcontext(&loom.other[loom.at], &loom.home);
	}
}

static void *work(void *arg)
{
	for (int i = 0; i < 2; i++) {
		getcontext(&loom.other[i]);
		loom.other[i].uc_stack.ss_sp = malloc(1 << 16);
		loom.other[i].uc_stack.ss_size = 1 << 16;
		makecontext(&loom.other[i], body, 0);
	}
	for (int rounds = 1; !stop; rounds++) {
		for (loom.at = 0; loom.at < 2; loom.at++)
			swapcontext(&loom.home, &loom.other[loom.at]);
		must(loom.sum == rounds * 3);
		if (rounds > 1000000)
			rounds = loom.sum = 0;
		nap(400);
	}
	return arg;
}

int main(void)
{
	return run(3, work);
}
