"""Fixtures of the lab's tests: small topologies, and a reason to skip where there is no lab."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainmesh.launcher.lab.capability import capabilities, missing


@pytest.fixture(scope="session")
def lab_here() -> None:
    """Skips where the kernel doesn't allow a lab."""
    if lacking := missing(capabilities()):
        pytest.skip("; ".join(lacking))


Write = Callable[..., Path]


@pytest.fixture
def star(tmp_path: Path) -> Write:
    """Writes a topology of hosts h0, h1, ... on one switch: ``star({"h0": 80, ...}, more)``, the
    rates in Mbit/s."""

    def write(rates: dict[str, float], *more: str, alpha_us: float = 0) -> Path:
        lines = ["version: 1", "nodes:", "  sw: {kind: switch}"]
        lines += [f"  {name}: {{kind: rank}}" for name in rates]
        lines += ["links:"]
        lines += [
            f"  - {{src: {name}, dst: sw, bandwidth_gbps: {rate / 1e3}, alpha_us: {alpha_us}}}"
            for name, rate in rates.items()
        ]
        path = tmp_path / "star.yaml"
        path.write_text("\n".join([*lines, *more]) + "\n")
        return path

    return write
