// Sends chat completions to a router and measures them. One thread, epoll, HTTP/1.1, TLS on demand.
//
//   load --port 8080 --connections 32 --seconds 5 [--rate 200] [--stream] [--ca ca.pem] ...
//
// Closed loop: each connection sends its next request when the last one is answered. Open loop
// (--rate, requests/s): requests are due at the times of a Poisson process, seeded; one that finds
// no free connection waits, and its time counts from when it was due. --burst-rate R --burst-every
// P --burst-for B: the rate is R in the last B seconds of each P.
//
// Prompts: --prompt-bytes long, all alike; or --sessions: each connection holds a conversation of
// --turns turns, every one repeating the turns before it and adding --turn-bytes, under one of
// --groups system prompts of --prompt-bytes, the n-th one being 1/n as frequent as the first (Zipf).
// --vary: tokens and turns differ in length
// (exponential around what is said, between a fifth and five times that).
//
// Result, one JSON line: what was answered (status 200, complete; a stream's end is [DONE]), what
// was not and why, times in milliseconds, and per tenth of a second how many were answered and
// failed. `refused` counts connections that were not opened, `cut` the resets after the first byte. A gap is the time between reads with token events of one stream.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "load_options.h"
#include "memory.h"
#include "samples.h"

enum { MAX_BUCKETS = 4096 };
static const double BUCKET_S = 0.1, REOPEN_S = 0.01;

// ---- what was measured -------------------------------------------------------------------------

static Samples totals, first_bytes, gaps;
static struct {
    long sent, answered, tokens, status, reset, refused, timeout, truncated, error_event, cut;
    int last_status;
} count;
static struct {
    int answered, failed;
} buckets[MAX_BUCKETS];
static double started_s;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void bucket(double t, int answered) {
    int i = (t - started_s) / BUCKET_S;
    if (i < 0 || i >= MAX_BUCKETS) return;
    if (answered) buckets[i].answered++;
    else buckets[i].failed++;
}

// ---- random numbers: xorshift64*, the same for the same seed -------------------------------------

static uint64_t random_state;

static double uniform(void) {
    random_state ^= random_state >> 12, random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return ((random_state * 2685821657736338717ULL >> 11) + 1) / 9007199254740993.0;
}

static long varied(long mean) {
    if (!opt.vary) return mean;
    double factor = -log(uniform());
    factor = factor < 0.2 ? 0.2 : factor > 5 ? 5 : factor;
    long value = mean * factor;
    return value < 1 ? 1 : value;
}

// ---- connections -------------------------------------------------------------------------------

typedef enum { CLOSED, OPENING, FREE, BUSY } State;

typedef struct {
    int fd;
    SSL *tls;
    State state;
    double due_s, reopen_s, sent_s;
    int listed;  // in the free list
    // the request, and how much of it is sent
    char *request;
    size_t request_len, request_cap, request_sent;
    // its conversation
    long session, turn, group;
    char *said;  // the user's turns, as JSON messages
    size_t said_len, said_cap;
    Answer answer;
} Connection;

static Connection *connections;
static int epoll_fd;
static SSL_CTX *tls;
static long *free_list, free_head, free_tail;  // first in, first out: sessions take turns
static long next_session;

static void release(Connection *c) {
    c->state = FREE;
    if (!c->listed) free_list[free_tail++ % opt.connections] = c - connections;
    c->listed = 1;
}

// ---- requests ----------------------------------------------------------------------------------

static char *filler;
static size_t filler_len;

static void grow(char **data, size_t *cap, size_t need) {
    if (need <= *cap) return;
    *cap = need * 2;
    *data = checked(realloc(*data, *cap));
}

static void add_turn(Connection *c) {
    size_t n = varied(opt.turn_bytes), room = n + 256;
    if (n > filler_len) n = filler_len;
    grow(&c->said, &c->said_cap, c->said_len + room);
    c->said_len += snprintf(c->said + c->said_len, room,
                            ",{\"role\":\"user\",\"content\":\"session %06ld turn %03ld %.*s\"}",
                            c->session, c->turn, (int)n, filler);
}

