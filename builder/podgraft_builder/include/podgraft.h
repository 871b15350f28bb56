/* SPDX-License-Identifier: Apache-2.0
 *
 * podgraft.h: data migration hooks and shadow variables for live patches. docs/hooks.md says how to use them.
 *
 * Hooks run once, by a thread of podgraft's own, while the program runs on. They may read and write the program's data
 * and call what is defined here and new functions that keep to the same rule: no calls into the program or a library,
 * no thread-local variables, no system calls. `podgraft build` refuses others. 0 means well done.
 *
 * Shadow variables are data that belongs to an object of the program, found by the object's address and a number. Any
 * thread may use them at any time: nothing here takes a lock or makes a system call. They outlive the patch. In a
 * program that was built with the patch, and not patched while it ran, hooks do not run and there is no shadow memory:
 * podgraft_shadow_get and podgraft_shadow_alloc return NULL.
 */
#ifndef PODGRAFT_H
#define PODGRAFT_H 1
#pragma GCC system_header

#if !defined(__x86_64__) || defined(__ILP32__) || !defined(__ELF__) || !defined(__GNUC__)
#error "podgraft.h is for GCC or clang and x86-64 ELF"
#endif

#if defined(__has_attribute)
#if __has_attribute(no_stack_protector)
#define PODGRAFT_PLAIN_ __attribute__((no_stack_protector))
#endif
#endif
#ifndef PODGRAFT_PLAIN_
#define PODGRAFT_PLAIN_
#endif
#define PODGRAFT_FUNCTION_ static __attribute__((unused, noinline))

#define PODGRAFT_HOOK_(kind, name)                                                                                     \
	static int name(void) __attribute__((used, noinline, section(".podgraft." kind))) PODGRAFT_PLAIN_;             \
	static int name(void)

/* PODGRAFT_PRE_APPLY(name) { ...; return 0; }
 * before any code changes; anything but 0 refuses the patch, and nothing was changed */
#define PODGRAFT_PRE_APPLY(name) PODGRAFT_HOOK_("pre_apply", name)
/* when every thread runs the new code; anything but 0 is reported */
#define PODGRAFT_POST_APPLY(name) PODGRAFT_HOOK_("post_apply", name)
/* before the first thread goes back to the old code; anything but 0 refuses the revert */
#define PODGRAFT_PRE_REVERT(name) PODGRAFT_HOOK_("pre_revert", name)
/* when every thread runs the old code again; anything but 0 is reported */
#define PODGRAFT_POST_REVERT(name) PODGRAFT_HOOK_("post_revert", name)

typedef __SIZE_TYPE__ podgraft_size;
/* Fills in a new shadow variable that nobody else sees yet; anything but 0 gives it up. Two threads may each make one
 * for the same key: the later one is given up without a destructor. */
typedef int (*podgraft_ctor)(const void *obj, void *shadow, void *argument);
/* Looks at a shadow variable for the last time. */
typedef void (*podgraft_dtor)(const void *obj, void *shadow);

