/* Writes that are larger than what the other side takes at once: an interruption would make them return short. */
#include "torture.h"
#include <sys/socket.h>

#define SIZE (1 << 20)
static int pairs[4][2];

static void *work(void *arg)
{
	long me = (long)arg, pair = me / 2;
	unsigned char *block = malloc(SIZE);
	for (unsigned round = 1; !stop; round++) {
		if (me % 2) {
			memset(block, (int)round, SIZE);
			must(write(pairs[pair][1], block, SIZE) == SIZE);
			both();
			continue;
		}
		for (size_t done = 0; done < SIZE;) {
			ssize_t n = read(pairs[pair][0], block + done, SIZE - done < 50000 ? SIZE - done : 50000);
			if (n <= 0) {
				must(n == 0 && stop);
				return NULL;
			}
			done += (size_t)n;
			nap(50);
		}
		both();
		must(block[0] == (unsigned char)round && block[SIZE - 1] == (unsigned char)round);
	}
	close(pairs[pair][me % 2]);
	return NULL;
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	must(pipe(pairs[0]) == 0);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[1]) == 0);
	pthread_t ids[4];
	for (long i = 0; i < 4; i++)
		pthread_create(&ids[i], NULL, work, (void *)i);
	answer_commands();
	return wrong || eintr ? 1 : 0;
}
