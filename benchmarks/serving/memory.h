// Memory that is there or ends the program, and a buffer that grows.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *data;
    size_t len, cap;
} Buffer;

static inline void *checked(void *memory) {
    if (!memory) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

// Room for `more` bytes and a terminating zero.
static inline void reserve(Buffer *b, size_t more) {
    if (b->len + more + 1 <= b->cap) return;
    while (b->len + more + 1 > b->cap) b->cap = b->cap ? 2 * b->cap : 4096;
    b->data = checked(realloc(b->data, b->cap));
}

static inline void drop_front(Buffer *b, size_t n) {
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
}
