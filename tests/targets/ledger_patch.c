/* The patch of ledger.c: each item has a surcharge, which is no part of the struct but a shadow variable. */
#include "podgraft.h"

#define SURCHARGE 7
#define ITEMS 64
struct item {
	int value;
};
extern struct item items[ITEMS];
extern volatile int calls[4], behave[4], go;

int fee(const struct item *item)
{
	int *surcharge = podgraft_shadow_get(item, SURCHARGE);
	return item->value + (surcharge ? *surcharge : -1);
}

static int *volatile wild = (int *)8;

static int act(int which)
{
	__atomic_fetch_add(&calls[which], 1, __ATOMIC_SEQ_CST);
	if (behave[which] == -2)
		*wild = 1;
	while (behave[which] == -3 || (behave[which] == -1 && !go))
		;
	return behave[which] > 0 ? behave[which] : 0;
}

static int thousand(const void *obj, void *shadow, void *argument)
{
	(void)obj;
	*(int *)shadow = *(int *)argument;
	return 0;
}

PODGRAFT_PRE_APPLY(make_surcharges)
{
	int amount = 1000, result = act(0);
	for (int i = 0; i < ITEMS && !result; i++)
		if (!podgraft_shadow_get_or_alloc(&items[i], SURCHARGE, sizeof amount, thousand, &amount))
			return -1;
	return result;
}

PODGRAFT_POST_APPLY(all_are_new)
{
	return act(1);
}

PODGRAFT_PRE_REVERT(going_back)
{
	return act(2);
}

PODGRAFT_POST_REVERT(drop_surcharges)
{
	podgraft_shadow_free_all(SURCHARGE, 0);
	return act(3);
}
