/* left and right come from a library that is opened by dlopen. */
#include <dlfcn.h>
static int (*left_)(int), (*right_)(int);
#define left(x) left_(x)
#define right(x) right_(x)
#define ELSEWHERE
#include "torture.h"

static void *work(void *arg)
{
	(void)arg;
	while (!stop) {
		both();
		nap(700);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!library)
		return 4;
	*(void **)&left_ = dlsym(library, "left");
	*(void **)&right_ = dlsym(library, "right");
	return run(4, work);
}
