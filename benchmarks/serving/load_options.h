// What the load generator was told; load.c says what it means.
#pragma once
#include <getopt.h>
#include <stdlib.h>

static struct {
    long port, connections, prompt_bytes, tokens, turns, turn_bytes, groups, seed;
    double seconds, rate, burst_rate, burst_every, burst_for, timeout, grace;
    int stream, sessions, vary, reconnect;
    const char *ca, *key, *model;
} opt = {.port = 8080, .connections = 1, .prompt_bytes = 200, .tokens = 32, .turns = 1,
         .turn_bytes = 200, .groups = 1, .seed = 1, .seconds = 1, .timeout = 30, .grace = 5,
         .key = "sk-bench", .model = "mock"};

static void read_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, 0, 'p'},       {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
        {"rate", 1, 0, 'r'},       {"burst-rate", 1, 0, 'b'},  {"burst-every", 1, 0, 'e'},
        {"burst-for", 1, 0, 'f'},  {"stream", 0, 0, 'S'},      {"prompt-bytes", 1, 0, 'n'},
        {"tokens", 1, 0, 't'},     {"sessions", 0, 0, 'i'},    {"turns", 1, 0, 'u'},
        {"turn-bytes", 1, 0, 'y'}, {"groups", 1, 0, 'g'},      {"vary", 0, 0, 'v'},
        {"seed", 1, 0, 'd'},       {"ca", 1, 0, 'a'},          {"key", 1, 0, 'k'},
        {"model", 1, 0, 'm'},      {"timeout", 1, 0, 'o'},     {"grace", 1, 0, 'G'},
        {"reconnect", 0, 0, 'R'},  {0}};
    int word;
    while ((word = getopt_long(argc, argv, "", names, NULL)) != -1) switch (word) {
            case 'p': opt.port = atol(optarg); break;
            case 'c': opt.connections = atol(optarg); break;
            case 's': opt.seconds = atof(optarg); break;
            case 'r': opt.rate = atof(optarg); break;
            case 'b': opt.burst_rate = atof(optarg); break;
            case 'e': opt.burst_every = atof(optarg); break;
            case 'f': opt.burst_for = atof(optarg); break;
            case 'S': opt.stream = 1; break;
            case 'n': opt.prompt_bytes = atol(optarg); break;
            case 't': opt.tokens = atol(optarg); break;
            case 'i': opt.sessions = 1; break;
            case 'u': opt.turns = atol(optarg); break;
            case 'y': opt.turn_bytes = atol(optarg); break;
            case 'g': opt.groups = atol(optarg); break;
            case 'v': opt.vary = 1; break;
            case 'd': opt.seed = atol(optarg); break;
            case 'a': opt.ca = optarg; break;
            case 'k': opt.key = optarg; break;
            case 'm': opt.model = optarg; break;
            case 'o': opt.timeout = atof(optarg); break;
            case 'G': opt.grace = atof(optarg); break;
            case 'R': opt.reconnect = 1; break;
            default: exit(2);
        }
}
