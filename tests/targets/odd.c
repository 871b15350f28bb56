/* pairs in odd surroundings, which it makes itself when it is told so. Commands beside those of pairs:
 *   seal       the mapping of the program's code may not change any more (mseal)
 *   seal-libc  the same for that of the C library
 *   copy       the code moves to anonymous memory that asks for huge pages, as some servers do
 *   collapse   the code's pages in the file's cache become huge ones
 *   lock       all memory, now and later, stays resident (mlockall)
 *   fill       no address within 2 GiB of the code is free any more
 *   fill-libc  the same for the C library
 *   large      has 8 GiB of memory, which lie right below its libraries
 *   crowd N    maps memory until the kernel refuses, then unmaps N pieces
 *   spread     unmaps them all
 * Compiled with -DBIG there is room for a huge page around the code. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define PAGE 4096UL
#define HUGE 0x200000UL

#ifdef BIG
__asm__(".section .text.unlikely.before, \"ax\", @progbits\n .skip 0x100000, 0x90\n"
	".section .text.zz_behind, \"ax\", @progbits\n .skip 0x300000, 0x90\n .text\n");
#endif

static char *pieces[1 << 17];
static int piece_count;

static char *next_command(char *line, int size, FILE *from);
#define fgets next_command
#define main main_of_pairs
#include "pairs.c"
#undef main
#undef fgets

/* the mapping of a function, whole */
static void code(void *function, unsigned long *start, unsigned long *end)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", start, end) == 2 && *start <= (unsigned long)function && (unsigned long)function < *end)
			break;
	if (maps)
		fclose(maps);
}

static int copy(unsigned long start, unsigned long size)
{
	char *room = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		return -1;
	char *at = (char *)(((unsigned long)room + HUGE - 1) & -HUGE);
	madvise(at, size, MADV_HUGEPAGE);
	memcpy(at, (void *)start, size);
	if (mprotect(at, size, PROT_READ | PROT_EXEC))
		return -1;
	return mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED ? -1 : 0;
}

static int fill(unsigned long middle)
{
	unsigned long start = 0, end = 0, low = middle - (3UL << 30), high = middle + (3UL << 30);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, filled = 0;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	if (!maps)
		return -1;
	do {
		if (!fgets(line, sizeof line, maps) || sscanf(line, "%lx-%lx", &start, &end) != 2)
			start = end = high;
		if (low < start && low < high)
			filled += mmap((void *)low, (start < high ? start : high) - low, PROT_NONE, flags, -1, 0) != MAP_FAILED;
		if (low < end)
			low = end;
	} while (low < high);
	fclose(maps);
	return filled ? 0 : -1;
}

/* neighbours differ in protection, so that each is a mapping of its own */
static int crowd(int left_over)
{
	while (piece_count < (int)(sizeof pieces / sizeof *pieces)) {
		int protection = piece_count % 2 ? PROT_READ : PROT_NONE;
		char *piece = mmap(NULL, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (piece == MAP_FAILED)
			break;
		pieces[piece_count++] = piece;
	}
	/* from the end: one that lies between two others would only be split from them */
	while (left_over-- > 0 && piece_count)
		munmap(pieces[--piece_count], PAGE);
	return piece_count;
}

static int spread(void)
{
	int failed = 0;
	while (piece_count)
		failed += munmap(pieces[--piece_count], PAGE) != 0;
	return failed;
}

static char *next_command(char *line, int size, FILE *from)
{
	unsigned long start = 0, end = 0;
	while (fgets(line, size, from)) {
		code(strstr(line, "-libc") ? (void *)getpid : (void *)left, &start, &end);
		int result;
		if (!strncmp(line, "seal", 4))
			result = (int)syscall(SYS_mseal, start, end - start, 0);
		else if (!strncmp(line, "copy", 4))
			result = copy(start, end - start);
		else if (!strncmp(line, "collapse", 8))
			result = madvise((void *)((start + HUGE - 1) & -HUGE), HUGE, MADV_COLLAPSE);
		else if (!strncmp(line, "lock", 4))
			result = mlockall(MCL_CURRENT | MCL_FUTURE);
		else if (!strncmp(line, "fill", 4))
			result = fill(start);
		else if (!strncmp(line, "large", 5))
			result = -(mmap(NULL, 8UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ==
				   MAP_FAILED);
		else if (!strncmp(line, "crowd", 5))
			result = crowd(atoi(line + 5));
		else if (!strncmp(line, "spread", 6))
			result = spread();
		else
			return line;
		printf("%d\n", result < 0 ? -errno : result);
		fflush(stdout);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	return main_of_pairs(argc, argv);
}