static long some_group(void) {
    double all = 0, at;
    for (long n = 1; n <= opt.groups; n++) all += 1.0 / n;
    at = uniform() * all;
    for (long n = 1; n < opt.groups; n++)
        if ((at -= 1.0 / n) <= 0) return n - 1;
    return opt.groups - 1;
}

static void next_turn(Connection *c) {
    if (c->session < 0 || ++c->turn >= opt.turns) {
        c->session = next_session++;
        c->turn = 0;
        c->group = some_group();
        c->said_len = 0;
    }
    add_turn(c);
}

static void write_request(Connection *c) {
    char tail[96], session[64] = "", head[1024];
    snprintf(tail, sizeof tail, "],\"max_tokens\":%ld,\"stream\":%s}",
             varied(opt.tokens), opt.stream ? "true" : "false");
    size_t room = opt.prompt_bytes + c->said_len + 512;
    static char *body;
    static size_t body_cap;
    grow(&body, &body_cap, room);
    int n = snprintf(body, room,
                     "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":"
                     "\"group %06ld %.*s\"}%.*s%s",
                     opt.model, c->group, (int)opt.prompt_bytes, filler, (int)c->said_len,
                     c->said ? c->said : "", tail);
    if (opt.sessions) snprintf(session, sizeof session, "x-session-id: s%06ld\r\n", c->session);
    int head_len = snprintf(head, sizeof head,
                            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:%ld\r\n"
                            "Content-Type: application/json\r\nAuthorization: Bearer %s\r\n%s"
                            "Content-Length: %d\r\n\r\n",
                            opt.port, opt.key, session, n);
    grow(&c->request, &c->request_cap, head_len + n);
    memcpy(c->request, head, head_len);
    memcpy(c->request + head_len, body, n);
    c->request_len = head_len + n;
}

// ---- sockets -----------------------------------------------------------------------------------

static void fail(long *why, double t) {
    ++*why;
    bucket(t, 0);
}

static void shut(Connection *c, double t) {
    if (c->tls) SSL_free(c->tls);
    c->tls = NULL;
    close(c->fd);
    c->state = CLOSED;
    c->reopen_s = t;
}

static int open_socket(Connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
    int one = 1;
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return -1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) {
        close(c->fd);
        return -1;
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
    if (tls) {
        c->tls = checked(SSL_new(tls));
        SSL_set_fd(c->tls, c->fd);
        SSL_set1_host(c->tls, "localhost");
        SSL_set_tlsext_host_name(c->tls, "localhost");
        SSL_set_connect_state(c->tls);
    }
    c->state = OPENING;
    return 0;
}

// > 0: bytes; 0: closed or broken; -1: later.
static ssize_t receive(Connection *c, char *into, size_t n) {
    if (!c->tls) {
        ssize_t got = recv(c->fd, into, n, 0);
        return got < 0 ? (errno == EAGAIN ? -1 : 0) : got;
    }
    int got = SSL_read(c->tls, into, n);
    if (got > 0) return got;
    int why = SSL_get_error(c->tls, got);
    ERR_clear_error();
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? -1 : 0;
}

static void send_more(Connection *c) {
    while (c->request_sent < c->request_len) {
        size_t left = c->request_len - c->request_sent;
        ssize_t n = c->tls ? SSL_write(c->tls, c->request + c->request_sent, left)
                           : send(c->fd, c->request + c->request_sent, left, MSG_NOSIGNAL);
        if (n <= 0) {  // a broken connection is found by the next read
            ERR_clear_error();
            return;
        }
        c->request_sent += n;
    }
}

static void begin(Connection *c, double due_s) {
    if (opt.sessions) next_turn(c);
    if (opt.sessions || opt.vary || !c->request_len) write_request(c);
    c->due_s = due_s;
    answer_begin(&c->answer, opt.stream, &gaps);
    c->request_sent = 0;
    count.sent++;
    c->state = BUSY;
    c->sent_s = now_s();
    send_more(c);
}

