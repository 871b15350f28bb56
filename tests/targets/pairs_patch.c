/* The other halves of pairs.c: left, right and linger of the next version. */
#include <stdio.h>
#include <string.h>

#ifndef VERSION
#define VERSION 2
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
