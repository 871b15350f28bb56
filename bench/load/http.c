/* HTTP/1.1 with connections that stay open: a rewritten path is asked for, and its rest must be the answer. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

/* One answer: headers, and a body of the length that they give. False when the connection is lost. */
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
        char *body = strstr(c->answer, "\r\n\r\n"), *length = strstr(c->answer, "Content-Length: ");
        if (body && !want)
            want = body + 4 - c->answer + (length && length < body ? strtoul(length + 16, NULL, 10) : 0);
        if (want && have >= want)
            return have == want;
    }
    return false;
}

/* A server may end a connection after some number of requests (nginx: 1,000), if it says so. */
static bool goes_on(struct client *c)
{
    if (!strstr(c->answer, "\r\nConnection: close\r\n"))
        return true;
    close(c->fd);
    return dial(c);
}

static enum outcome request(struct client *c)
{
    char line[128], expected[32];
    int length = snprintf(line, sizeof line, "GET /rw/%d-%lu HTTP/1.1\r\nHost: load\r\n\r\n", c->number, c->turn);

    snprintf(expected, sizeof expected, "\r\n\r\n%d-%lu", c->number, c->turn++);
    if (!deliver(c, line, length) || !receive(c))
        return LOST;
    char *body = strstr(c->answer, "\r\n\r\n");
    bool right = !strncmp(c->answer, "HTTP/1.1 200 ", 13) && !strcmp(body, expected);
    if (!goes_on(c))
        return LOST;
    return right ? RIGHT : WRONG;
}

static bool prepare(struct client *c)
{
    c->turn = 0;
    return request(c) == RIGHT;
}

const struct protocol protocol = {.name = "http", .port = 8080, .type = SOCK_STREAM, .patience = 10,
                                  .prepare = prepare, .request = request};
