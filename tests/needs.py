"""What tests need of the machine: they skip with the reason that ``make setup`` gives."""

from __future__ import annotations

import os
import resource

import pytest

from scripts.system_packages import PACKAGES, one_line

__all__ = ["need", "need_open_files", "need_root", "need_streams"]


def need(what: str) -> None:
    """Skip unless ``what`` (of ``PACKAGES``) is here."""
    package = PACKAGES[what]
    if not package.is_here():
        pytest.skip(f"needs {what}: as root, {one_line([package])}")


def need_root() -> None:
    """Skip for an ordinary user."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def need_streams() -> None:
    """Skip where ``torch.Stream()``, which FSDP2 makes, has no device: a CUDA build of torch
    without a GPU, such as make compat installs."""
    import torch

    if torch.version.cuda is not None and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} is a CUDA build, whose FSDP2 needs a GPU")


def need_open_files(number: int) -> None:
    """Raise this process's limit of open files to ``number``; skip where it may not be raised.

    An ordinary user's is 1 024 to begin with, and may be raised to the hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= number:
        return
    if hard != unlimited and hard < number:
        pytest.skip(f"needs {number} open files; the hard limit here (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
