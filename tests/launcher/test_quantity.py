"""Sizes on the command line."""

from argparse import ArgumentTypeError

import pytest

from trainmesh.launcher.quantity import nbytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("64MB", 64_000_000),
        ("64mb", 64_000_000),
        ("1.5 GB", 1_500_000_000),
        ("25MiB", 25 * 2**20),
        ("0.5KiB", 512),
        ("100kB", 100_000),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert nbytes(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MB",
        "-1",
        "1e6",
        "64 M",
        "64MBs",
        "1,5MB",
        "nan",
        "0",
        "0.3B",
        "9" * 19,
        "9" * 30,
        "9000000TiB",
        "\u0661",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a"):
        nbytes(text)
