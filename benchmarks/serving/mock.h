// What the two halves of the mock share: mock.c, the engine, and mock_pages.c, what it says of itself.
#pragma once
#include <stddef.h>

typedef struct {
    long port, slots, think_us, token_us, tokens, cache_blocks, fail;
    double prefill_us;
    const char *host, *name;
} Options;

typedef struct {
    long started, served, aborted, refused, waiting, running;
    long prompt_tokens, cached_tokens, held_tokens;
} Stats;

extern Options opt;
extern Stats stats;

void reply(int fd, int status, const char *type, const char *body, size_t n);
void reply_json(int fd, int status, const char *body);

// Starts whatever may start now.
void admit(void);

// Where the part of a body begins that a model would see.
const char *prompt_of(const char *body);

// Answers a request for anything but a completion.
void page(int fd, const char *path, const char *body, size_t n);
