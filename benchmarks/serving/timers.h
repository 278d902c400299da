// What is due when: a binary heap.
#pragma once
#include <stdint.h>

#include "memory.h"

typedef struct {
    int fd;
    uint32_t life;
    int64_t due_ns;
} Event;

static Event *heap;
static long heap_len, heap_cap;

static void timer_add(Event event) {
    if (heap_len == heap_cap) {
        heap_cap = heap_cap ? 2 * heap_cap : 1024;
        heap = checked(realloc(heap, heap_cap * sizeof *heap));
    }
    long i = heap_len++;
    for (; i && heap[(i - 1) / 2].due_ns > event.due_ns; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = event;
}

static Event timer_pop(void) {
    Event top = heap[0], last = heap[--heap_len];
    long i = 0;
    for (;;) {
        long child = 2 * i + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1].due_ns < heap[child].due_ns) child++;
        if (heap[child].due_ns >= last.due_ns) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}
