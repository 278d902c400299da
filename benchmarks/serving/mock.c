// An inference server without a model: speaks enough OpenAI to stand behind a router, and takes
// its time the way a batching engine does. One thread, epoll, HTTP/1.1 with keep-alive.
//
//   mock --port 9001 --name a [--slots 8 --prefill-us 40 --token-us 8000 --cache-blocks 4096]
//
// A request waits for one of `slots` (0: no limit). Its first token comes `think_us` and
// `prefill_us` for each uncached token of its prompt later, every further one after `token_us`.
// With a `prefill_us`, prompts are worked on one after the other, as on one GPU, else side by side.
// Blocks of 512 bytes of the prompt are kept in a cache of `cache_blocks`, least recently used out
// first; a token is 4 bytes of the prompt. `max_tokens` of the request says how many tokens it
// gets, else `tokens`. Work for a client that went away ends at once.
//
//   GET /control?think_us=300000&fail=503   sets think_us, prefill_us, token_us, slots, fail
//   GET /stats                              counters as JSON
//   GET /metrics, /v1/loads, /get_load      what vLLM and SGLang say of their queue and cache
//   POST /tokenize                          the prompt's tokens, as vLLM's
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "mock.h"
#include "prefix_cache.h"
#include "timers.h"

enum { MAX_FD = 16384, BLOCK = 512, MAX_HEADER = 65536, MAX_BODY = 64 << 20 };

Options opt = {.port = 9001, .tokens = 32, .host = "127.0.0.1", .name = "mock"};
Stats stats;

// ---- connections -------------------------------------------------------------------------------

// WAITING for a slot, READY for prefill.
typedef enum { IDLE, WAITING, READY, PREFILL, DECODE } State;

typedef struct {
    Buffer in, out;
    uint32_t life;  // a timer or a place in the queue of an earlier life is stale
    State state;
    int stream;
    long tokens_left, prompt_tokens, held_tokens;
    int64_t due_ns;
    uint64_t *blocks;  // chained hashes of the prompt's whole blocks
    long nblocks;
} Connection;

static Connection connections[MAX_FD];
static int epoll_fd;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(int fd, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
}

static void send_bytes(int fd, const char *bytes, size_t n) {
    Buffer *out = &connections[fd].out;
    if (!out->len) {
        ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);
        if (sent == (ssize_t)n) return;
        if (sent < 0 && errno != EAGAIN) return;  // the next read finds it closed
        if (sent > 0) bytes += sent, n -= sent;
        watch(fd, EPOLLIN | EPOLLOUT);
    }
    reserve(out, n);
    memcpy(out->data + out->len, bytes, n);
    out->len += n;
}

static void flush(int fd) {
    Buffer *out = &connections[fd].out;
    ssize_t sent = send(fd, out->data, out->len, MSG_NOSIGNAL);
    if (sent > 0) drop_front(out, sent);
    if (!out->len) watch(fd, EPOLLIN);
}

static const char *reason(int status) { return status == 200 ? "OK" : "Error"; }

void reply(int fd, int status, const char *type, const char *body, size_t n) {
    static Buffer page;  // head and body in one write
    page.len = 0;
    reserve(&page, n + 512);
    page.len = snprintf(page.data, 512,
                        "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                        "x-backend: %s\r\n\r\n",
                        status, reason(status), type, n, opt.name);
    memcpy(page.data + page.len, body, n);
    send_bytes(fd, page.data, page.len + n);
}

void reply_json(int fd, int status, const char *body) {
    reply(fd, status, "application/json", body, strlen(body));
}

// ---- prompts -----------------------------------------------------------------------------------

const char *prompt_of(const char *body) {
    const char *prompt = strstr(body, "\"messages\":");
    return prompt ? prompt : body;
}

