/* Between the schedule (load.c) and what is asked (one file for each protocol). */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#define ANSWER 4096

struct client {
    int number, fd;
    unsigned long turn, counter; /* turn: requests since prepare */
    long pfcount;
    char answer[ANSWER];
};

enum outcome { RIGHT, WRONG, LOST };

struct protocol {
    const char *name;
    int port, type;                         /* type: SOCK_STREAM or SOCK_DGRAM */
    int patience;                           /* seconds until an answer is given up */
    bool (*prepare)(struct client *);       /* the state that the checks rely on; after each dial */
    enum outcome (*request)(struct client *); /* one request, its answer, and whether that is right */
};
extern const struct protocol protocol;

bool dial(struct client *);
bool deliver(struct client *, const void *data, size_t length);
