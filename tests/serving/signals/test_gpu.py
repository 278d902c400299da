"""GPU health as a factor; the real pynvml on a library that answers from a file."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.needs import need
from trainmesh.serving.signals.gpu import LEAST, Derate, GpuFacts, derate, worst

ROOT = Path(__file__).parent.parent.parent.parent
SOUND = GpuFacts(
    index=0,
    sm_clock_mhz=1980,
    max_sm_clock_mhz=1980,
    pcie_width=16,
    max_pcie_width=16,
    uncorrected_errors=0,
)
IDLE = replace(SOUND, sm_clock_mhz=345, held_back=0x1)
READ = """
import dataclasses, json, sys
from trainmesh.errors import TrainmeshError
from trainmesh.serving.signals.gpu import GpuReader
try:
    with GpuReader() as reader:
        print(json.dumps([dataclasses.asdict(reader.read(int(i))) for i in sys.argv[1:]]))
except TrainmeshError as error:
    sys.exit(str(error))
"""
WATCH = """
import asyncio, time
from tests.serving.signals.builds import config
from trainmesh.serving.signals.gpu_watch import GpuWatch
watch = GpuWatch(print)
endpoints = [{"url": "http://a:1", "gpus": [0, 1]}, {"url": "http://b:1"}]
watch.update(config(endpoints))
end_s = time.monotonic() + 20
while not watch.derates() and time.monotonic() < end_s:
    time.sleep(0.01)
print(watch.derates())
asyncio.run(watch.close())
"""


@pytest.mark.parametrize(
    ("facts", "value", "reason"),
    [
        (SOUND, 1.0, ""),
        (IDLE, 1.0, ""),
        (GpuFacts(index=3), 1.0, ""),
        (replace(SOUND, sm_clock_mhz=1500, held_back=0x4), 1.0, ""),  # the power cap is normal
        (
            replace(SOUND, sm_clock_mhz=990, held_back=0x40),
            0.5,
            "GPU 0: hardware thermal limit (990 of 1980 MHz)",
        ),
        (
            replace(SOUND, sm_clock_mhz=1485, held_back=0x88),
            0.75,
            "GPU 0: hardware slowdown and power brake (1485 of 1980 MHz)",
        ),
        (replace(SOUND, sm_clock_mhz=2100, held_back=0x20), 1.0, None),
        (replace(SOUND, pcie_width=8), 0.75, "GPU 0: PCIe x8 of x16"),
        (replace(SOUND, uncorrected_errors=2), 0.5, "GPU 0: 2 uncorrected memory errors"),
        (
            replace(SOUND, remap_pending=True),
            0.7,
            "GPU 0: a memory row waits to be remapped at a reset",
        ),
        (replace(SOUND, remap_failed=True), 0.1, "GPU 0: a memory row could not be remapped"),
        (replace(SOUND, lost=True), LEAST, "GPU 0: the driver has lost it"),
    ],
)
def test_factors(facts: GpuFacts, value: float, reason: str | None) -> None:
    found = derate(facts)
    assert found.value == pytest.approx(value)
    assert reason is None or found.reason == reason


facts_of = st.builds(
    GpuFacts,
    index=st.integers(0, 7),
    lost=st.booleans(),
    sm_clock_mhz=st.none() | st.integers(0, 3000),
    max_sm_clock_mhz=st.none() | st.integers(0, 3000),
    held_back=st.integers(0, 0x1FF),
    pcie_width=st.none() | st.integers(0, 32),
    max_pcie_width=st.none() | st.integers(0, 32),
    uncorrected_errors=st.none() | st.integers(0, 10**9),
    remap_pending=st.booleans(),
    remap_failed=st.booleans(),
)


@given(facts_of)
@settings(derandomize=True, max_examples=300)
def test_a_factor_is_never_zero_and_never_without_a_reason(facts: GpuFacts) -> None:
    found = derate(facts)
    assert LEAST <= found.value <= 1
    assert found.value == 1 or found.reason
    healed = replace(facts, remap_failed=False, uncorrected_errors=0)
    assert derate(healed).value >= found.value


def test_the_slowest_of_several_counts() -> None:
    slow = Derate(0.5, "GPU 1: hot")
    assert worst([Derate(), slow, Derate(0.7, "x")]) == slow
    assert worst([]) == Derate()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "fake_gpu_health.c"
    output = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", output, source], check=True)
    return folder


def read(library: Path, state: str, tmp_path: Path) -> list[GpuFacts]:
    done = asked(library, state, tmp_path)
    assert done.returncode == 0, done.stderr
    return [GpuFacts(**one) for one in json.loads(done.stdout)]


def asked(
    library: Path, state: str, tmp_path: Path, script: str = READ
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "state").write_text(state)
    environ = {**os.environ, "FAKE_NVML": str(tmp_path / "state")}
    environ["LD_LIBRARY_PATH"] = str(library)
    return subprocess.run(
        [sys.executable, "-c", script, "0", "1"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_the_driver_says(library: Path, tmp_path: Path) -> None:
    state = (
        "gpu1.clock 990 gpu1.reasons 64 gpu1.width 8 gpu1.ecc 3 gpu1.pending 1 gpu1.remap_failed 1"
    )
    sound, sick = read(library, state, tmp_path)
    assert sound == SOUND
    assert sick == GpuFacts(
        index=1,
        sm_clock_mhz=990,
        max_sm_clock_mhz=1980,
        held_back=0x40,
        pcie_width=8,
        max_pcie_width=16,
        uncorrected_errors=3,
        remap_pending=True,
        remap_failed=True,
    )


def test_what_it_does_not_say_is_unknown(library: Path, tmp_path: Path) -> None:
    functions = (
        "ClockInfo MaxClockInfo CurrentClocksThrottleReasons CurrPcieLinkWidth MaxPcieLinkWidth "
        "TotalEccErrors RemappedRows"
    )
    state = " ".join(f"fail.nvmlDeviceGet{name} 3" for name in functions.split())
    assert read(library, state, tmp_path) == [GpuFacts(index=0), GpuFacts(index=1)]


@pytest.mark.parametrize("function", ["HandleByIndex_v2", "ClockInfo"])
def test_a_lost_gpu(library: Path, tmp_path: Path, function: str) -> None:
    facts = read(library, f"fail.nvmlDeviceGet{function} 15", tmp_path)
    assert facts == [GpuFacts(index=index, lost=True) for index in (0, 1)]


def test_a_driver_that_does_not_start_is_one_line(library: Path, tmp_path: Path) -> None:
    done = asked(library, "fail.nvmlInitWithFlags 9", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("NVML: ")
    assert done.stderr.endswith("; health of GPUs is not known\n")
    assert done.stderr.count("\n") == 1


def test_an_endpoint_is_as_slow_as_its_slowest_gpu(library: Path, tmp_path: Path) -> None:
    done = asked(library, "gpu1.clock 990 gpu1.reasons 64", tmp_path, WATCH)
    assert done.stdout == (
        "{'http://a:1': Derate(value=0.5, "
        "reason='GPU 1: hardware thermal limit (990 of 1980 MHz)')}\n"
    ), done.stderr
