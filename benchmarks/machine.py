"""What every benchmark prints first: the machine, so that a figure can be read."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median

__all__ = ["describe", "spread"]


def describe() -> str:
    """One line: processor, cores, kernel, Python and torch."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )


def spread(values: list[float], unit: str = "") -> str:
    """Median, and the range from the smallest to the largest."""
    return f"{median(values):.4g}{unit} ({min(values):.4g} to {max(values):.4g}, n={len(values)})"
