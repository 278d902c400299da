// Times, kept one by one until they are printed.
#pragma once
#include "memory.h"

typedef struct {
    float *at;
    size_t len, cap;
} Samples;

static void sample(Samples *s, double seconds) {
    if (s->len == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 65536;
        s->at = checked(realloc(s->at, s->cap * sizeof *s->at));
    }
    s->at[s->len++] = seconds;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    static const double quantiles[] = {0.5, 0.9, 0.99, 0.999, 1};
    static const char *names[] = {"p50", "p90", "p99", "p999", "max"};
    double sum = 0;
    printf("\"%s_ms\":{\"n\":%zu", name, s->len);
    if (s->len) {
        qsort(s->at, s->len, sizeof *s->at, by_value);
        for (size_t i = 0; i < s->len; i++) sum += s->at[i];
        printf(",\"mean\":%.4f", sum / s->len * 1e3);
        for (int i = 0; i < 5; i++) {
            size_t at = quantiles[i] * s->len;
            printf(",\"%s\":%.4f", names[i], s->at[at < s->len ? at : s->len - 1] * 1e3);
        }
    }
    printf("},");
}
