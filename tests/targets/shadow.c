/* Shadow variables of podgraft.h in many threads at once, with an arena as the engine makes one. Threads
 * give way at calls inside (-finstrument-functions) or sleep in a signal handler in the middle: others overtake them.
 *   usage: shadow ROUNDS   prints what went wrong, ends with 1 then */
#include <podgraft.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4
#define KEYS 64
#define CROWD 150
#define SIZE (8 << 20)
/* The engine resolves the name; here it is memory of our own. */
__asm__(".globl podgraft_arena_v1\n.bss\n.balign 16\npodgraft_arena_v1: .skip 8 << 20\n.text");

static pthread_barrier_t line;
static atomic_int winners, made, dropped, bad;
static void *_Atomic agreed;
static char objects[THREADS][KEYS], shared[1 << 16];
static int rounds;

#define CHECK(what) ((what) ? (void)0 : (void)(printf("line %d: %s\n", __LINE__, #what), bad++))

#define QUIET __attribute__((no_instrument_function))
static __thread unsigned calls;
static atomic_int crowding;
QUIET void __cyg_profile_func_enter(void *function, void *site)
{
	(void)function;
	(void)site;
	if (crowding && ++calls % 7 == 0)
		sched_yield();
}
QUIET void __cyg_profile_func_exit(void *function, void *site)
{
	__cyg_profile_func_enter(function, site);
}

static int fill(const void *obj, void *shadow, void *argument)
{
	made++;
	sched_yield();
	((long *)shadow)[0] = (long)obj;
	((long *)shadow)[1] = (long)argument;
	return 0;
}

static void drop(const void *obj, void *shadow)
{
	dropped++;
	CHECK(((long *)shadow)[0] == (long)obj);
}

/* All threads want one key at one moment: one makes it, all find the same. */
static void race(int round, long me)
{
	const char *obj = &shared[round & 0xffff];
	pthread_barrier_wait(&line);
	if (me == 0)
		agreed = NULL;
	winners = 0;
	pthread_barrier_wait(&line);
	void *mine = round & 1 ? podgraft_shadow_alloc(obj, 1, 16, fill, (void *)7) : NULL;
	winners += mine != NULL;
	if (!mine)
		mine = podgraft_shadow_get_or_alloc(obj, 1, 16, fill, (void *)7);
	void *none = NULL;
	if (!atomic_compare_exchange_strong(&agreed, &none, mine))
		CHECK(none == mine);
	CHECK(mine && ((long *)mine)[0] == (long)obj && ((long *)mine)[1] == 7);
	CHECK(podgraft_shadow_get(obj, 1) == mine && !podgraft_shadow_get(obj, 2));
	pthread_barrier_wait(&line);
	CHECK(winners <= 1);
	if (me == round % THREADS)
		podgraft_shadow_free(obj, 1, drop);
	pthread_barrier_wait(&line);
	CHECK(!podgraft_shadow_get(obj, 1));
}

/* Each thread makes and ends variables of its own in all sizes: nobody else ever writes into them. */
static void churn(int round, long me, unsigned *seed)
{
	for (int i = 0; i < KEYS; i++) {
		char *obj = &objects[me][i];
		unsigned char *old = podgraft_shadow_get(obj, 3);
		for (unsigned k = 4; old && k < 4 + *(unsigned *)old; k++)
			CHECK(old[k] == (unsigned char)(me * 50 + i));
		if (old)
			podgraft_shadow_free(obj, 3, NULL);
		unsigned size = (unsigned)rand_r(seed) % 200;
		unsigned char *fresh = podgraft_shadow_alloc(obj, 3, 4 + size, NULL, NULL);
		CHECK(fresh && !podgraft_shadow_alloc(obj, 3, 4, NULL, NULL));
		for (unsigned k = 0; fresh && k < 4 + size; k++)
			CHECK(fresh[k] == 0);
		if (fresh)
			memcpy(fresh, &size, 4), memset(fresh + 4, (int)(me * 50 + i), size);
	}
	(void)round;
}

