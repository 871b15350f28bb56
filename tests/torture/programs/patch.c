/* left and right of the next version, with what new code may bring along: a jump table, strings, data of its own. */
#include <stdio.h>

extern int calls_of_left;
static unsigned long seen[8];
static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7"};

int left(int x)
{
	calls_of_left += x & 1;
	switch (x) {
	case 0: seen[0]++; break;
	case 1: seen[1] += 3; break;
	case 2: seen[2] ^= seen[1]; break;
	case 3: seen[3] = seen[0] * 5; break;
	case 4: seen[4]--; break;
	case 5: seen[5] |= seen[4]; break;
	case 6: seen[6] -= seen[5]; break;
	default: seen[7] = ~seen[7];
	}
	return x * 3 + 2;
}

int right(int x)
{
	char text[32];
	return snprintf(text, sizeof text, "%s", digits[x & 7]) * 1000 + 2;
}
