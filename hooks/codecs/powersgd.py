"""powersgd: the gradient of a matrix is sent as the product of two thin ones, P (n x r) and Q.

Vogels, Karimireddy, Jaggi 2019 (arXiv:1905.13727): one step of power iteration, started from the
last step's Q. With M the matrix plus what has not been sent:

    P = M Q^T, summed over the ranks; P made orthonormal; Q = P^T M, summed; the result is P Q

Each rank remembers M - P Q of its *own* Q, so that these memories hold no difference between the
ranks but what was really cut off (torch's hook subtracts the mean, and the ranks' deviations from
it pile up). What is no matrix, or too small a one, goes uncompressed in the first of the two sums.

torch's ``powerSGD_hook`` itself does not serve: it keeps errors by bucket, which fusion and DDP's
rebuild change, so that it may only start after two steps; it is tied to one process group's
all-reduce; and it starts its later all-reduces in callbacks, so that with several buckets on gloo
ranks start them in different orders and abort (torch 2.13). Nor does its ``_orthogonalize``: for
ranks 1 and 2 a column that is once zero (a parameter that is unused in one step) becomes NaN or
stays zero for good. Householder's QR makes an orthonormal matrix of anything.

The product is calculated on every rank, from equal factors. It is equal bit for bit where the
ranks have the same kind of processor or GPU, as in torch's hook; in mixed jobs use another codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs.exchange import CodecCollectives
from trainmesh.hooks.codecs.gradient import (
    MAX_LAYOUTS,
    Gradient,
    GradientLayout,
    Slice,
    working_dtype,
)
from trainmesh.hooks.codecs.memory import ErrorFeedback, ParameterTensors, Scratch, all_finite
from trainmesh.types import MAX_RANKS

__all__ = ["PowerSGD"]

DEFAULT_RANK = 4
"""The paper's for language models (Vogels et al. 2019)."""
MAX_RANK = 256
"""Far above what pays: factors of that rank are rarely smaller than the matrix."""
MIN_GAIN = 2
"""A matrix is compressed if that makes it this many times smaller, as in torch's hook."""
TINY = 1e-30
"""A matrix of zeros is divided by this instead of by 0."""
SEED = 20190531
"""Any: all ranks must draw the same start."""


class _Matrix(NamedTuple):
    """A matrix of n x m at ``offset`` of the bucket; its factors in theirs."""

    offset: int
    n: int
    m: int
    p_offset: int
    q_offset: int


class _Work(NamedTuple):
    """How a layout is carried out: equal matrices come one after the other, in ``groups``."""

    groups: tuple[tuple[_Matrix, ...], ...]
    runs: tuple[tuple[int, int], ...]
    """Uncompressed elements [begin, end) of the bucket."""
    p_numel: int
    small_numel: int
    q_layout: GradientLayout


