/* Blocking calls, one thread each, with and without a timeout: results, errno and the time that passed are checked. The
 * ones without are woken by a feeder every 20 ms. A call with a timeout may take longer than it says, never shorter. */
#include "torture.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#define MS 30
static int silent[2], quiet[2], fed[2], wire[2], deaf, event, semaphores, queue, listener, watch, locked[2];
static atomic_int word;
static sem_t never, posted;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t nobody = PTHREAD_COND_INITIALIZER, somebody = PTHREAD_COND_INITIALIZER;
static const struct timespec ms30 = {0, MS * 1000000};

static struct timespec from_now(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	t.tv_nsec += MS * 1000000;
	if (t.tv_nsec >= 1000000000)
		t.tv_sec++, t.tv_nsec -= 1000000000;
	return t;
}

static int is(int result, int number)
{
	return result == -1 && errno == number;
}

static struct sembuf take = {1, -1, 0}, take_none = {0, -1, 0};

#ifdef OWN /* by an instruction of the program's own, which gets its wake-up points in an area of its own */
static int t_nanosleep(void)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(SYS_nanosleep), "D"(&ms30), "S"(0) : "rcx", "r11", "memory");
	return result == 0;
}
#else
static int t_nanosleep(void) { return nanosleep(&ms30, NULL) == 0; }
#endif
static int t_clock(void) { return clock_nanosleep(CLOCK_MONOTONIC, 0, &ms30, NULL) == 0; }
static int t_clock_abs(void)
{
	struct timespec t = from_now(CLOCK_MONOTONIC);
	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0;
}
static int t_poll(void)
{
	struct pollfd fd = {silent[0], POLLIN, 0};
	return poll(&fd, 1, MS) == 0;
}
static int t_ppoll(void)
{
	struct pollfd fd = {silent[0], POLLIN, 0};
	return ppoll(&fd, 1, &ms30, NULL) == 0;
}
static int t_select(void)
{
	struct timeval t = {0, MS * 1000};
	fd_set set;
	FD_ZERO(&set);
	FD_SET(silent[0], &set);
	return select(silent[0] + 1, &set, NULL, NULL, &t) == 0;
}
static int t_pselect(void)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(silent[0], &set);
	return pselect(silent[0] + 1, &set, NULL, NULL, &ms30, NULL) == 0;
}
static int t_epoll(void)
{
	struct epoll_event got;
	return epoll_wait(watch, &got, 1, MS) == 0;
}
static int t_epoll_p(void)
{
	struct epoll_event got;
	return epoll_pwait(watch, &got, 1, MS, NULL) == 0;
}
static int t_futex(void)
{
	static int own;
	return is((int)syscall(SYS_futex, &own, FUTEX_WAIT, 0, &ms30, NULL, 0), ETIMEDOUT);
}
static int t_cond(void)
{
	struct timespec t = from_now(CLOCK_REALTIME);
	pthread_mutex_lock(&mutex);
	int result = pthread_cond_timedwait(&nobody, &mutex, &t);
	pthread_mutex_unlock(&mutex);
	return result == ETIMEDOUT;
}
static int t_sem(void)
{
	struct timespec t = from_now(CLOCK_REALTIME);
	return is(sem_timedwait(&never, &t), ETIMEDOUT);
}
static int t_mutex(void)
{
	struct timespec t = from_now(CLOCK_REALTIME);
	return pthread_mutex_timedlock(&held, &t) == ETIMEDOUT;
}
static int t_sigtimedwait(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return is(sigtimedwait(&set, NULL, &ms30), EAGAIN);
}
static int t_semtimedop(void) { return is(semtimedop(semaphores, &take_none, 1, &ms30), EAGAIN); }
static int t_recv(void)
{
	char byte;
	return is((int)recv(quiet[0], &byte, 1, 0), EAGAIN);
}
static int t_recvmsg(void)
{
	char byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	return is((int)recvmsg(quiet[0], &message, 0), EAGAIN);
}
static int t_accept(void) { return is(accept(deaf, NULL, NULL), EAGAIN); }
static int t_timerfd(void)
{
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec once = {{0, 0}, ms30};
	unsigned long times = 0;
	timerfd_settime(fd, 0, &once, NULL);
	int right = read(fd, &times, sizeof times) == sizeof times && times == 1;
	close(fd);
	return right;
}
static int w_read(void)
{
	char byte = 0;
	return read(fed[0], &byte, 1) == 1 && byte == 'r';
}
static int w_recv(void)
{
	char byte = 0;
	return recv(wire[0], &byte, 1, 0) == 1 && byte == 's';
}
static int w_eventfd(void)
{
	unsigned long value = 0;
	return read(event, &value, sizeof value) == sizeof value && value > 0;
}
static int w_futex(void)
{
	int seen = word;
	return syscall(SYS_futex, &word, FUTEX_WAIT, seen, NULL, NULL, 0) == 0 || errno == EAGAIN;
}
static int w_sem(void) { return sem_wait(&posted) == 0; }
static int w_cond(void)
{
	pthread_mutex_lock(&mutex);
	int result = pthread_cond_wait(&somebody, &mutex);
	pthread_mutex_unlock(&mutex);
	return result == 0;
}
static int w_semop(void) { return semop(semaphores, &take, 1) == 0; }
static int w_msgrcv(void)
{
	struct { long type; char text[8]; } message;
	return msgrcv(queue, &message, 8, 0, 0) == 8 && !strcmp(message.text, "message");
}
static int w_accept(void)
{
	int fd = accept(listener, NULL, NULL);
	return fd >= 0 && close(fd) == 0;
}
static int w_wait(void)
{
	pid_t child = fork();
	if (child == 0) {
		usleep(MS * 1000);
		_exit(9);
	}
	int status = 0;
	return wait4(child, &status, 0, NULL) == child && WEXITSTATUS(status) == 9;
}
static int w_flock(void) { return flock(locked[0], LOCK_EX) == 0 && flock(locked[0], LOCK_UN) == 0; }
static int w_sigwait(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	return sigwaitinfo(&set, NULL) == SIGUSR1;
}

