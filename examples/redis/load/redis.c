/* Redis: SET/GET of a value that is compared, INCR whose result is compared, and PFCOUNT over two HyperLogLogs whose
 * result must never change. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

/* One answer of RESP: a line, or a bulk string with the line that gives its length. False when the connection is lost. */
static bool receive(struct client *c)
{
    size_t have = 0, want = 0;

    while (have < ANSWER - 1) {
        ssize_t n = read(c->fd, c->answer + have, ANSWER - 1 - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        have += n;
        c->answer[have] = 0;
        char *line_end = strstr(c->answer, "\r\n");
        if (line_end && !want) {
            long length = c->answer[0] == '$' ? strtol(c->answer + 1, NULL, 10) : -1;
            want = line_end - c->answer + 2 + (length >= 0 ? length + 2 : 0);
        }
        if (want && have >= want)
            return have == want; /* More than one answer to one question is wrong as well. */
    }
    return false;
}

__attribute__((format(printf, 2, 3))) static bool ask(struct client *c, const char *format, ...)
{
    char line[512];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return deliver(c, line, length) && receive(c);
}

static bool answered(const struct client *c, const char *format, ...)
{
    char expected[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(expected, sizeof expected, format, arguments);
    va_end(arguments);
    return strcmp(c->answer, expected) == 0;
}

/* The state that the checks rely on. */
static bool prepare(struct client *c)
{
    c->counter = 0;
    if (!ask(c, "DEL load:%d:n load:%d:a load:%d:b\r\n", c->number, c->number, c->number))
        return false;
    for (int i = 0; i < 50; i++)
        if (!ask(c, "PFADD load:%d:%c e%d\r\n", c->number, i % 2 ? 'a' : 'b', i))
            return false;
    if (!ask(c, "PFCOUNT load:%d:a load:%d:b\r\n", c->number, c->number) || c->answer[0] != ':')
        return false;
    c->pfcount = strtol(c->answer + 1, NULL, 10);
    return true;
}

static enum outcome request(struct client *c)
{
    unsigned long turn = c->turn++, round = turn / 4;
    bool right = false;

    switch (turn % 4) {
    case 0:
        if (!ask(c, "SET load:%d:v:%lu v%lu\r\n", c->number, round % 64, round))
            return LOST;
        right = answered(c, "+OK\r\n");
        break;
    case 1: {
        char value[32];
        int length = snprintf(value, sizeof value, "v%lu", round);
        if (!ask(c, "GET load:%d:v:%lu\r\n", c->number, round % 64))
            return LOST;
        right = answered(c, "$%d\r\n%s\r\n", length, value);
        break;
    }
    case 2:
        if (!ask(c, "INCR load:%d:n\r\n", c->number))
            return LOST;
        right = answered(c, ":%lu\r\n", ++c->counter);
        break;
    case 3:
        if (!ask(c, "PFCOUNT load:%d:a load:%d:b\r\n", c->number, c->number))
            return LOST;
        right = answered(c, ":%ld\r\n", c->pfcount);
        break;
    }
    return right ? RIGHT : WRONG;
}

const struct protocol protocol = {.name = "redis", .port = 6379, .type = SOCK_STREAM, .patience = 10,
                                  .prepare = prepare, .request = request};