static void hash_prompt(Connection *c, const char *prompt, size_t n) {
    c->nblocks = cache ? n / BLOCK : 0;
    if (!c->nblocks) return;
    c->blocks = checked(realloc(c->blocks, c->nblocks * sizeof *c->blocks));
    uint64_t hash = 14695981039346656037ULL;  // FNV-1a, one multiplication for 8 bytes
    for (long b = 0; b < c->nblocks; b++) {
        for (int i = 0; i < BLOCK; i += 8) {
            uint64_t word;
            memcpy(&word, prompt + b * BLOCK + i, 8);
            hash = (hash ^ word) * 1099511628211ULL;
            hash ^= hash >> 29;
        }
        c->blocks[b] = hash;
    }
}

// Tokens of the prompt found from its beginning; all of it is in the cache afterwards.
static long cached_tokens(Connection *c) {
    long found = 0, unbroken = 1;
    for (long b = 0; b < c->nblocks; b++) {
        unbroken &= cache_touch(c->blocks[b]);
        found += unbroken;
    }
    return found * BLOCK / 4;
}

// ---- the engine --------------------------------------------------------------------------------

enum { QUEUE = 1 << 16 };

typedef struct {
    Event at[QUEUE];
    unsigned head, tail;
} Queue;

static Queue for_slot, for_prefill;
static Event in_prefill = {.fd = -1};

static void queue_push(Queue *q, int fd) {
    q->at[q->tail++ % QUEUE] = (Event){fd, connections[fd].life, 0};
}

// The first one that is still there; -1: none.
static int queue_pop(Queue *q) {
    while (q->head != q->tail) {
        Event next = q->at[q->head++ % QUEUE];
        if (connections[next.fd].life == next.life) return next.fd;
    }
    return -1;
}

static char answer_json[1024], stream_head[512], token_event[512], last_event[512];
static int answer_len, stream_head_len, token_len, last_len;

