/* The other halves of pairs.c: left, right and linger of the next version. */
#include <stdio.h>
#include <string.h>

#ifndef VERSION
#define VERSION 2
#endif

#ifdef STATIC /* strlen has a resolver instead of an address there, and forge.py follows none */
#define strlen(text) (size_t)snprintf(NULL, 0, "%s", text)
#endif

extern int calls_of_left;

int left(int x)
{
	calls_of_left += x & 1;
	return x * 3 + VERSION;
}

int right(int x)
{
	char text[32];
	snprintf(text, sizeof text, "%d", x);
	return (int)strlen(text) * 1000 + VERSION;
}

int linger(int x)
{
	return x + VERSION;
}

int unused(int x)
{
	return x * 7 + calls_of_left;
}

#ifdef HOOKS /* each says no when another was called twice or left out */
#include "podgraft.h"

PODGRAFT_PRE_APPLY(before)
{
	return podgraft_shadow_alloc(&calls_of_left, 1, 64, 0, 0) == 0;
}

PODGRAFT_POST_APPLY(after)
{
	return podgraft_shadow_alloc(&calls_of_left, 2, 64, 0, 0) == 0;
}

PODGRAFT_PRE_REVERT(back)
{
	return podgraft_shadow_get(&calls_of_left, 1) == 0;
}

PODGRAFT_POST_REVERT(behind)
{
	podgraft_shadow_free_all(1, 0);
	podgraft_shadow_free_all(2, 0);
	return 0;
}
#endif
