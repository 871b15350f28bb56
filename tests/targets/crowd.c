/* Eight threads that talk to each other and check every answer: two over pipes, two over a socket pair with poll, two with
 * epoll, and two that keep registers, flags, vector registers and the red zone full of values while they count. Each calls
 * left and right of pairs.c in turn and counts the changes of version, as there. A ninth waits in epoll_wait for what never
 * comes: it can only be moved by somebody who interrupts its call and rewinds it. Commands on standard input. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREADS 8
enum kind { PIPE, POLL, EPOLL };
struct message {
	uint64_t number, words[6], sum;
};
struct thread {
	enum kind kind;
	int in, out, epoll, serves, version;
	atomic_ulong rounds, old, new, wrong, eintr, epoll_eintr, changes;
};
static struct thread threads[THREADS];
static atomic_ulong idle_eintr;
static atomic_int stop;
static atomic_int turn; /* futex word of the pipe pair: the client waits for the server's count, too */
int calls_of_left;

__attribute__((noinline)) int left(int x)
{
	calls_of_left += x & 1;
	return x * 3 + 1;
}

__attribute__((noinline)) int right(int x)
{
	char text[32];
	snprintf(text, sizeof text, "%d", x);
	return (int)strlen(text) * 1000 + 1;
}

__attribute__((noinline)) int linger(int x)
{
	return x + 1;
}

/* called, and nobody minds what it answers: a patch of it may go alone */
__attribute__((noinline)) int unused(int x)
{
	return x * 5 + calls_of_left;
}

static void saw(struct thread *t, int version)
{
	if (version == 1)
		t->old++;
	else if (version == 2)
		t->new++;
	else
		t->wrong++;
	if (t->version && version != t->version)
		t->changes++;
	t->version = version;
}

static void call_both(struct thread *t)
{
	int i = (int)(t->rounds & 7);
	saw(t, left(i) - i * 3);
	saw(t, right(7) % 1000);
	saw(t, linger(i) - i);
	__asm__ volatile("" ::"r"(unused(i)));
	t->rounds++;
}

static uint64_t sum_of(const struct message *m)
{
	uint64_t sum = m->number;
	for (int i = 0; i < 6; i++)
		sum = (sum ^ m->words[i]) * 0x9e3779b97f4a7c15u;
	return sum;
}

/* Wait as the pair's kind does; a call that is cut short is counted. */
static int wait_for_input(struct thread *t)
{
	if (t->kind == PIPE)
		return 1;
	if (t->kind == POLL) {
		struct pollfd fd = {.fd = t->in, .events = POLLIN};
		int n = poll(&fd, 1, t->serves ? 1000 : -1);
		if (n < 0 && errno == EINTR)
			t->eintr++;
		return n == 1;
	}
	struct epoll_event event;
	int n = epoll_wait(t->epoll, &event, 1, -1);
	if (n < 0 && errno == EINTR)
		t->epoll_eintr++;
	return n == 1;
}

static int receive(struct thread *t, struct message *m)
{
	while (!wait_for_input(t))
		if (stop)
			return 0;
	ssize_t n = read(t->in, m, sizeof *m);
	if (n == 0)
		return 0;
	if (n < 0 && errno == EINTR)
		t->eintr++;
	if (n != sizeof *m || m->sum != sum_of(m))
		t->wrong++;
	return n == sizeof *m;
}

static void post(struct thread *t, struct message *m)
{
	m->sum = sum_of(m);
	if (write(t->out, m, sizeof *m) != sizeof *m)
		t->wrong++;
}

static void *serve(void *arg)
{
	struct thread *t = arg;
	struct message m;
	while (receive(t, &m)) {
		call_both(t);
		for (int i = 0; i < 6; i++)
			m.words[i] += m.number;
		post(t, &m);
		if (t->kind == PIPE) {
			turn++;
			syscall(SYS_futex, &turn, FUTEX_WAKE, 1, NULL, NULL, 0);
		}
	}
	close(t->out);
	return NULL;
}

static void *ask(void *arg)
{
	struct thread *t = arg;
	struct message sent = {0}, got;
	while (!stop) {
		sent.number++;
		for (int i = 0; i < 6; i++)
			sent.words[i] = sent.number * (uint64_t)(i + 3);
		int before = turn;
		post(t, &sent);
		if (t->kind == PIPE)
			while (turn == before)
				if (syscall(SYS_futex, &turn, FUTEX_WAIT, before, NULL, NULL, 0) && errno == EINTR)
					t->eintr++;
		if (!receive(t, &got))
			break;
		if (got.number != sent.number || got.words[5] != sent.words[5] + sent.number)
			t->wrong++;
		call_both(t);
		struct timespec pause = {0, 300000};
		if (nanosleep(&pause, NULL))
			t->eintr++;
	}
	close(t->out);
	return NULL;
}

