#include <stdint.h>

uint64_t step(uint64_t x)
{
	return x * 6364136223846793005u + 3;
}
