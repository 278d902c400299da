"""The tables of what links carry, against NCCL's topo.h and topo.cc."""

import pytest

from trainmesh.topology.importers.hardware import (
    inter_cpu_GBps,
    max_nvlinks,
    nvlink_GBps,
    pcie_GBps,
)


@pytest.mark.parametrize(
    ("sm", "GBps", "count"),
    [
        (60, 18.0, 4),
        (70, 20.0, 6),
        (80, 20.0, 12),
        (86, 12.0, 12),
        (89, 20.0, 12),
        (90, 20.6, 18),
        (100, 40.1, 18),
        (50, 20.0, 4),
    ],
)
def test_nvlink(sm: int, GBps: float, count: int) -> None:
    assert (nvlink_GBps(sm), max_nvlinks(sm)) == (GBps, count)


@pytest.mark.parametrize(
    ("speed", "width", "GBps"),
    [
        ("2.5", 16, 3.0),
        ("8", 16, 12.0),
        ("8.0", 8, 6.0),
        ("16.0", 16, 24.0),
        ("32.0", 4, 12.0),
        ("64.0", 16, 96.0),
        ("", 0, 12.0),
        ("7", 16, 12.0),
        ("16", 1_000, 24.0),
    ],
)
def test_pcie(speed: str, width: int, GBps: float) -> None:
    assert pcie_GBps(speed, width) == GBps


@pytest.mark.parametrize(
    ("cpu", "GBps"),
    [
        (("x86_64", "GenuineIntel", 6, 79), 6.0),  # Broadwell
        (("x86_64", "GenuineIntel", 6, 85), 10.0),  # Skylake
        (("x86_64", "GenuineIntel", 6, 143), 22.0),  # Sapphire Rapids
        (("x86_64", "GenuineIntel", 6, 207), 40.0),  # Emerald Rapids
        (("x86_64", "GenuineIntel", 6, 173), 40.0),  # Granite Rapids
        (("x86_64", "GenuineIntel", 15, 200), 6.0),
        (("x86_64", "AuthenticAMD", 23, 49), 16.0),  # Rome
        (("x86_64", "AuthenticAMD", 25, 17), 24.0),  # Genoa
        (("x86_64", "AuthenticAMD", 175, 1), 24.0),  # the same, as NCCL wrote it before 2.28
        (("x86_64", "AuthenticAMD", 26, 2), 32.0),  # Turin
        (("arm64", "", 0, 0), 6.0),
        (("ppc64", "", 0, 0), 32.0),
        (("", "", 0, 0), 5000.0),
    ],
)
def test_between_cpus(cpu: tuple[str, str, int, int], GBps: float) -> None:
    assert inter_cpu_GBps(*cpu) == GBps
