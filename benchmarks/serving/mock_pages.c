// What an engine says of itself, as vLLM and SGLang do, and how it is told to behave.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "mock.h"

static double kv_use(void) {
    double room = opt.slots ? opt.slots * 2048.0 : 1 << 20, use = stats.held_tokens / room;
    return use < 1 ? use : 1;
}

static void metrics_page(int fd) {
    char page[2048];
    int n = snprintf(page, sizeof page,
                     "# TYPE vllm:num_requests_running gauge\n"
                     "vllm:num_requests_running{model_name=\"mock\"} %ld\n"
                     "# TYPE vllm:num_requests_waiting gauge\n"
                     "vllm:num_requests_waiting{model_name=\"mock\"} %ld\n"
                     "# TYPE vllm:kv_cache_usage_perc gauge\n"
                     "vllm:kv_cache_usage_perc{model_name=\"mock\"} %.4f\n"
                     "# TYPE vllm:gpu_cache_usage_perc gauge\n"
                     "vllm:gpu_cache_usage_perc{model_name=\"mock\"} %.4f\n"
                     "# TYPE vllm:prompt_tokens_total counter\n"
                     "vllm:prompt_tokens_total{model_name=\"mock\"} %ld\n"
                     "# TYPE vllm:prefix_cache_queries_total counter\n"
                     "vllm:prefix_cache_queries_total{model_name=\"mock\"} %ld\n"
                     "# TYPE vllm:prefix_cache_hits_total counter\n"
                     "vllm:prefix_cache_hits_total{model_name=\"mock\"} %ld\n"
                     "# TYPE sglang:num_running_reqs gauge\n"
                     "sglang:num_running_reqs{model_name=\"mock\"} %ld\n"
                     "# TYPE sglang:num_queue_reqs gauge\n"
                     "sglang:num_queue_reqs{model_name=\"mock\"} %ld\n"
                     "# TYPE sglang:token_usage gauge\n"
                     "sglang:token_usage{model_name=\"mock\"} %.4f\n",
                     stats.running, stats.waiting, kv_use(), kv_use(), stats.prompt_tokens,
                     stats.prompt_tokens, stats.cached_tokens, stats.running, stats.waiting, kv_use());
    reply(fd, 200, "text/plain; version=0.0.4", page, n);
}

// SGLang's /v1/loads and the older /get_load, a list of the ranks.
static void loads_page(int fd, int whole) {
    char ranks[512], page[1024];
    long all = stats.running + stats.waiting;
    snprintf(ranks, sizeof ranks,
             "[{\"dp_rank\":0,\"num_reqs\":%ld,\"num_running_reqs\":%ld,\"num_waiting_reqs\":%ld,"
             "\"num_total_reqs\":%ld,\"num_tokens\":%ld,\"num_used_tokens\":%ld,"
             "\"max_total_num_tokens\":%ld,\"max_running_requests\":%ld,\"token_usage\":%.4f,"
             "\"gen_throughput\":0,\"cache_hit_rate\":0,\"utilization\":%.4f}]",
             all, stats.running, stats.waiting, all, stats.held_tokens, stats.held_tokens,
             opt.slots ? opt.slots * 2048 : 1 << 20, opt.slots ? opt.slots : 4096, kv_use(),
             kv_use());
    if (!whole) {
        reply_json(fd, 200, ranks);
        return;
    }
    snprintf(page, sizeof page,
             "{\"timestamp\":\"2026-01-01T00:00:00Z\",\"version\":\"0.5.6\",\"dp_rank_count\":1,"
             "\"loads\":%s,\"aggregate\":{\"total_running_reqs\":%ld,\"total_waiting_reqs\":%ld,"
             "\"total_reqs\":%ld,\"avg_token_usage\":%.4f,\"avg_throughput\":0,"
             "\"avg_utilization\":%.4f}}",
             ranks, stats.running, stats.waiting, all, kv_use(), kv_use());
    reply_json(fd, 200, page);
}

static void stats_page(int fd) {
    char page[512];
    snprintf(page, sizeof page,
             "{\"started\":%ld,\"served\":%ld,\"aborted\":%ld,\"refused\":%ld,\"waiting\":%ld,"
             "\"running\":%ld,\"prompt_tokens\":%ld,\"cached_tokens\":%ld}",
             stats.started, stats.served, stats.aborted, stats.refused, stats.waiting,
             stats.running, stats.prompt_tokens, stats.cached_tokens);
    reply_json(fd, 200, page);
}

static void control(int fd, const char *query) {
    const struct {
        const char *name;
        long *value;
    } words[] = {{"think_us=", &opt.think_us},
                 {"token_us=", &opt.token_us},
                 {"slots=", &opt.slots},
                 {"fail=", &opt.fail}};
    const char *found;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if ((found = strstr(query, words[i].name)))
            *words[i].value = atol(found + strlen(words[i].name));
    if ((found = strstr(query, "prefill_us="))) opt.prefill_us = atof(found + 11);
    reply_json(fd, 200, "{}");
    admit();
}

// The prompt's tokens: a number for each 4 bytes.
static void tokenize(int fd, const char *body, size_t n) {
    static Buffer page;
    const char *prompt = prompt_of(body);
    size_t tokens = (n - (prompt - body)) / 4;
    page.len = 0;
    reserve(&page, 8 * tokens + 128);
    page.len = sprintf(page.data, "{\"count\":%zu,\"max_model_len\":131072,\"tokens\":[", tokens);
    for (size_t i = 0; i < tokens; i++) {
        uint32_t word;
        memcpy(&word, prompt + 4 * i, 4);
        page.len += sprintf(page.data + page.len, i ? ",%u" : "%u", word * 2654435761U >> 15);
    }
    page.len += sprintf(page.data + page.len, "]}");
    reply(fd, 200, "application/json", page.data, page.len);
}

static int starts(const char *path, const char *with) { return !strncmp(path, with, strlen(with)); }

static const char model_page[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"mock\",\"root\":\"mock\",\"parent\":null,\"max_model_len\":131072}]}";
static const char info_page[] =
    "{\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"tokenizer_path\":\"mock\","
    "\"tp_size\":1,\"dp_size\":1,\"max_total_num_tokens\":1000000,\"is_generation\":true,"
    "\"version\":\"0.5.6\"}";

void page(int fd, const char *path, const char *body, size_t n) {
    if (!strcmp(path, "/tokenize")) tokenize(fd, body, n);
    else if (starts(path, "/health") || starts(path, "/ready") || !strcmp(path, "/"))
        reply_json(fd, opt.fail ? opt.fail : 200, "{}");
    else if (starts(path, "/v1/models")) reply_json(fd, 200, model_page);
    else if (starts(path, "/metrics")) metrics_page(fd);
    else if (starts(path, "/v1/loads")) loads_page(fd, 1);
    else if (starts(path, "/get_load")) loads_page(fd, 0);
    else if (starts(path, "/stats")) stats_page(fd);
    else if (starts(path, "/control")) control(fd, path);
    else if (starts(path, "/version")) reply_json(fd, 200, "{\"version\":\"0.11.0\"}");
    else if (strstr(path, "server_info") || strstr(path, "model_info"))
        reply_json(fd, 200, info_page);
    else reply_json(fd, 404, "{}");
}
