/* Recursion of some thousand frames, with the replaced functions called at the bottom and on the way back; and a thread
 * that uses tens of megabytes of a large stack now and then. */
#include "torture.h"

__attribute__((noinline)) static long dive(int depth, volatile char *above)
{
	volatile char frame[64];
	frame[0] = above[0];
	if (depth == 0) {
		both();
		nap(300);
		return 0;
	}
	long sum = dive(depth - 1, frame) + 1;
	if (depth % 1000 == 0)
		both();
	return sum;
}

__attribute__((noinline)) static void fill(void)
{
	volatile char block[60 << 20];
	for (size_t i = 0; i < sizeof block; i += 1 << 16)
		block[i] = (char)i;
	both();
	nap(3000);
	must(block[5 << 16] == 0);
}

static void *work(void *arg)
{
	volatile char top[8] = {1};
	while (!stop) {
		if ((long)arg < 2)
			must(dive(4000, top) == 4000);
		else
			both();
		nap(3000);
	}
	return NULL;
}

static void *large(void *arg)
{
	while (!stop) {
		fill();
		nap(20000);
	}
	return arg;
}

int main(void)
{
	pthread_t id;
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 100 << 20);
	pthread_create(&id, &attributes, large, NULL);
	return run(3, work);
}