/* A child has one thread and no copies of the others: nothing may be locked. */
static void split(void)
{
	pid_t child = fork();
	if (child == 0) {
		signal(SIGALRM, SIG_DFL);
		alarm(20);
		for (int i = 0; i < THREADS * KEYS; i++) {
			podgraft_shadow_free(&objects[0][i], 3, NULL);
			if (!podgraft_shadow_get_or_alloc(&objects[0][i], 3, 100, NULL, NULL))
				_exit(1);
		}
		podgraft_shadow_free_all(3, NULL);
		_exit(podgraft_shadow_get(&objects[0][0], 3) != NULL);
	}
	int status = -1;
	waitpid(child, &status, 0);
	CHECK(status == 0);
}

/* All threads add keys to one chain: none may be lost. */
QUIET static void crowd(long me)
{
	static struct {
		const char *obj;
		unsigned short id;
	} mine[THREADS][CROWD];
	int count = 0;
	unsigned int *chain = &podgraft_arena_()->chains[me & 1];
	for (int i = 0; count < CROWD; i++)
		for (int id = 100; id < 65536 && count < CROWD; id++)
			if (podgraft_chain_(podgraft_arena_(), podgraft_key_(&shared[4 * i + me], (unsigned short)id)) == chain) {
				mine[me][count].obj = &shared[4 * i + me];
				mine[me][count++].id = (unsigned short)id;
			}
	pthread_barrier_wait(&line);
	crowding = 1;
	for (int i = 0; i < CROWD; i++)
		podgraft_shadow_alloc(mine[me][i].obj, mine[me][i].id, 8, NULL, NULL);
	for (int i = 0; i < CROWD; i++)
		CHECK(podgraft_shadow_get(mine[me][i].obj, mine[me][i].id));
	pthread_barrier_wait(&line);
	crowding = 0;
}

static void overtake(int signo)
{
	struct timespec us50 = {0, 50000};
	(void)signo;
	nanosleep(&us50, NULL);
}

static void *work(void *arg)
{
	long me = (long)arg;
	unsigned seed = (unsigned)me + 1;
	crowd(me);
	for (int round = 0; round < rounds; round++) {
		race(round, me);
		churn(round, me, &seed);
		if (me == 0 && round % 64 == 0)
			split();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t ids[THREADS];
	struct podgraft_arena_ *arena = podgraft_arena_();
	rounds = argc > 1 ? atoi(argv[1]) : 1000;
	CHECK(!podgraft_shadow_alloc(arena, 1, 8, NULL, NULL)); /* before the engine has made it */
	arena->size = SIZE;
	pthread_barrier_init(&line, NULL, THREADS);
	struct sigaction action = {.sa_handler = overtake, .sa_flags = SA_RESTART};
	sigaction(SIGALRM, &action, NULL);
	for (long i = 0; i < THREADS; i++)
		pthread_create(&ids[i], NULL, work, (void *)i);
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	struct itimerval often = {{0, 500}, {0, 500}};
	setitimer(ITIMER_REAL, &often, NULL);
	for (long i = 0; i < THREADS; i++)
		pthread_join(ids[i], NULL);
	CHECK(made >= dropped && dropped == rounds);
	podgraft_shadow_free_all(3, NULL);
	CHECK(!podgraft_shadow_get(&objects[1][1], 3));
	/* Full: NULL and nothing else, and what is given back serves again. */
	int count = 0;
	while (podgraft_shadow_alloc(&shared[count], 4, 60000, NULL, NULL))
		count++;
	CHECK(count > 10 && count < SIZE / 60000);
	CHECK(!podgraft_shadow_alloc(shared, 5, 1UL << 50, NULL, NULL) && !podgraft_shadow_alloc(shared, 5, -1UL, NULL, NULL));
	podgraft_shadow_free(&shared[3], 4, NULL);
	CHECK(podgraft_shadow_alloc(&shared[3], 4, 60000, NULL, NULL));
	return bad != 0;
}