// Opens the connection as far as it goes now; 1: it is open.
static int opened(Connection *c, double t) {
    int error = 0;
    socklen_t n = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
    int done = error ? -1 : 1;
    if (!error && c->tls) {
        int shook = SSL_do_handshake(c->tls);
        int why = shook == 1 ? 0 : SSL_get_error(c->tls, shook);
        ERR_clear_error();
        done = shook == 1 ? 1 : why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    if (done < 0) {
        count.refused++;
        shut(c, t + REOPEN_S);
    }
    if (done <= 0) return 0;
    release(c);
    return 1;
}

// ---- answers -----------------------------------------------------------------------------------

static void answered(Connection *c, double t) {
    if (c->answer.status != 200) {
        count.last_status = c->answer.status;
        fail(&count.status, t);
    } else if (c->answer.errored) {
        fail(&count.error_event, t);
    } else if (opt.stream && !answer_done(&c->answer)) {
        fail(&count.truncated, t);
    } else {
        count.answered++;
        count.tokens += opt.stream ? c->answer.events - 1 : 0;
        sample(&totals, t - c->due_s);
        sample(&first_bytes, (c->answer.first_s ? c->answer.first_s : t) - c->due_s);
        bucket(t, 1);
    }
    if (opt.reconnect || c->answer.closing) shut(c, t);
    else release(c);
}

static void broken(Connection *c, double t) {
    if (c->state == BUSY) {
        if (c->answer.part == UNTIL_CLOSE && c->answer.status == 200) {
            c->answer.closing = 1;
            answered(c, t);
            return;
        }
        if (c->answer.first_s) count.cut++;  // of the resets, those after the first byte
        fail(&count.reset, t);
    }
    shut(c, t);
}

// `ended`: the other side closes after what is there to read.
static void readable(Connection *c, int ended, double t) {
    static char data[1 << 18];
    while (c->state != CLOSED) {
        ssize_t n = receive(c, data, sizeof data);
        if (n < 0) return;
        if (n == 0) {
            broken(c, t);
            return;
        }
        int complete = c->state == BUSY && answer_feed(&c->answer, data, n, t);
        if (complete) answered(c, t);
        if (!ended && (complete || (!c->tls && n < (ssize_t)sizeof data))) return;
    }
}

// ---- the run -----------------------------------------------------------------------------------

// A free or closed connection to send on, first in first out; NULL: all are busy.
static Connection *take_free(void) {
    while (free_head != free_tail) {
        Connection *c = connections + free_list[free_head++ % opt.connections];
        c->listed = 0;
        if (c->state == FREE) return c;
    }
    return NULL;
}

static double rate_at(double t) {
    if (!opt.burst_rate) return opt.rate;
    return fmod(t - started_s, opt.burst_every) >= opt.burst_every - opt.burst_for ? opt.burst_rate
                                                                                   : opt.rate;
}

static double next_due_s;

static void start_due(double t, double end_s) {
    Connection *c;
    if (!opt.rate) {
        while (t < end_s && (c = take_free())) begin(c, t);
        return;
    }
    while (next_due_s <= t && next_due_s < end_s && (c = take_free())) {
        begin(c, next_due_s);
        next_due_s += -log(uniform()) / rate_at(next_due_s);
    }
}

static void reopen_and_expire(double t) {
    for (Connection *c = connections; c < connections + opt.connections; c++) {
        if (c->state == CLOSED && t >= c->reopen_s && open_socket(c)) c->reopen_s = t + REOPEN_S;
        if (c->state == BUSY && t - c->sent_s > opt.timeout) {
            fail(&count.timeout, t);
            shut(c, t);
        }
    }
}

static long busy_count(void) {
    long busy = 0;
    for (Connection *c = connections; c < connections + opt.connections; c++)
        busy += c->state == BUSY;
    return busy;
}

static double wait_s(double t, double end_s) {
    double wait = 0.01;
    if (opt.rate && t < end_s && free_head != free_tail && next_due_s - t < wait)
        wait = next_due_s - t;
    return wait < 0 ? 0 : wait;
}

static void events(double wait) {
    struct epoll_event ready[512];
    struct timespec timeout = {0, wait * 1e9};
    int n = epoll_pwait2(epoll_fd, ready, 512, &timeout, NULL);
    double t = now_s();
    for (int i = 0; i < n; i++) {
        Connection *c = ready[i].data.ptr;
        if (c->state == CLOSED) continue;
        if (c->state == OPENING && !opened(c, t)) continue;
        if (c->state == BUSY && c->request_sent < c->request_len) send_more(c);
        int ended = (ready[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        if (ended || ready[i].events & EPOLLIN) readable(c, ended, t);
    }
}

// Requests that were due before the end and found no free connection.
static long count_unsent(double end_s) {
    long unsent = 0;
    for (; opt.rate && next_due_s < end_s; unsent++)
        next_due_s += -log(uniform()) / rate_at(next_due_s);
    return unsent;
}

static double run(void) {
    double t = now_s(), end_s = t + opt.seconds, scanned_s = 0;
    started_s = next_due_s = t;
    // Open loop: what was due is waited for. Closed loop: the end is the end.
    while (t < end_s || (opt.rate && t < end_s + opt.grace &&
                         (busy_count() || next_due_s < end_s))) {
        if (t - scanned_s > 0.005 || opt.reconnect) reopen_and_expire(scanned_s = t);
        start_due(t, end_s);
        events(wait_s(t, end_s));
        t = now_s();
    }
    return opt.rate ? opt.seconds : t - started_s;
}

static void print_result(double took_s) {
    long failed = count.status + count.reset + count.timeout + count.truncated +
                  count.error_event;
    printf("{\"seconds\":%.4f,\"sent\":%ld,\"answered\":%ld,\"per_s\":%.2f,\"tokens_per_s\":%.2f,",
           took_s, count.sent, count.answered, count.answered / took_s, count.tokens / took_s);
    print_samples("total", &totals);
    print_samples("first_byte", &first_bytes);
    print_samples("gap", &gaps);
    printf("\"failed\":%ld,\"status\":%ld,\"last_status\":%d,\"reset\":%ld,\"cut\":%ld,"
           "\"refused\":%ld,\"timeout\":%ld,\"truncated\":%ld,\"error_event\":%ld,"
           "\"unfinished\":%ld,\"timeline\":[",
           failed, count.status, count.last_status, count.reset, count.cut, count.refused,
           count.timeout, count.truncated, count.error_event,
           opt.rate ? busy_count() + count_unsent(started_s + opt.seconds) : 0);
    int last = (now_s() - started_s) / BUCKET_S + 1;
    for (int i = 0; i < last && i < MAX_BUCKETS; i++)
        printf("%s[%d,%d]", i ? "," : "", buckets[i].answered, buckets[i].failed);
    printf("]}\n");
}

static void make_filler(void) {
    static const char words[] = "the quick brown fox jumps over the lazy dog ";
    filler_len = opt.prompt_bytes > 5 * opt.turn_bytes ? opt.prompt_bytes : 5 * opt.turn_bytes;
    filler = checked(malloc(filler_len + 1));
    for (size_t i = 0; i < filler_len; i++) filler[i] = words[i % (sizeof words - 1)];
    filler[filler_len] = 0;
}

static void make_tls(void) {
    if (!opt.ca) return;
    tls = checked(SSL_CTX_new(TLS_client_method()));
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (SSL_CTX_load_verify_locations(tls, opt.ca, NULL) != 1) {
        fprintf(stderr, "load: no certificates in %s\n", opt.ca);
        exit(1);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    random_state = 0x9E3779B97F4A7C15ULL * (opt.seed + 1);
    make_filler();
    make_tls();
    epoll_fd = epoll_create1(0);
    connections = checked(calloc(opt.connections, sizeof *connections));
    free_list = checked(calloc(opt.connections, sizeof *free_list));
    for (Connection *c = connections; c < connections + opt.connections; c++) {
        c->session = -1;
        c->state = CLOSED;
    }
    print_result(run());
}