/* SO_RCVTIMEO counts ticks, and on an idle processor those come late and at once: with nobody near, a limit of 30 ms was
 * over after 13. An interruption would show as EINTR. */
static const struct call {
	const char *name;
	int (*make)(void);
	int timed;
} calls[] = {
    {"nanosleep", t_nanosleep, 1}, {"clock_nanosleep", t_clock, 1}, {"clock_nanosleep_abs", t_clock_abs, 1},
    {"poll", t_poll, 1}, {"ppoll", t_ppoll, 1}, {"select", t_select, 1}, {"pselect", t_pselect, 1},
    {"epoll_wait", t_epoll, 1}, {"epoll_pwait", t_epoll_p, 1}, {"futex_timed", t_futex, 1},
    {"cond_timedwait", t_cond, 1}, {"sem_timedwait", t_sem, 1}, {"mutex_timedlock", t_mutex, 1},
    {"sigtimedwait", t_sigtimedwait, 1}, {"semtimedop", t_semtimedop, 1}, {"recv_timeout", t_recv, 0},
    {"recvmsg_timeout", t_recvmsg, 0}, {"accept_timeout", t_accept, 0}, {"timerfd", t_timerfd, 1},
    {"read", w_read, 0}, {"recv", w_recv, 0}, {"eventfd", w_eventfd, 0}, {"futex", w_futex, 0}, {"sem_wait", w_sem, 0},
    {"cond_wait", w_cond, 0}, {"semop", w_semop, 0}, {"msgrcv", w_msgrcv, 0}, {"accept", w_accept, 0},
    {"wait4", w_wait, 0}, {"flock", w_flock, 0}, {"sigwaitinfo", w_sigwait, 0},
};
#define CALLS (long)(sizeof calls / sizeof *calls)

static void *work(void *arg)
{
	const struct call *call = &calls[(long)arg];
	pthread_setname_np(pthread_self(), call->name);
	while (!stop) {
		struct timespec before, after;
		clock_gettime(CLOCK_MONOTONIC, &before);
		errno = 0;
		int right = call->make(), number = errno;
		clock_gettime(CLOCK_MONOTONIC, &after);
		long us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
		if (!right && number == EINTR)
			eintr++;
		/* CLOCK_REALTIME may be slewed: half a millisecond of grace */
		else if (!right || (call->timed && us < MS * 1000 - 500))
			wrong++;
		else
			goto fine;
		fprintf(stderr, "%s: right=%d errno=%d after %ld us\n", call->name, right, number, us);
	fine:
		both();
	}
	return NULL;
}

static void *feed(void *arg)
{
	struct { long type; char text[8]; } message = {1, "message"};
	struct sockaddr_in address;
	socklen_t size = sizeof address;
	getsockname(listener, (struct sockaddr *)&address, &size);
	struct sembuf give = {1, 1, 0};
	unsigned long one = 1;
	for (;;) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		flock(locked[1], LOCK_EX);
		usleep(20000);
		flock(locked[1], LOCK_UN);
		must(write(fed[1], "r", 1) == 1 && send(wire[1], "s", 1, 0) == 1 && write(event, &one, 8) == 8);
		word++;
		syscall(SYS_futex, &word, FUTEX_WAKE, 9, NULL, NULL, 0);
		sem_post(&posted);
		pthread_cond_broadcast(&somebody);
		semop(semaphores, &give, 1);
		msgsnd(queue, &message, 8, 0);
		must(connect(fd, (struct sockaddr *)&address, size) == 0);
		close(fd);
		kill(getpid(), SIGUSR1);
	}
	return arg;
}

int main(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	struct timeval limit = {0, MS * 1000};
	struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	char name[] = "/tmp/torture-XXXXXX";
	must(!pipe(silent) && !pipe(fed) && !socketpair(AF_UNIX, SOCK_STREAM, 0, quiet));
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, wire));
	setsockopt(quiet[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	deaf = socket(AF_INET, SOCK_STREAM, 0), listener = socket(AF_INET, SOCK_STREAM, 0);
	must(!bind(deaf, (struct sockaddr *)&loopback, sizeof loopback) && !listen(deaf, 1));
	must(!bind(listener, (struct sockaddr *)&loopback, sizeof loopback) && !listen(listener, 100));
	setsockopt(deaf, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	event = eventfd(0, 0), watch = epoll_create1(0);
	struct epoll_event in = {.events = EPOLLIN};
	epoll_ctl(watch, EPOLL_CTL_ADD, silent[0], &in);
	semaphores = semget(IPC_PRIVATE, 2, 0600), queue = msgget(IPC_PRIVATE, 0600);
	locked[0] = mkstemp(name), locked[1] = open(name, O_RDWR);
	unlink(name);
	sem_init(&never, 0, 0), sem_init(&posted, 0, 0);
	pthread_mutex_lock(&held);
	pthread_t ids[CALLS], feeder;
	pthread_create(&feeder, NULL, feed, NULL);
	for (long i = 0; i < CALLS; i++)
		pthread_create(&ids[i], NULL, work, (void *)i);
	answer_commands();
	for (long i = 0; i < CALLS; i++)
		pthread_join(ids[i], NULL);
	semctl(semaphores, 0, IPC_RMID), msgctl(queue, IPC_RMID, NULL);
	return wrong || eintr ? 1 : 0;
}
