/* What trainmesh.serving asks of NVML, on top of the fake driver of the topology tests. More keys:
     gpu0.clock 1980  gpu0.max_clock 1980  gpu0.reasons 0  gpu0.max_width 16  gpu0.ecc 0
     gpu0.pending 0   gpu0.remap_failed 0 */
#include "../../topology/importers/fake_nvml.c"

int nvmlDeviceGetClockInfo(struct device *gpu, int kind, unsigned *mhz) {
    ANSWER_OR_FAIL;
    if (kind != 1) return INVALID;
    *mhz = (unsigned)of_gpu(gpu, "clock", 1980);
    return OK;
}

int nvmlDeviceGetMaxClockInfo(struct device *gpu, int kind, unsigned *mhz) {
    ANSWER_OR_FAIL;
    if (kind != 1) return INVALID;
    *mhz = (unsigned)of_gpu(gpu, "max_clock", 1980);
    return OK;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *gpu, unsigned long long *reasons) {
    ANSWER_OR_FAIL;
    *reasons = (unsigned long long)of_gpu(gpu, "reasons", 0);
    return OK;
}

int nvmlDeviceGetMaxPcieLinkWidth(struct device *gpu, unsigned *width) {
    ANSWER_OR_FAIL;
    *width = (unsigned)of_gpu(gpu, "max_width", 16);
    return OK;
}

int nvmlDeviceGetTotalEccErrors(struct device *gpu, int kind, int counter,
                                unsigned long long *count) {
    ANSWER_OR_FAIL;
    if (kind != 1 || counter != 0) return INVALID;
    *count = (unsigned long long)of_gpu(gpu, "ecc", 0);
    return OK;
}

int nvmlDeviceGetRemappedRows(struct device *gpu, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    ANSWER_OR_FAIL;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)of_gpu(gpu, "pending", 0);
    *failed = (unsigned)of_gpu(gpu, "remap_failed", 0);
    return OK;
}
