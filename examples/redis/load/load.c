/* A bounded load generator that checks every answer; what it asks is in a file beside (redis.c), behind load.h.
 *
 *   NAME-load [--port P] [--connections N] [--rate R] [--seconds S] --out DIR
 *
 * Each of N connections sends R requests a second on a fixed schedule and waits for each answer. The latency of a request
 * counts from the moment it was due, not from the moment it was sent: a server that stands still for a second is charged for
 * every request of that second.
 *
 * DIR/records.bin   one struct record for each request, in order of completion
 * DIR/summary.json  counters, rewritten every 200 ms by rename, so that a reader always finds a whole file
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define NS 1000000000LL
#define MAX_CONNECTIONS 64
#define MAX_SECONDS 7200

/* Little-endian, 16 bytes; read by hack/demo/load.py. */
struct record {
    uint64_t due_us;     /* CLOCK_REALTIME */
    uint32_t latency_us;
    uint16_t connection;
    uint16_t flags;      /* 1: error or wrong answer, 2: first request after a reconnect */
};
_Static_assert(sizeof(struct record) == 16, "hack/demo/load.py reads 16 bytes");

static struct { int port, connections, rate, seconds; const char *out; } options = {0, 4, 100, 600, NULL};
static atomic_ulong requests, errors, wrong, reconnects, longest_us;
static atomic_bool stop;
static FILE *records;
static pthread_mutex_t records_lock = PTHREAD_MUTEX_INITIALIZER;

static int64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

bool dial(struct client *c)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = protocol.patience};
    int on = 1;

    c->fd = socket(AF_INET, protocol.type | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    if (protocol.type == SOCK_STREAM)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) == 0)
        return true;
    close(c->fd);
    c->fd = -1;
    return false;
}

bool deliver(struct client *c, const void *data, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        ssize_t n = send(c->fd, (const char *)data + sent, length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return false;
        sent += n > 0 ? n : 0;
    }
    return true;
}

static void note(const struct client *c, int64_t due_wall, int64_t latency, unsigned flags)
{
    struct record r = {due_wall / 1000, latency / 1000 > UINT32_MAX ? UINT32_MAX : latency / 1000, c->number, flags};
    unsigned long seen = atomic_load(&longest_us);

    while (r.latency_us > seen && !atomic_compare_exchange_weak(&longest_us, &seen, r.latency_us))
        ;
    pthread_mutex_lock(&records_lock);
    if (fwrite(&r, sizeof r, 1, records) != 1)
        die("records.bin");
    pthread_mutex_unlock(&records_lock);
}

/* Come back after a lost connection; the checks need their state anew, because the server may be a new one. */
static void come_back(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    atomic_fetch_add(&reconnects, 1);
    while (!atomic_load(&stop) && !(dial(c) && protocol.prepare(c))) {
        if (c->fd >= 0)
            close(c->fd);
        usleep(100000);
    }
    c->turn = 0;
}

static void *serve(void *argument)
{
    struct client *c = argument;
    int64_t interval = NS / options.rate;
    /* Spread the connections over the interval, so that they do not queue behind each other. */
    int64_t due = now(CLOCK_MONOTONIC) + interval * c->number / options.connections;
    unsigned flags = 0;

    while (!atomic_load(&stop)) {
        struct timespec until = {due / NS, due % NS};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        int64_t wall = now(CLOCK_REALTIME) - (now(CLOCK_MONOTONIC) - due);
        enum outcome outcome = protocol.request(c);
        int64_t latency = now(CLOCK_MONOTONIC) - due;
        atomic_fetch_add(&requests, 1);
        if (outcome == WRONG)
            fprintf(stderr, "connection %d, turn %lu: unexpected answer %.*s\n", c->number, c->turn, (int)strcspn(c->answer, "\r\n"), c->answer);
        if (outcome != RIGHT)
            atomic_fetch_add(outcome == WRONG ? &wrong : &errors, 1);
        note(c, wall, latency, flags | (outcome != RIGHT));
        flags = 0;
        if (outcome == LOST) {
            come_back(c);
            due = now(CLOCK_MONOTONIC);
            flags = 2;
        }
        due += interval;
    }
    return NULL;
}

static void summarize(bool finished)
{
    char temporary[512], final[512];

    snprintf(temporary, sizeof temporary, "%s/summary.tmp", options.out);
    snprintf(final, sizeof final, "%s/summary.json", options.out);
    pthread_mutex_lock(&records_lock);
    fflush(records);
    pthread_mutex_unlock(&records_lock);
    FILE *file = fopen(temporary, "w");
    if (!file)
        die(temporary);
    fprintf(file, "{\"connections\": %d, \"rate\": %d, \"requests\": %lu, \"errors\": %lu, \"wrong\": %lu, \"reconnects\": %lu, "
                  "\"longest_us\": %lu, \"finished\": %s}\n",
            options.connections, options.rate, atomic_load(&requests), atomic_load(&errors), atomic_load(&wrong),
            atomic_load(&reconnects), atomic_load(&longest_us), finished ? "true" : "false");
    fclose(file);
    if (rename(temporary, final) != 0)
        die(final);
}

static int number_within(const char *text, int most)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < 1 || value > most) {
        fprintf(stderr, "%s-load: %s is not a number from 1 to %d\n", protocol.name, text, most);
        exit(2);
    }
    return (int)value;
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {{"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"rate", 1, 0, 'r'},
                                          {"seconds", 1, 0, 's'}, {"out", 1, 0, 'o'}, {0}};
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (o) {
        case 'p': options.port = number_within(optarg, 65535); break;
        case 'c': options.connections = number_within(optarg, MAX_CONNECTIONS); break;
        case 'r': options.rate = number_within(optarg, 1000); break;
        case 's': options.seconds = number_within(optarg, MAX_SECONDS); break;
        case 'o': options.out = optarg; break;
        default: exit(2);
        }
    if (!options.out) {
        fprintf(stderr, "%s-load: --out DIR is missing\n", protocol.name);
        exit(2);
    }
}

static void on_signal(int number)
{
    (void)number;
    atomic_store(&stop, true);
}

int main(int argc, char **argv)
{
    static struct client clients[MAX_CONNECTIONS];
    pthread_t threads[MAX_CONNECTIONS];
    char path[512];

    options.port = protocol.port;
    read_options(argc, argv);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    snprintf(path, sizeof path, "%s/records.bin", options.out);
    if (!(records = fopen(path, "wb")))
        die(path);
    for (int i = 0; i < options.connections; i++) {
        clients[i].number = i;
        /* The server may be a moment behind us at the start; that is no reconnect. */
        for (int patience = 600; !(dial(&clients[i]) && protocol.prepare(&clients[i])); usleep(100000))
            if (--patience == 0 || atomic_load(&stop)) {
                fprintf(stderr, "%s-load: no server on port %d\n", protocol.name, options.port);
                return 1;
            }
    }
    for (int i = 0; i < options.connections; i++)
        if (pthread_create(&threads[i], NULL, serve, &clients[i]) != 0)
            die("pthread_create");
    int64_t end = now(CLOCK_MONOTONIC) + options.seconds * NS;
    while (!atomic_load(&stop) && now(CLOCK_MONOTONIC) < end) {
        usleep(200000);
        summarize(false);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < options.connections; i++)
        pthread_join(threads[i], NULL);
    summarize(true);
    return atomic_load(&errors) || atomic_load(&wrong) || atomic_load(&reconnects) ? 1 : 0;
}
