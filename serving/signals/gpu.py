"""How much of its nominal rate a GPU delivers, from what NVML says about it.

The driver reports no fault for a GPU that is hot, held back by its power supply, or on a PCIe link
that lost lanes; the GPU is only slower. So health is a factor in (0, 1] here, not a verdict.
Factors multiply. The clock's factor is measured; the others are rough, and only have to be below
those of sound GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from trainmesh.errors import TrainmeshError
from trainmesh.extras import install_line

__all__ = ["Derate", "GpuFacts", "GpuReader", "derate", "worst"]

HELD_BACK = {
    0x08: "hardware slowdown",
    0x20: "driver's thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that are not normal. The power cap (0x4) is: most GPUs run into it
under full load."""
LEAST = 0.05
"""A factor is never 0, so that an endpoint which is the only one left still gets requests."""
FACTOR_ECC = 0.5
FACTOR_REMAP_PENDING = 0.7
FACTOR_REMAP_FAILED = 0.1
UNCORRECTED, VOLATILE = 1, 0
"""NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC"""
CLOCK_SM = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """NVML's values; None if a GPU, driver or virtual machine does not report one."""

    index: int
    lost: bool = False
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    held_back: int = 0
    """nvmlClocksEventReasons bits."""
    pcie_width: int | None = None
    max_pcie_width: int | None = None
    uncorrected_errors: int | None = None
    """Since the driver was loaded."""
    remap_pending: bool = False
    remap_failed: bool = False


@dataclass(frozen=True, slots=True)
class Derate:
    """``value`` in (0, 1]; ``reason`` is empty for 1."""

    value: float = 1.0
    reason: str = ""


def derate(facts: GpuFacts) -> Derate:
    """One GPU's factor, and why."""
    if facts.lost:
        return Derate(LEAST, f"GPU {facts.index}: the driver has lost it")
    found = [part for part in (_clocks(facts), _pcie(facts), *_memory(facts)) if part is not None]
    value = 1.0
    for factor, _ in found:
        value *= factor
    reason = ", ".join(words for _, words in found)
    return Derate(max(LEAST, min(1.0, value)), f"GPU {facts.index}: {reason}" if reason else "")


def worst(derates: Iterable[Derate]) -> Derate:
    """Of several GPUs that work as one, the slowest sets the pace."""
    return min(derates, key=lambda one: one.value, default=Derate())


def _clocks(facts: GpuFacts) -> tuple[float, str] | None:
    """The clock of an idle GPU is low too, so it counts only while something holds it back."""
    causes = [words for bit, words in HELD_BACK.items() if facts.held_back & bit]
    if not causes or not facts.sm_clock_mhz or not facts.max_sm_clock_mhz:
        return None
    share = facts.sm_clock_mhz / facts.max_sm_clock_mhz
    clocks = f"{facts.sm_clock_mhz} of {facts.max_sm_clock_mhz} MHz"
    return min(1.0, share), f"{' and '.join(causes)} ({clocks})"


def _pcie(facts: GpuFacts) -> tuple[float, str] | None:
    """Only the width counts: on an idle GPU the generation steps down, but the width does not. Half
    of a request's cost is assumed not to depend on the bus."""
    if not facts.pcie_width or not facts.max_pcie_width:
        return None
    share = facts.pcie_width / facts.max_pcie_width
    if share >= 1:
        return None
    return 0.5 + share / 2, f"PCIe x{facts.pcie_width} of x{facts.max_pcie_width}"


def _memory(facts: GpuFacts) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    if facts.remap_failed:
        found.append((FACTOR_REMAP_FAILED, "a memory row could not be remapped"))
    if facts.remap_pending:
        found.append((FACTOR_REMAP_PENDING, "a memory row waits to be remapped at a reset"))
    if facts.uncorrected_errors:
        found.append((FACTOR_ECC, f"{facts.uncorrected_errors} uncorrected memory errors"))
    return found


class GpuReader:
    """Asks NVML; a context manager. All calls block, and may for seconds if a GPU is in trouble.

    Raises:
        TrainmeshError: there is no driver, or no nvidia-ml-py.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ModuleNotFoundError as error:
            unknown = f"no nvidia-ml-py; health of GPUs is not known: {install_line('gpu')}"
            raise TrainmeshError(unknown) from error

        self._nvml: Any = pynvml
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise TrainmeshError(f"NVML: {error}; health of GPUs is not known") from error

    def __enter__(self) -> GpuReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._nvml.nvmlShutdown()

    def read(self, index: int) -> GpuFacts:
        """GPU ``index``; one that does not answer at all is lost."""
        nvml = self._nvml
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            return GpuFacts(index=index, lost=True)
        remapped = self._ask(lambda: nvml.nvmlDeviceGetRemappedRows(gpu))
        lost = nvml.NVMLError_GpuIsLost
        try:
            clock = nvml.nvmlDeviceGetClockInfo(gpu, CLOCK_SM)
        except lost:
            return GpuFacts(index=index, lost=True)
        except nvml.NVMLError:
            clock = None
        return GpuFacts(
            index=index,
            sm_clock_mhz=clock,
            max_sm_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, CLOCK_SM)),
            held_back=self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)) or 0,
            pcie_width=self._ask(lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu)),
            max_pcie_width=self._ask(lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu)),
            uncorrected_errors=self._ask(
                lambda: nvml.nvmlDeviceGetTotalEccErrors(gpu, UNCORRECTED, VOLATILE)
            ),
            remap_pending=bool(remapped and remapped[2]),
            remap_failed=bool(remapped and remapped[3]),
        )

    def _ask(self, question: Callable[[], T]) -> T | None:
        """None where the GPU has no answer."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None