static int event_text(char *out, size_t size, const char *content, const char *finish) {
    char data[400];
    int n = snprintf(data, sizeof data,
                     "data: {\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion.chunk\","
                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":"
                     "{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                     opt.name, content, finish);
    return snprintf(out, size, "%x\r\n%s\r\n", n, data);
}

static void make_answers(void) {
    answer_len = snprintf(
        answer_json, sizeof answer_json,
        "{\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
        "\"Hello from %s, this is an answer of a plausible length for a short chat turn.\"},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":24,"
        "\"total_tokens\":42,\"completion_tokens\":18}}",
        opt.name, opt.name);
    stream_head_len =
        snprintf(stream_head, sizeof stream_head,
                 "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                 "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\nx-backend: %s\r\n\r\n",
                 opt.name);
    token_len = event_text(token_event, sizeof token_event, " token", "null");
    last_len = event_text(last_event, sizeof last_event, ".", "\"stop\"");
}

static void advance(int fd);

static void timer_push(int fd, int64_t due_ns) {
    timer_add((Event){fd, connections[fd].life, due_ns});
}

static void release(Connection *c) {
    stats.running--;
    stats.held_tokens -= c->held_tokens;
}

static void prefill(int fd) {
    Connection *c = &connections[fd];
    long cached = cached_tokens(c);
    int64_t now = now_ns();
    stats.prompt_tokens += c->prompt_tokens, stats.cached_tokens += cached;
    c->state = PREFILL;
    c->due_ns = now + opt.think_us * 1000 + (c->prompt_tokens - cached) * opt.prefill_us * 1000;
    if (c->due_ns <= now) advance(fd);
    else timer_push(fd, c->due_ns);
}

static int prefilling(void) {
    if (in_prefill.fd < 0) return 0;
    Connection *c = &connections[in_prefill.fd];
    return c->life == in_prefill.life && c->state == PREFILL;
}

static void next_prefill(void) {
    int fd;
    while (!prefilling() && (fd = queue_pop(&for_prefill)) >= 0) {
        in_prefill = (Event){fd, connections[fd].life, 0};
        prefill(fd);
    }
}

static void start(int fd) {
    Connection *c = &connections[fd];
    stats.waiting--, stats.running++;
    stats.held_tokens += c->held_tokens = c->prompt_tokens + c->tokens_left;
    if (opt.prefill_us > 0) {
        c->state = READY;
        queue_push(&for_prefill, fd);
        next_prefill();
    } else prefill(fd);
}

void admit(void) {
    int fd;
    while ((!opt.slots || stats.running < opt.slots) && (fd = queue_pop(&for_slot)) >= 0) start(fd);
    next_prefill();
}

static void enqueue(int fd) {
    connections[fd].state = WAITING;
    stats.started++, stats.waiting++;
    queue_push(&for_slot, fd);
    admit();
}

static void finish(int fd) {
    connections[fd].state = IDLE;
    stats.served++;
    release(&connections[fd]);
}

static void whole_answer(int fd, Connection *c) {
    int64_t decode_ns = (c->tokens_left - 1) * opt.token_us * 1000;
    if (c->state == PREFILL && decode_ns > 0) {
        c->state = DECODE;
        timer_push(fd, c->due_ns += decode_ns);
        return;
    }
    reply(fd, 200, "application/json", answer_json, answer_len);
    finish(fd);
}

static void next_tokens(int fd, Connection *c) {
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    if (c->state == PREFILL) send_bytes(fd, stream_head, stream_head_len);
    c->state = DECODE;
    while (c->tokens_left > 1) {
        send_bytes(fd, token_event, token_len);
        c->tokens_left--;
        if (opt.token_us) {
            timer_push(fd, c->due_ns += opt.token_us * 1000);
            return;
        }
    }
    send_bytes(fd, last_event, last_len);
    send_bytes(fd, end, sizeof end - 1);
    finish(fd);
}

static void advance(int fd) {
    Connection *c = &connections[fd];
    if (c->stream) next_tokens(fd, c);
    else whole_answer(fd, c);
}

// ---- requests ----------------------------------------------------------------------------------

static long number_after(const char *text, const char *key, long otherwise) {
    const char *found = strstr(text, key);
    return found ? atol(found + strlen(key)) : otherwise;
}

static int completion(int fd, const char *body, size_t n) {
    Connection *c = &connections[fd];
    if (opt.fail) {
        stats.refused++;
        reply_json(fd, opt.fail, "{\"error\":{\"message\":\"told to fail\",\"type\":\"mock\"}}");
        return 0;
    }
    const char *prompt = prompt_of(body);
    size_t prompt_bytes = n - (prompt - body);
    c->stream = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true");
    c->tokens_left = number_after(
        body, "\"max_tokens\":", number_after(body, "\"max_completion_tokens\":", opt.tokens));
    if (c->tokens_left < 1) c->tokens_left = 1;
    c->prompt_tokens = prompt_bytes / 4;
    hash_prompt(c, prompt, prompt_bytes);
    enqueue(fd);
    return c->state != IDLE;
}

// The length of a chunked body from `body` on, its chunks joined in place; -1: not all there yet.
static ssize_t join_chunks(char *body, char *end, size_t *joined) {
    char *from = body;
    for (int pass = 0; pass < 2; pass++) {  // first look, then move
        char *to = body;
        for (from = body;;) {
            char *line = memmem(from, end - from, "\r\n", 2);
            if (!line) return -1;
            size_t size = strtoul(from, NULL, 16);
            from = line + 2;
            if (size > MAX_BODY || from + size + 2 > end) return -1;
            if (pass) memmove(to, from, size);
            to += size, from += size + 2;
            if (!size) break;
        }
        *joined = to - body;
    }
    return from - body;
}

// Handles one whole request of the buffer. 1: look for another one; 0: wait; -1: close.
static int take_request(int fd) {
    Connection *c = &connections[fd];
    Buffer *in = &c->in;
    if (!in->len) return 0;
    char *split = memmem(in->data, in->len, "\r\n\r\n", 4);
    if (!split) return in->len > MAX_HEADER ? -1 : 0;
    char method[8] = "", path[256] = "", *body = split + 4, *end = in->data + in->len;
    *split = 0;
    char *length = strcasestr(in->data, "\ncontent-length:");
    int chunked = strcasestr(in->data, "\ntransfer-encoding: chunked") != NULL;
    sscanf(in->data, "%7s %255s", method, path);
    size_t body_len = length ? strtoul(length + 16, NULL, 10) : 0;
    *split = '\r';
    if (body_len > MAX_BODY) return -1;
    ssize_t taken = chunked ? join_chunks(body, end, &body_len) : (ssize_t)body_len;
    if (taken < 0 || body + taken > end) return 0;
    char kept = body[body_len];
    body[body_len] = 0;
    int busy = 0;
    if (!strcmp(path, "/v1/chat/completions") || !strcmp(path, "/v1/completions"))
        busy = completion(fd, body, body_len);
    else page(fd, path, body, body_len);
    body[body_len] = kept;
    drop_front(in, body + taken - in->data);
    return !busy;
}

static void close_connection(int fd) {
    Connection *c = &connections[fd];
    if (c->state == WAITING) stats.waiting--;
    if (c->state > WAITING) release(c);
    if (c->state != IDLE) stats.aborted++;
    c->life++, c->state = IDLE, c->in.len = c->out.len = 0;
    close(fd);
    admit();
}

static void serve_input(int fd) {
    Connection *c = &connections[fd];
    int more = 1;
    while (more > 0 && c->state == IDLE) more = take_request(fd);
    if (more < 0) close_connection(fd);
}

static void readable(int fd) {
    Connection *c = &connections[fd];
    reserve(&c->in, 65536);
    ssize_t n = recv(fd, c->in.data + c->in.len, c->in.cap - c->in.len - 1, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        close_connection(fd);
        return;
    }
    if (n > 0) c->in.len += n;
    c->in.data[c->in.len] = 0;
    serve_input(fd);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void due_timers(void) {
    int64_t now = now_ns();
    while (heap_len && heap[0].due_ns <= now) {
        Event e = timer_pop();
        Connection *c = &connections[e.fd];
        if (c->life != e.life) continue;
        advance(e.fd);
        admit();
        if (c->state == IDLE) serve_input(e.fd);
    }
}

static int wait_events(struct epoll_event *events, int most) {
    if (!heap_len) return epoll_wait(epoll_fd, events, most, -1);
    int64_t left = heap[0].due_ns - now_ns();
    if (left < 0) left = 0;
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    return epoll_pwait2(epoll_fd, events, most, &timeout, NULL);
}

static int listen_on(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
    if (inet_pton(AF_INET, opt.host, &at.sin_addr) != 1 || bind(fd, (void *)&at, sizeof at) ||
        listen(fd, 4096)) {
        perror("mock: listen");
        exit(1);
    }
    return fd;
}

static void read_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},       {"host", 1, 0, 'h'},   {"name", 1, 0, 'n'},
        {"slots", 1, 0, 's'},      {"think-us", 1, 0, 't'}, {"prefill-us", 1, 0, 'f'},
        {"token-us", 1, 0, 'u'},   {"tokens", 1, 0, 'k'}, {"cache-blocks", 1, 0, 'c'},
        {0}};
    int word;
    while ((word = getopt_long(argc, argv, "", names, NULL)) != -1) switch (word) {
            case 'p': opt.port = atol(optarg); break;
            case 'h': opt.host = optarg; break;
            case 'n': opt.name = optarg; break;
            case 's': opt.slots = atol(optarg); break;
            case 't': opt.think_us = atol(optarg); break;
            case 'f': opt.prefill_us = atof(optarg); break;
            case 'u': opt.token_us = atol(optarg); break;
            case 'k': opt.tokens = atol(optarg); break;
            case 'c': opt.cache_blocks = atol(optarg); break;
            default: exit(2);
        }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    if (opt.cache_blocks) make_cache(opt.cache_blocks);
    int listener = listen_on();
    epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = wait_events(events, 512);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(fd);
                continue;
            }
            if (events[i].events & EPOLLOUT && connections[fd].out.len) flush(fd);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(fd);
        }
        due_timers();
    }
}
