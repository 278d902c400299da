// Blocks of prompts that an engine remembers: a hash table of blocks in a ring, the least recently
// used one first.
#pragma once
#include <stdint.h>

#include "memory.h"

typedef struct {
    uint64_t hash;
    uint32_t older, newer;  // in the ring; entry 0 is its ends
    uint32_t next;          // of the same bucket; 0: none
} CachedBlock;

static CachedBlock *cache;
static uint32_t *buckets, nbuckets, cache_size, cache_used;

static void make_cache(uint32_t blocks) {
    cache_size = blocks;
    nbuckets = 2 * blocks + 1;
    cache = checked(calloc(blocks + 1, sizeof *cache));
    buckets = checked(calloc(nbuckets, sizeof *buckets));
}

static void cache_unlink(uint32_t i) {
    cache[cache[i].older].newer = cache[i].newer;
    cache[cache[i].newer].older = cache[i].older;
}

static void cache_append(uint32_t i) {
    uint32_t newest = cache[0].older;
    cache[i].older = newest, cache[i].newer = 0;
    cache[newest].newer = cache[0].older = i;
}

static uint32_t *cache_bucket(uint64_t hash) { return &buckets[hash % nbuckets]; }

// A free entry, or the one that was not used for longest.
static uint32_t cache_room(void) {
    if (cache_used < cache_size) return ++cache_used;
    uint32_t oldest = cache[0].newer, *at = cache_bucket(cache[oldest].hash);
    while (*at != oldest) at = &cache[*at].next;
    *at = cache[oldest].next;
    cache_unlink(oldest);
    return oldest;
}

// Whether the block was there; it is the newest afterwards.
static int cache_touch(uint64_t hash) {
    uint32_t i = *cache_bucket(hash);
    while (i && cache[i].hash != hash) i = cache[i].next;
    int found = i != 0;
    if (found) cache_unlink(i);
    else {
        i = cache_room();
        uint32_t *bucket = cache_bucket(hash);
        cache[i].hash = hash, cache[i].next = *bucket;
        *bucket = i;
    }
    cache_append(i);
    return found;
}
