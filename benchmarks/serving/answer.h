// Reads an HTTP answer, whole or streamed, and when its parts came.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "samples.h"

enum { MAX_HEADER = 16384 };

typedef enum { HEADER, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE } Part;

typedef struct {
    int stream;
    Samples *gaps;                 // between reads with token events
    double first_s, last_token_s;  // 0: none yet
    int status, closing;           // closing: no further answer will come
    int errored;                   // an event said so
    long events;
    char tail[8];  // the last bytes but line ends
    // where it is in the answer
    Part part;
    int line_start, trailer_len;
    long left;
    char header[MAX_HEADER];
    size_t header_len;
} Answer;

static void answer_begin(Answer *a, int stream, Samples *gaps) {
    a->stream = stream, a->gaps = gaps;
    a->first_s = a->last_token_s = 0;
    a->status = a->closing = a->errored = 0, a->events = 0;
    a->part = HEADER, a->line_start = 1, a->trailer_len = 0, a->left = 0, a->header_len = 0;
    memset(a->tail, 0, sizeof a->tail);
}

static int answer_done(const Answer *a) { return !memcmp(a->tail + 2, "[DONE]", 6); }

static void body_bytes(Answer *a, const char *data, size_t n, double t) {
    long before = a->events;
    if (!a->first_s) a->first_s = t;
    if (!a->stream) return;
    for (size_t i = 0; i < n; i++) {  // an event is a line that begins with d, of "data:"
        if (a->line_start && data[i] == 'd') a->events++;
        a->line_start = data[i] == '\n';
    }
    if (memmem(data, n, "\"error\"", 7)) a->errored = 1;
    size_t keep = sizeof a->tail;  // the last bytes but blanks: [DONE]
    for (size_t i = n > 2 * keep ? n - 2 * keep : 0; i < n; i++)
        if (data[i] != '\n' && data[i] != '\r') {
            memmove(a->tail, a->tail + 1, keep - 1);
            a->tail[keep - 1] = data[i];
        }
    if (a->events == before) return;
    if (a->last_token_s && t > a->last_token_s) sample(a->gaps, t - a->last_token_s);
    a->last_token_s = t;
}

static int take_header(Answer *a, const char *data, size_t n, size_t *used) {
    size_t old = a->header_len, room = MAX_HEADER - 1 - old, take = n < room ? n : room;
    memcpy(a->header + old, data, take);
    a->header_len += take;
    a->header[a->header_len] = 0;
    char *end = strstr(a->header, "\r\n\r\n");
    *used = take;
    if (!end && !take) return a->closing = 1;  // longer than we read: no answer
    if (!end) return 0;
    *used = end + 4 - a->header - old;
    *end = 0;
    a->status = atoi(a->header + 9);
    char *length = strcasestr(a->header, "\ncontent-length:");
    a->closing = strcasestr(a->header, "\nconnection: close") != NULL;
    if (a->status == 100) a->part = HEADER, a->header_len = 0;
    else if (strcasestr(a->header, "\ntransfer-encoding: chunked")) a->part = CHUNK_SIZE;
    else if (length) a->part = LENGTH, a->left = atol(length + 16);
    else a->part = UNTIL_CLOSE;
    return a->part == LENGTH && !a->left;
}

// One byte of a chunk's size, the end of a chunk, or a trailer; 1: the answer is complete.
static int framing_byte(Answer *a, char byte) {
    switch (a->part) {
        case CHUNK_SIZE:
            if (byte == '\n') a->part = a->left ? CHUNK_DATA : TRAILER;
            else if (byte >= '0' && byte <= '9') a->left = a->left * 16 + byte - '0';
            else if ((byte | 32) >= 'a' && (byte | 32) <= 'f')
                a->left = a->left * 16 + (byte | 32) - 'a' + 10;
            return 0;
        case CHUNK_END:
            if (byte == '\n') a->part = CHUNK_SIZE;
            return 0;
        default:  // a trailer: an empty line ends it
            if (byte == '\n' && !a->trailer_len) return 1;
            a->trailer_len = byte == '\n' ? 0 : byte == '\r' ? a->trailer_len : a->trailer_len + 1;
            return 0;
    }
}

// 1: the answer is complete.
static int answer_feed(Answer *a, const char *data, size_t n, double t) {
    size_t i = 0, used;
    while (i < n) {
        if (a->part == HEADER) {
            if (take_header(a, data + i, n - i, &used)) return 1;
            i += used;
        } else if (a->part == UNTIL_CLOSE) {
            body_bytes(a, data + i, n - i, t);
            return 0;
        } else if (a->part == LENGTH || a->part == CHUNK_DATA) {
            size_t take = n - i < (size_t)a->left ? n - i : (size_t)a->left;
            body_bytes(a, data + i, take, t);
            i += take, a->left -= take;
            if (a->left) continue;
            if (a->part == LENGTH) return 1;
            a->part = CHUNK_END;
        } else if (framing_byte(a, data[i++])) return 1;
    }
    return 0;
}
