/* Memory is mapped and unmapped all the time, next to libraries and by the heap: gaps that were free are taken. */
#include "torture.h"
#include <sys/mman.h>

static void *work(void *arg)
{
	for (unsigned i = 1; !stop; i++) {
		size_t size = (i % 31 + 1) * 4096;
		char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must(page != MAP_FAILED);
		page[0] = (char)i;
		/* in a position-independent program the place below it, where new code goes, is free as a rule */
		char *near = (char *)((unsigned long)&left & -4096ul) - (64 + i % 64) * 4096;
		char *fixed = mmap(near, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (fixed != MAP_FAILED)
			memset(fixed, 0x5a, size);
		both();
		char *block = malloc(i % 7 * 50000);
		if ((long)arg)
			nap(200);
		must(page[0] == (char)i);
		if (fixed != MAP_FAILED) {
			must(fixed == near && fixed[0] == 0x5a && fixed[size - 1] == 0x5a);
			munmap(fixed, size);
		}
		munmap(page, size);
		free(block);
	}
	return NULL;
}

int main(void)
{
	return run(3, work);
}
