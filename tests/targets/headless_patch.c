int left(int x)
{
	return x * 3 + 2;
}
