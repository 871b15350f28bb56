/* left, right and both of together.c in another version. */
__attribute__((noipa)) int left(int x)
{
	return x * 3 + VERSION;
}

__attribute__((noipa)) int right(int x)
{
	return x * 5 + VERSION;
}

extern int (*volatile entry_of_right)(int);

__attribute__((noipa)) int both(int x)
{
	int first = left(x) - x * 3;
	for (int i = 0; i < 8; i++)
		__asm__ volatile("pause");
	return first * 16 + entry_of_right(x) - x * 5;
}
