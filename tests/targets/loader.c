/* Opens, closes and calls libraries when it is told so, while a thread sleeps. Each has left and right of pairs.
 *   open SLOT PATH   dlopen                  own SLOT PATH   dlmopen into a name space of its own
 *   close SLOT       dlclose                 call SLOT       the version that answers, -1 when left and right differ */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define SLOTS 4
static struct {
	void *library;
	int (*left)(int), (*right)(int);
} slots[SLOTS];

static int open_in(int slot, void *library)
{
	slots[slot].library = library;
	if (!library) {
		printf("%s\n", dlerror());
		return 0;
	}
	*(void **)&slots[slot].left = dlsym(library, "left");
	*(void **)&slots[slot].right = dlsym(library, "right");
	return 1;
}

static int version_of(int slot)
{
	int left = slots[slot].left(5) - 15, right = slots[slot].right(7) % 1000;
	return left == right ? left : -1;
}

static void *sleeper(void *arg)
{
	for (;;)
		poll(NULL, 0, 20);
	return arg;
}

int main(void)
{
	pthread_t id;
	char line[512], what[16], path[480];
	int slot;
	if (pthread_create(&id, NULL, sleeper, NULL))
		return 1;
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "%15s %d %479s", what, &slot, path) < 2 || slot < 0 || slot >= SLOTS)
			return 2;
		if (!strcmp(what, "open")) {
			if (open_in(slot, dlopen(path, RTLD_NOW)))
				printf("open\n");
		} else if (!strcmp(what, "own")) {
			if (open_in(slot, dlmopen(LM_ID_NEWLM, path, RTLD_NOW)))
				printf("open\n");
		} else if (!strcmp(what, "close")) {
			printf(dlclose(slots[slot].library) ? "still open\n" : "closed\n");
		} else {
			printf("%d\n", version_of(slot));
		}
		fflush(stdout);
	}
	return 0;
}
