"""Random gradients that every rank can make for every other, and how to judge their sum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

__all__ = ["digest", "random", "worst_error"]


def random(rank: int, turn: int, place: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Normally distributed values, the same for the same arguments on every rank."""
    seed = ((rank * 1009 + turn) * 1009 + place) * 1009 + numel
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)


def worst_error(summed: torch.Tensor, inputs: Sequence[torch.Tensor]) -> float:
    """Largest error of ``summed`` against the exact sum of ``inputs``, as a multiple of what
    rounding after every addition may do, in any order of them: N eps times the sum of magnitudes
    (Higham 2002, section 4.2). NaN if it is not a number."""
    exact = torch.stack([one.double() for one in inputs]).sum(0)
    magnitude = torch.stack([one.double().abs() for one in inputs]).sum(0)
    info = torch.finfo(summed.dtype)
    allowed = len(inputs) * info.eps * magnitude + info.tiny
    return float(((summed.double() - exact).abs() / allowed).max())


def digest(tensor: torch.Tensor) -> str:
    """Equal for equal bits."""
    return hashlib.sha256(bytes(tensor.cpu().contiguous().view(torch.uint8).numpy())).hexdigest()