class PowerSGD:
    """See the module; the option is the rank r, 4 unless given."""

    max_world_size = MAX_RANKS
    num_exchanges = 2

    def __init__(self, options: str) -> None:
        if options and not (options.isdecimal() and 1 <= int(options) <= MAX_RANK):
            raise ConfigError(
                f"codec powersgd: the option is its rank, 1 to {MAX_RANK}, got {options!r}"
            )
        self._rank = int(options) if options else DEFAULT_RANK
        self._works: dict[GradientLayout, _Work] = {}
        self._scratch = Scratch()
        # The same on all ranks, which meet the same parameters in the same order.
        draws = torch.Generator().manual_seed(SEED)
        self._q = ParameterTensors(
            lambda place: place.copy_(torch.randn(place.numel(), generator=draws))
        )

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        buffer = gradient.buffer
        dtype, device = working_dtype(buffer.dtype), buffer.device
        work = self._work(gradient.layout)
        unsent = self._scratch.get("unsent", buffer.numel(), dtype, device)
        memory.add_to(gradient, unsent)
        remembered_q = self._q.flat(work.q_layout, dtype, device)
        first = self._scratch.get("first", work.p_numel + work.small_numel, dtype, device)
        p, small = first[: work.p_numel], first[work.p_numel :]

        self._multiply_p(work, unsent, remembered_q, p)
        _take_out(work, unsent, small)
        exchange.sum(first).wait()
        finite = all_finite(first)
        self._orthonormalise(work, p)

        q = self._scratch.get("q", work.q_layout.numel, dtype, device)
        for matrix in _matrices(work):
            torch.mm(self._p(p, matrix).t(), _m(unsent, matrix), out=self._q_of(q, matrix))
        if q.numel():
            own_q = self._scratch.get("own q", q.numel(), dtype, device).copy_(q)
            summing = exchange.sum(q)
            for matrix in _matrices(work):
                own = self._q_of(own_q, matrix)
                _m(unsent, matrix).addmm_(self._p(p, matrix), own, alpha=-1)
            summing.wait()
            finite = finite & all_finite(q)
            torch.where(finite, q, remembered_q, out=remembered_q)
        memory.keep(gradient, unsent, finite)
        self._put_together(work, p, q, small, buffer)

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        numel = 0
        for shape in shapes:
            n, m = _matrix_shape(shape)
            numel += self._rank * (n + m) if self._serves(n, m) else n * m
        return max(4, itemsize) * numel

    def _serves(self, n: int, m: int) -> bool:
        return self._rank * (n + m) * MIN_GAIN < n * m

    def _work(self, layout: GradientLayout) -> _Work:
        work = self._works.get(layout)
        if work is None:
            if len(self._works) >= MAX_LAYOUTS:
                self._works.clear()
            work = self._works[layout] = self._plan(layout)
        return work

    def _plan(self, layout: GradientLayout) -> _Work:
        by_shape: dict[tuple[int, int], list[Slice]] = {}
        runs: list[tuple[int, int]] = []
        for one in layout.slices:
            n, m = _matrix_shape(one.shape)
            end = one.offset + one.numel
            if self._serves(n, m):
                by_shape.setdefault((n, m), []).append(one)
            elif runs and runs[-1][1] == one.offset:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((one.offset, end))
        groups, q_slices, p_end, q_end = [], [], 0, 0
        for (n, m), slices in by_shape.items():
            group = []
            for one in slices:
                group.append(_Matrix(one.offset, n, m, p_end, q_end))
                q_slices.append(Slice(one.key, q_end, self._rank * m, (self._rank, m)))
                p_end += n * self._rank
                q_end += m * self._rank
            groups.append(tuple(group))
        small = sum(end - begin for begin, end in runs)
        return _Work(
            tuple(groups), tuple(runs), p_end, small, GradientLayout(tuple(q_slices), q_end)
        )

    def _multiply_p(
        self, work: _Work, unsent: torch.Tensor, q: torch.Tensor, out: torch.Tensor
    ) -> None:
        for matrix in _matrices(work):
            own = self._q_of(q, matrix)
            # Its scale does not matter, but squares from step to step: keep P within range.
            own = own / own.abs().amax().clamp_min(TINY)
            torch.mm(_m(unsent, matrix), own.t(), out=self._p(out, matrix))

    def _orthonormalise(self, work: _Work, p: torch.Tensor) -> None:
        for group in work.groups:
            first, size = group[0], group[0].n * self._rank * len(group)
            batch = p[first.p_offset : first.p_offset + size].view(-1, first.n, self._rank)
            batch.copy_(torch.linalg.qr(batch).Q)

    def _put_together(
        self,
        work: _Work,
        p: torch.Tensor,
        q: torch.Tensor,
        small: torch.Tensor,
        buffer: torch.Tensor,
    ) -> None:
        result = buffer
        if buffer.dtype != p.dtype:
            result = self._scratch.get("result", buffer.numel(), p.dtype, buffer.device)
        for matrix in _matrices(work):
            torch.mm(self._p(p, matrix), self._q_of(q, matrix), out=_m(result, matrix))
        _put_back(work, small, result)
        if result is not buffer:
            buffer.copy_(result)

    def _p(self, flat: torch.Tensor, matrix: _Matrix) -> torch.Tensor:
        size = matrix.n * self._rank
        return flat[matrix.p_offset : matrix.p_offset + size].view(matrix.n, self._rank)

    def _q_of(self, flat: torch.Tensor, matrix: _Matrix) -> torch.Tensor:
        size = matrix.m * self._rank
        return flat[matrix.q_offset : matrix.q_offset + size].view(self._rank, matrix.m)


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A convolution's kernels are the rows of its matrix; a vector is a matrix of one column."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def _matrices(work: _Work) -> Iterator[_Matrix]:
    for group in work.groups:
        yield from group


def _m(flat: torch.Tensor, matrix: _Matrix) -> torch.Tensor:
    return flat[matrix.offset : matrix.offset + matrix.n * matrix.m].view(matrix.n, matrix.m)


def _take_out(work: _Work, unsent: torch.Tensor, small: torch.Tensor) -> None:
    """Move what goes uncompressed."""
    at = 0
    for begin, end in work.runs:
        small[at : at + end - begin].copy_(unsent[begin:end])
        unsent[begin:end].zero_()
        at += end - begin


def _put_back(work: _Work, small: torch.Tensor, result: torch.Tensor) -> None:
    at = 0
    for begin, end in work.runs:
        result[begin:end].copy_(small[at : at + end - begin])
        at += end - begin
