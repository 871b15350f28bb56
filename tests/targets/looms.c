/* A program that runs on stacks of its own making. Each line of input is a command and a loom, each answer a line.

   weave returns 1 (old) or 2 (new). Where the stacks come from is the argument: mmap, malloc, static, local. With
   -DBY_HAND they are switched by a few instructions, with -DJUMPS by jump buffers, else by swapcontext. */
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { STACK = 65536, LOOMS = 4, STAY = 0, LEAVE = 1, DRIVE = 2, HOLD = 3, WAIT = 4 };
struct stack {
	char bytes[STACK];
} __attribute__((aligned(16)));
static struct stack in_data[LOOMS];
static int at, wanted, woven[LOOMS];
void body(void);

#ifdef BY_HAND
typedef struct {
	void **sp, *pc, *registers[6];
} context;
void transfer(context *from, context *to); /* looms_switch.c */
static void make(context *new, char *stack)
{
	void **top = (void **)(stack + STACK);
#ifdef AFTER
	new->pc = (void *)body;
	new->sp = top - 1;
#else
	top[-2] = (void *)body;
	new->sp = top - 8;
#endif
}
#elif defined JUMPS
typedef struct {
	jmp_buf jump;
	ucontext_t start;
	int begun;
} context;
static void transfer(context *from, context *to)
{
	if (_setjmp(from->jump))
		return;
	if (to->begun || to->start.uc_stack.ss_size == 0)
		_longjmp(to->jump, 1);
	to->begun = 1;
	setcontext(&to->start);
}
static void make(context *new, char *stack)
{
	getcontext(&new->start);
	new->start.uc_stack.ss_sp = stack;
	new->start.uc_stack.ss_size = STACK;
	makecontext(&new->start, body, 0);
}
#else
typedef ucontext_t context;
#define transfer swapcontext
static void make(context *new, char *stack)
{
	getcontext(new);
	new->uc_stack.ss_sp = stack;
	new->uc_stack.ss_size = STACK;
	makecontext(new, body, 0);
}
#endif
static context home, in_bss[LOOMS], *looms[LOOMS];

static void change_to(int loom)
{
	at = loom;
	transfer(&home, looms[loom]);
}

__attribute__((noinline)) static void leave(void)
{
	transfer(looms[at], &home);
}

__attribute__((noinline)) int rest(int how)
{
	char space[256];
	memset(space, how, sizeof space);
	__asm__ volatile("" ::"r"(space) : "memory");
	if (how == LEAVE)
		leave();
	if (how == DRIVE || how == HOLD) {
		wanted = how == HOLD ? HOLD : STAY;
		change_to(LOOMS - 1);
	}
	return space[how];
}

__attribute__((noinline)) int weave(int how)
{
	return rest(how) - how + 1;
}

/* a function that branches back to its entry */
int loops(int n);
__asm__(".globl loops\n.type loops, @function\nloops:\n"
	"	lea -1(%rdi), %edi\n test %edi, %edi\n jg loops\n lea 1(%rdi), %eax\n ret\n"
	".size loops, .-loops\n.skip 8, 0x90\n");

void body(void)
{
	char line[64];
	for (;;) {
		if ((wanted == WAIT || wanted == HOLD) && fgets(line, sizeof line, stdin))
			wanted = wanted == WAIT ? LEAVE : STAY;
		woven[at] = weave(wanted);
		transfer(looms[at], &home);
	}
}

static void *serve(void *where)
{
	char line[64], command[32];
	struct stack in_frame[LOOMS];
	int loom;
	for (int i = 0; i < LOOMS; i++) {
		looms[i] = &in_bss[i];
		if (!strcmp(where, "malloc")) { /* a stack right behind what says where it is */
			struct {
				context context;
				struct stack stack;
			} *both = calloc(1, sizeof *both);
			looms[i] = &both->context;
			make(looms[i], both->stack.bytes);
		} else if (!strcmp(where, "mmap")) {
			char *all = mmap(NULL, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			madvise(all, 4096, 102 /* MADV_GUARD_INSTALL, Linux 6.13 */);
			make(looms[i], all + 4096);
		} else {
			make(looms[i], strcmp(where, "local") ? in_data[i].bytes : in_frame[i].bytes);
		}
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		loom = 0;
		if (sscanf(line, "%31s %d", command, &loom) < 1)
			continue;
		if (!strcmp(command, "weave")) {
			printf("%d\n", weave(STAY));
		} else if (!strcmp(command, "drive")) {
			printf("%d\n", weave(DRIVE));
		} else if (!strcmp(command, "hold")) {
			printf("%d\n", weave(HOLD));
		} else if (!strcmp(command, "loops")) {
			printf("%d\n", loops(5));
		} else {
			wanted = !strcmp(command, "leave") ? LEAVE : !strcmp(command, "wait") ? WAIT : STAY;
			change_to(loom);
			printf("%d\n", woven[loom]);
		}
		fflush(stdout);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t id;
	if (argc > 2) {
		pthread_create(&id, NULL, serve, argv[1]);
		pthread_join(id, NULL);
	} else {
		serve(argv[1]);
	}
	return 0;
}
