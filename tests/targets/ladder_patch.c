/* The next versions of the functions in ladder.c. */
#ifndef ADDS
#define ADDS 1000
#endif
#define NEXT(name)                                                                                                     \
	long name(long x)                                                                                              \
	{                                                                                                              \
		return x + ADDS;                                                                                       \
	}
NEXT(short_to_hole)
NEXT(short_by_chain)
NEXT(punned)
NEXT(first_a_call)
NEXT(behind_saved)
NEXT(flags_in_use)
NEXT(loops_to_entry)
NEXT(loops_through_hole)
NEXT(rival)
NEXT(crosses_page)
NEXT(crosses_page_alone)
NEXT(last_byte_of_page)
NEXT(landing_pad)
NEXT(nops_at_entry)
NEXT(nops_around_entry)

long one_byte(void)
{
	return ADDS - 1;
}