/* Compilers make calls of memcpy and memset out of loops and assignments, which a hook must not have. */
PODGRAFT_FUNCTION_ void podgraft_copy(void *to, const void *from, podgraft_size size)
{
	__asm__ __volatile__("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

PODGRAFT_FUNCTION_ void podgraft_fill(void *to, unsigned char byte, podgraft_size size)
{
	__asm__ __volatile__("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
}

/* The arena: shadow memory of the process, shared by all its patches, so its layout is fixed by the symbol's number.
 * Offsets are from its start, in units of 16 bytes; 0 is none. A node belongs to one key for ever: chains only grow, so
 * readers need no lock, and a thread that stops anywhere, for good or for a fork, leaves everything whole. */
#define PODGRAFT_UNIT_ 16UL
#define PODGRAFT_CHAINS_ 65536UL
struct podgraft_arena_ {
	unsigned long size; /* bytes, written by the engine */
	unsigned long used; /* bytes handed out behind this head */
	unsigned long idle[64]; /* free blocks by power of two: number of changes << 32 | offset of the first */
	unsigned int chains[PODGRAFT_CHAINS_]; /* offsets of nodes */
};
struct podgraft_node_ {
	unsigned long key; /* address of the object << 16 | number */
	unsigned int value; /* offset of the block, 0 when the variable does not exist */
	unsigned int next;
};
struct podgraft_block_ {
	unsigned int power; /* 16 + size rounded up to 2^power bytes */
	unsigned int next; /* while it is free */
	unsigned long unused;
};

static __inline__ __attribute__((unused, always_inline)) struct podgraft_arena_ *podgraft_arena_(void)
{
	struct podgraft_arena_ *arena;
	/* Through the GOT: the arena may lie anywhere, and in a program that was not patched there is none. */
	__asm__(".weak podgraft_arena_v1\n\t.hidden podgraft_arena_v1\n\tmovq podgraft_arena_v1@GOTPCREL(%%rip), %0"
		: "=r"(arena));
	return arena;
}

static __inline__ __attribute__((unused, always_inline)) void *podgraft_at_(struct podgraft_arena_ *arena,
									    unsigned int offset)
{
	return (char *)arena + offset * PODGRAFT_UNIT_;
}

PODGRAFT_FUNCTION_ unsigned int podgraft_grow_(struct podgraft_arena_ *arena, unsigned long bytes)
{
	unsigned long room = arena->size - sizeof *arena;
	unsigned long used = __atomic_load_n(&arena->used, __ATOMIC_RELAXED);
	do {
		if (arena->size < sizeof *arena || used > room || bytes > room - used)
			return 0;
	} while (!__atomic_compare_exchange_n(&arena->used, &used, used + bytes, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return (unsigned int)((sizeof *arena + used) / PODGRAFT_UNIT_);
}

PODGRAFT_FUNCTION_ unsigned int podgraft_take_(struct podgraft_arena_ *arena, podgraft_size size)
{
	unsigned int power = 5, offset;
	unsigned long top, next;
	struct podgraft_block_ *block;
	if (size > 1UL << 40)
		return 0;
	while (1UL << power < size + sizeof *block)
		power++;
	top = __atomic_load_n(&arena->idle[power], __ATOMIC_ACQUIRE);
	while ((offset = (unsigned int)top) != 0) {
		block = (struct podgraft_block_ *)podgraft_at_(arena, offset);
		next = __atomic_load_n(&block->next, __ATOMIC_RELAXED);
		if (__atomic_compare_exchange_n(&arena->idle[power], &top, ((top >> 32) + 1) << 32 | next, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
			return offset;
	}
	offset = podgraft_grow_(arena, 1UL << power);
	if (offset)
		((struct podgraft_block_ *)podgraft_at_(arena, offset))->power = power;
	return offset;
}

PODGRAFT_FUNCTION_ void podgraft_give_(struct podgraft_arena_ *arena, unsigned int offset)
{
	struct podgraft_block_ *block = (struct podgraft_block_ *)podgraft_at_(arena, offset);
	unsigned long *idle = &arena->idle[block->power], top = __atomic_load_n(idle, __ATOMIC_RELAXED);
	do
		__atomic_store_n(&block->next, (unsigned int)top, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(idle, &top, ((top >> 32) + 1) << 32 | offset, 0, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED));
}

static __inline__ __attribute__((unused, always_inline)) void *podgraft_data_(struct podgraft_arena_ *arena,
									      unsigned int value)
{
	return value ? (char *)podgraft_at_(arena, value) + sizeof(struct podgraft_block_) : 0;
}

static __inline__ __attribute__((unused, always_inline)) unsigned long podgraft_key_(const void *obj, unsigned short id)
{
	return (unsigned long)obj << 16 | id;
}

static __inline__ __attribute__((unused, always_inline)) unsigned int *
podgraft_chain_(struct podgraft_arena_ *arena, unsigned long key)
{
	return &arena->chains[key * 0x9E3779B97F4A7C15UL >> 48];
}

/* Looks from one node on, up to but not including another. */
PODGRAFT_FUNCTION_ struct podgraft_node_ *podgraft_find_(struct podgraft_arena_ *arena, unsigned int from,
							 unsigned int until, unsigned long key)
{
	while (from != until) {
		struct podgraft_node_ *node = (struct podgraft_node_ *)podgraft_at_(arena, from);
		if (node->key == key)
			return node;
		from = node->next;
	}
	return 0;
}

/* Returns the node of a key, made if need be; one that another thread makes at the same moment wins. */
PODGRAFT_FUNCTION_ struct podgraft_node_ *podgraft_node_(struct podgraft_arena_ *arena, unsigned long key)
{
	unsigned int *chain = podgraft_chain_(arena, key), seen = 0, offset = 0;
	unsigned int first = __atomic_load_n(chain, __ATOMIC_ACQUIRE);
	struct podgraft_node_ *node, *found;
	for (;;) {
		found = podgraft_find_(arena, first, seen, key);
		if (found)
			return found;
		if (!offset)
			offset = podgraft_grow_(arena, sizeof *node);
		if (!offset)
			return 0;
		node = (struct podgraft_node_ *)podgraft_at_(arena, offset);
		node->key = key;
		node->next = seen = first;
		if (__atomic_compare_exchange_n(chain, &first, offset, 0, __ATOMIC_RELEASE, __ATOMIC_ACQUIRE))
			return node;
	}
}

PODGRAFT_FUNCTION_ void *podgraft_make_(const void *obj, unsigned short id, podgraft_size size, podgraft_ctor ctor,
					void *argument, int existing)
{
	struct podgraft_arena_ *arena = podgraft_arena_();
	struct podgraft_node_ *node = arena ? podgraft_node_(arena, podgraft_key_(obj, id)) : 0;
	unsigned int block, value = node ? __atomic_load_n(&node->value, __ATOMIC_ACQUIRE) : 0;
	void *data;
	if (!node || value)
		return existing && value ? podgraft_data_(arena, value) : 0;
	block = podgraft_take_(arena, size);
	if (!block)
		return 0;
	data = podgraft_data_(arena, block);
	podgraft_fill(data, 0, size);
	if (ctor && ctor(obj, data, argument) != 0) {
		podgraft_give_(arena, block);
		return 0;
	}
	if (__atomic_compare_exchange_n(&node->value, &value, block, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return data;
	podgraft_give_(arena, block);
	return existing ? podgraft_data_(arena, value) : 0;
}

PODGRAFT_FUNCTION_ void podgraft_drop_(struct podgraft_arena_ *arena, struct podgraft_node_ *node, podgraft_dtor dtor)
{
	unsigned int value = __atomic_exchange_n(&node->value, 0, __ATOMIC_ACQ_REL);
	if (!value)
		return;
	if (dtor)
		dtor((const void *)(node->key >> 16), podgraft_data_(arena, value));
	podgraft_give_(arena, value);
}

/* Returns the shadow variable `id` of an object, NULL when it has none. */
PODGRAFT_FUNCTION_ void *podgraft_shadow_get(const void *obj, unsigned short id)
{
	struct podgraft_arena_ *arena = podgraft_arena_();
	struct podgraft_node_ *node;
	unsigned long key = podgraft_key_(obj, id);
	if (!arena)
		return 0;
	node = podgraft_find_(arena, __atomic_load_n(podgraft_chain_(arena, key), __ATOMIC_ACQUIRE), 0, key);
	return node ? podgraft_data_(arena, __atomic_load_n(&node->value, __ATOMIC_ACQUIRE)) : 0;
}

/* Makes a shadow variable of zeros, then filled in by ctor (may be NULL). NULL when it exists, when ctor gives it up, and
 * when the memory is used up. */
PODGRAFT_FUNCTION_ void *podgraft_shadow_alloc(const void *obj, unsigned short id, podgraft_size size,
					       podgraft_ctor ctor, void *argument)
{
	return podgraft_make_(obj, id, size, ctor, argument, 0);
}

/* The same, but returns the one that exists. */
PODGRAFT_FUNCTION_ void *podgraft_shadow_get_or_alloc(const void *obj, unsigned short id, podgraft_size size,
						      podgraft_ctor ctor, void *argument)
{
	return podgraft_make_(obj, id, size, ctor, argument, 1);
}

/* Ends the shadow variable of an object that goes away. As with free(), nobody may use it any more. */
PODGRAFT_FUNCTION_ void podgraft_shadow_free(const void *obj, unsigned short id, podgraft_dtor dtor)
{
	struct podgraft_arena_ *arena = podgraft_arena_();
	struct podgraft_node_ *node;
	unsigned long key = podgraft_key_(obj, id);
	if (!arena)
		return;
	node = podgraft_find_(arena, __atomic_load_n(podgraft_chain_(arena, key), __ATOMIC_ACQUIRE), 0, key);
	if (node)
		podgraft_drop_(arena, node, dtor);
}

/* Ends the shadow variables `id` of all objects; the usual thing to do in PODGRAFT_POST_REVERT. */
PODGRAFT_FUNCTION_ void podgraft_shadow_free_all(unsigned short id, podgraft_dtor dtor)
{
	struct podgraft_arena_ *arena = podgraft_arena_();
	unsigned long chain;
	if (!arena)
		return;
	for (chain = 0; chain < PODGRAFT_CHAINS_; chain++) {
		unsigned int offset = __atomic_load_n(&arena->chains[chain], __ATOMIC_ACQUIRE);
		while (offset) {
			struct podgraft_node_ *node = (struct podgraft_node_ *)podgraft_at_(arena, offset);
			offset = node->next;
			if ((unsigned short)node->key == id)
				podgraft_drop_(arena, node, dtor);
		}
	}
}

#endif