/* Returns 0 when every register that it filled, the carry flag and the red zone came back whole. */
static uint64_t hold_values(uint64_t seed, uint64_t count)
{
	uint64_t bad;
	/* volatile: the loop writes below rsp, which is this function's own red zone as it calls nobody */
	__asm__ volatile(
	    "mov %[seed],%%rbx\n lea 1(%[seed]),%%rcx\n lea 2(%[seed]),%%rdx\n lea 3(%[seed]),%%rsi\n"
	    "lea 4(%[seed]),%%rdi\n lea 5(%[seed]),%%r8\n lea 6(%[seed]),%%r9\n lea 7(%[seed]),%%r10\n"
	    "lea 8(%[seed]),%%r11\n lea 9(%[seed]),%%r12\n lea 10(%[seed]),%%r13\n"
	    "movq %%rbx,%%xmm0\n movq %%rcx,%%xmm7\n movq %%r13,%%xmm15\n"
	    "mov %%rbx,-8(%%rsp)\n mov %%rcx,-64(%%rsp)\n mov %%r13,-120(%%rsp)\n"
	    "stc\n 1: dec %[count]\n jnz 1b\n"
	    "mov $0,%[bad]\n adc $0,%[bad]\n dec %[bad]\n"
	    "xor %[seed],%%rbx\n or %%rbx,%[bad]\n"
	    "lea 1(%[seed]),%%rbx\n xor %%rbx,%%rcx\n or %%rcx,%[bad]\n"
	    "movq %%xmm7,%%rcx\n xor %%rbx,%%rcx\n or %%rcx,%[bad]\n"
	    "xor -64(%%rsp),%%rbx\n or %%rbx,%[bad]\n"
	    "lea 2(%[seed]),%%rbx\n xor %%rbx,%%rdx\n or %%rdx,%[bad]\n"
	    "lea 3(%[seed]),%%rbx\n xor %%rbx,%%rsi\n or %%rsi,%[bad]\n"
	    "lea 4(%[seed]),%%rbx\n xor %%rbx,%%rdi\n or %%rdi,%[bad]\n"
	    "lea 5(%[seed]),%%rbx\n xor %%rbx,%%r8\n or %%r8,%[bad]\n"
	    "lea 6(%[seed]),%%rbx\n xor %%rbx,%%r9\n or %%r9,%[bad]\n"
	    "lea 7(%[seed]),%%rbx\n xor %%rbx,%%r10\n or %%r10,%[bad]\n"
	    "lea 8(%[seed]),%%rbx\n xor %%rbx,%%r11\n or %%r11,%[bad]\n"
	    "lea 9(%[seed]),%%rbx\n xor %%rbx,%%r12\n or %%r12,%[bad]\n"
	    "lea 10(%[seed]),%%rbx\n xor -120(%%rsp),%%rbx\n or %%rbx,%[bad]\n"
	    "lea 10(%[seed]),%%rbx\n xor %%rbx,%%r13\n or %%r13,%[bad]\n"
	    "movq %%xmm15,%%rcx\n xor %%rbx,%%rcx\n or %%rcx,%[bad]\n"
	    "movq %%xmm0,%%rcx\n xor %[seed],%%rcx\n or %%rcx,%[bad]\n"
	    "mov %[seed],%%rbx\n xor -8(%%rsp),%%rbx\n or %%rbx,%[bad]\n"
	    : [bad] "=&r"(bad), [count] "+&r"(count)
	    : [seed] "r"(seed)
	    : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "xmm0", "xmm7", "xmm15", "cc",
	      "memory");
	return bad;
}

static void *count(void *arg)
{
	struct thread *t = arg;
	while (!stop) {
		uint64_t seed = t->rounds * 0x9e3779b97f4a7c15u;
		double sum = 0;
		for (int i = 1; i < 100; i++)
			sum += 1.0 / i;
		if (hold_values(seed, 200000) || sum < 5.17737 || sum > 5.17738)
			t->wrong++;
		call_both(t);
		/* leave room for the others on a small machine */
		struct timespec pause = {0, 500000};
		if (nanosleep(&pause, NULL))
			t->eintr++;
	}
	return NULL;
}

static void *idle(void *arg)
{
	struct epoll_event event;
	int nothing = epoll_create1(0);
	while (epoll_wait(nothing, &event, 1, -1) < 0 && errno == EINTR)
		idle_eintr++;
	return arg;
}

static void report(void)
{
	unsigned long old = 0, new = 0, wrong = 0, eintr = 0, epoll_eintr = idle_eintr, changes = 0, slowest = -1ul;
	for (int i = 0; i < THREADS; i++) {
		struct thread *t = &threads[i];
		unsigned long rounds = atomic_exchange(&t->old, 0), after = atomic_exchange(&t->new, 0);
		old += rounds, new += after, wrong += t->wrong, eintr += t->eintr, epoll_eintr += t->epoll_eintr;
		if (t->changes > changes)
			changes = t->changes;
		if (rounds + after < slowest)
			slowest = rounds + after;
	}
	printf("{\"old\": %lu, \"new\": %lu, \"wrong\": %lu, \"eintr\": %lu, \"epoll_eintr\": %lu, \"changes\": %lu, "
	       "\"slowest\": %lu}\n",
	       old, new, wrong, eintr, epoll_eintr, changes, slowest);
}

static void make_pair(int at, enum kind kind)
{
	struct thread *client = &threads[at], *server = &threads[at + 1];
	int there[2], back[2];
	if (kind == POLL ? socketpair(AF_UNIX, SOCK_SEQPACKET, 0, there) : (pipe(there) || pipe(back)))
		exit(1);
	client->kind = server->kind = kind;
	server->serves = 1;
	server->in = there[0], client->out = there[1];
	if (kind == POLL)
		server->out = dup(there[0]), client->in = dup(there[1]);
	else
		server->out = back[1], client->in = back[0];
	for (int i = at; kind == EPOLL && i < at + 2; i++) {
		struct epoll_event event = {.events = EPOLLIN};
		threads[i].epoll = epoll_create1(0);
		epoll_ctl(threads[i].epoll, EPOLL_CTL_ADD, threads[i].in, &event);
	}
}

int main(void)
{
	pthread_t ids[THREADS], idler;
	make_pair(0, PIPE);
	make_pair(2, POLL);
	make_pair(4, EPOLL);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&ids[i], NULL, i >= 6 ? count : i % 2 ? serve : ask, &threads[i]);
	pthread_create(&idler, NULL, idle, NULL);
	printf("ready\n");
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4)) {
		report();
		fflush(stdout);
	}
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		if (i >= 6 || i % 2 == 0)
			pthread_join(ids[i], NULL);
	report();
	return 0;
}
