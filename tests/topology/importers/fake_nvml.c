/* A libnvidia-ml.so.1 for tests: what the importer asks of the driver, answered from the text file
   $FAKE_NVML. Lines are "key value":
     count 2                  GPUs
     gpu0.sm 80               compute capability
     gpu0.generation 4        PCIe
     gpu0.width 16
     gpu0.links 12            NVLinks there are
     gpu0.link3 1             what link 3 leads to: a GPU's index, -1 a switch (default), -2 off
     near.0.1 40              nvmlGpuTopologyLevel_t of two GPUs, the lower index first
     fail.NAME 15             nvmlReturn_t of the function NAME
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, SWITCH = -1, OFF = -2 };

struct device { int index; };
static struct device devices[64];

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;

static int get(const char *key, int otherwise) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char word[128];
    int value, found = otherwise;
    if (!file) return otherwise;
    while (fscanf(file, "%127s %d", word, &value) == 2)
        if (!strcmp(word, key)) found = value;
    fclose(file);
    return found;
}

static int of_gpu(const struct device *gpu, const char *key, int otherwise) {
    char word[128];
    snprintf(word, sizeof word, "gpu%d.%s", gpu->index, key);
    return get(word, otherwise);
}

static int fails(const char *function) {
    char word[128];
    snprintf(word, sizeof word, "fail.%s", function);
    return get(word, OK);
}

#define ANSWER_OR_FAIL do { int code = fails(__func__); if (code) return code; } while (0)

static void fill(pci_info *info, int bus) {
    memset(info, 0, sizeof *info);
    info->bus = (unsigned)bus;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", (unsigned)bus);
}

const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "Fake error"; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ANSWER_OR_FAIL;
    for (int i = 0; i < 64; i++) devices[i].index = i;
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return OK; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    ANSWER_OR_FAIL;
    *count = (unsigned)get("count", 2);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **handle) {
    ANSWER_OR_FAIL;
    *handle = &devices[index];
    return OK;
}

int nvmlDeviceGetName(struct device *gpu, char *name, unsigned length) {
    ANSWER_OR_FAIL;
    (void)gpu;
    snprintf(name, length, "Fake GPU");
    return OK;
}

int nvmlDeviceGetPciInfo_v3(struct device *gpu, pci_info *info) {
    ANSWER_OR_FAIL;
    fill(info, 0x10 + gpu->index);
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(struct device *gpu, int *major, int *minor) {
    ANSWER_OR_FAIL;
    *major = of_gpu(gpu, "sm", 80) / 10;
    *minor = of_gpu(gpu, "sm", 80) % 10;
    return OK;
}

int nvmlDeviceGetMaxPcieLinkGeneration(struct device *gpu, unsigned *generation) {
    ANSWER_OR_FAIL;
    *generation = (unsigned)of_gpu(gpu, "generation", 4);
    return OK;
}

int nvmlDeviceGetCurrPcieLinkWidth(struct device *gpu, unsigned *width) {
    ANSWER_OR_FAIL;
    *width = (unsigned)of_gpu(gpu, "width", 16);
    return OK;
}

static int target(const struct device *gpu, unsigned link) {
    char key[32];
    snprintf(key, sizeof key, "link%u", link);
    return of_gpu(gpu, key, SWITCH);
}

int nvmlDeviceGetNvLinkState(struct device *gpu, unsigned link, unsigned *state) {
    ANSWER_OR_FAIL;
    if ((int)link >= of_gpu(gpu, "links", 0)) return NOT_SUPPORTED;
    *state = target(gpu, link) != OFF;
    return OK;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(struct device *gpu, unsigned link, unsigned *type) {
    ANSWER_OR_FAIL;
    *type = target(gpu, link) == SWITCH ? 2 : 0;
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct device *gpu, unsigned link, pci_info *info) {
    ANSWER_OR_FAIL;
    fill(info, 0x10 + target(gpu, link));
    return OK;
}

int nvmlDeviceGetTopologyCommonAncestor(struct device *a, struct device *b, unsigned *level) {
    char key[32];
    ANSWER_OR_FAIL;
    snprintf(key, sizeof key, "near.%d.%d", a->index, b->index);
    *level = (unsigned)get(key, 50);
    return OK;
}
