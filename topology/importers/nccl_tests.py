"""Output of nccl-tests (``all_reduce_perf`` and its likes): times of a collective by size.

The table has changed over the years: with and without the columns redop and root, ``error`` or
``#wrong`` at the end of each half, with mpirun's tags or a log of NCCL in between. A row counts
if it begins with two numbers and a type; other lines are somebody else's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.errors import GraphError
from trainmesh.types import MAX_RANKS

__all__ = ["BUSBW_FACTOR", "Rank", "Run", "Sample", "parse"]

MAX_CHARS = 16 * 2**20
"""Of a log with several runs in it."""
MAX_ROWS = 10_000
"""Of one run: nccl-tests prints one a size."""
TAG = re.compile(r"^\s*(\[[\d,]{1,20}\](<std(out|err)>:?)?:?\s*)?")
TAGS = re.compile(r"\[\d{1,6}\]")
"""mpirun's, in the middle of lines that several ranks wrote."""
COMMAND = re.compile(r"\b(all_reduce|all_gather|reduce_scatter)_perf")
OTHER = re.compile(r"\b(alltoall|broadcast|gather|scatter|reduce|sendrecv|hypercube)_perf")
NEW_RUN = re.compile(r"#?\s*nThread\s+\d+\s+nGpus\s+\d+")
RANK = re.compile(
    r"#?\s*Rank\s+(\d{1,6})\s+(?:Group\s+\d+\s+)?Pid\s+\d+\s+on\s+(\S{1,100})\s+device\s+"
    r"(\d{1,4})\s+\[[0-9a-fA-Fx:.]*\]\s*(.{0,100})"
)
TYPES = frozenset(
    (
        *("int8", "uint8", "char", "int32", "int", "uint32", "int64", "uint64"),
        *("half", "float16", "bfloat16", "float", "float32", "double", "float64"),
        *("f8e4m3", "f8e5m2", "fp8_e4m3", "fp8_e5m2"),
    )
)
HALF = 4
"""Columns of one half: time, algbw, busbw, errors."""
BUSBW_FACTOR = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "allgather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
}
"""busbw / algbw: how often a byte of the collective crosses each link of a ring."""


@dataclass(frozen=True)
class Rank:
    """A line of ``# Using devices``."""

    rank: int
    host: str
    device: int
    gpu: str


@dataclass(frozen=True)
class Sample:
    """Half a row. ``num_wrong`` is None where results were not checked."""

    nbytes: int
    time_s: float
    algbw_GBps: float
    busbw_GBps: float
    in_place: bool
    num_wrong: int | None


@dataclass(frozen=True)
class Run:
    """One table. ``collective`` is allreduce, allgather or reduce_scatter."""

    collective: str
    ranks: tuple[Rank, ...]
    samples: tuple[Sample, ...]

    @property
    def hosts(self) -> dict[str, tuple[int, ...]]:
        """The ranks of each host."""
        names = dict.fromkeys(rank.host for rank in self.ranks)
        return {
            host: tuple(rank.rank for rank in self.ranks if rank.host == host) for host in names
        }


def parse(text: str, *, source: str, collective: str | None = None) -> tuple[Run, ...]:
    """The tables in ``text``.

    Args:
        text: What the program printed, its command line among it or not.
        source: What complaints call it.
        collective: What was run, where the text does not say.

    Raises:
        GraphError: no table, a row or list of ranks that can't be, or it is not known which
            collective was run; with source and line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; cut out the table")
    drafts = [_Draft(source, collective)]
    for number, raw in enumerate(text.split("\n"), start=1):
        line = TAG.sub("", raw, count=1)
        if NEW_RUN.match(line) and (drafts[-1].ranks or drafts[-1].samples):
            drafts.append(_Draft(source, drafts[-1].collective))
        drafts[-1].take(line, number)
    runs = tuple(draft.run() for draft in drafts if draft.samples)
    if not runs:
        raise GraphError(f"{source}: no row of a table in it; give what all_reduce_perf printed")
    return runs


class _Draft:
    """A run that is being read."""

    def __init__(self, source: str, collective: str | None) -> None:
        self._source, self.collective = source, collective
        self.ranks: dict[int, Rank] = {}
        self.samples: list[Sample] = []
        self._reduces = self._rooted = False
        self._first_line = 0

    def take(self, line: str, number: int) -> None:
        if match := COMMAND.search(line):
            self.collective = (
                match[1].replace("all_reduce", "allreduce").replace("all_gather", "allgather")
            )
        elif (match := OTHER.search(line)) and not self.samples:
            raise GraphError(
                f"{self._source}:{number}: {match[1]} says nothing about a ring; give all_reduce, "
                "all_gather or reduce_scatter"
            )
        elif match := RANK.match(line):
            self._rank(match, number)
        else:
            self._row(TAGS.sub(" ", line).split(), number)

    def _rank(self, match: re.Match[str], number: int) -> None:
        rank = Rank(int(match[1]), match[2], int(match[3]), match[4].strip())
        if rank.rank in self.ranks or rank.rank >= MAX_RANKS:
            raise GraphError(
                f"{self._source}:{number}: rank {rank.rank} is there twice; were the tests "
                "built without MPI=1?"
            )
        self.ranks[rank.rank] = rank

    def _row(self, words: Sequence[str], number: int) -> None:
        if not _begins_row(words):
            return
        where = f"{self._source}:{number}"
        rest = words[3:]
        middle, halves = rest[: -2 * HALF], rest[-2 * HALF :]
        if len(halves) < 2 * HALF or len(middle) > 2:
            raise GraphError(f"{where}: a row of {len(words)} columns; is the line cut off?")
        if len(self.samples) >= 2 * MAX_ROWS:
            raise GraphError(f"{where}: more than {MAX_ROWS} rows; give one run")
        self._first_line = self._first_line or number
        self._reduces |= any(word.isalpha() and word != "none" for word in middle)
        self._rooted |= any(word.isdigit() for word in middle)
        nbytes = int(words[0])
        for in_place, half in enumerate((halves[:HALF], halves[HALF:])):
            sample = _sample(nbytes, half, bool(in_place), where)
            if nbytes:
                self.samples.append(sample)

    def run(self) -> Run:
        where = f"{self._source}:{self._first_line}"
        if sorted(self.ranks) != list(range(len(self.ranks))) or not self.ranks:
            raise GraphError(f"{where}: the lines '# Rank  0 ...' of all ranks must be above it")
        collective = self.collective or self._guess()
        if collective not in BUSBW_FACTOR:
            raise GraphError(
                f"{where}: can't tell which collective this is; say it with --collective "
                "allreduce, allgather or reduce_scatter"
            )
        ranks = tuple(self.ranks[rank] for rank in sorted(self.ranks))
        return Run(collective, ranks, tuple(self.samples))

    def _guess(self) -> str | None:
        """All-reduce is the only unrooted reduction whose busbw is 2(N-1)/N of its algbw; an
        all-gather can't be told from an all-to-all."""
        largest = max(self.samples, key=lambda sample: sample.nbytes)
        if not self._reduces or self._rooted or largest.algbw_GBps <= 0:
            return None
        ratio = largest.busbw_GBps / largest.algbw_GBps
        for name in ("allreduce", "reduce_scatter"):
            if math.isclose(ratio, BUSBW_FACTOR[name](len(self.ranks)), rel_tol=0.02):
                return name
        return None


def _begins_row(words: Sequence[str]) -> bool:
    return (
        len(words) > 3
        and all(re.fullmatch(r"[0-9]{1,15}", word, re.ASCII) for word in words[:2])
        and words[2] in TYPES
    )


def _sample(nbytes: int, half: Sequence[str], in_place: bool, where: str) -> Sample:
    values = []
    for word in half[:3]:
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?(e[+-]?[0-9]{1,2})?", word, re.ASCII):
            raise GraphError(f"{where}: {word[:40]!r} is no number; give the table unchanged")
        values.append(float(word))
    time_us, algbw, busbw = values
    if nbytes and time_us <= 0:
        raise GraphError(f"{where}: {nbytes} bytes in no time; give the table unchanged")
    wrong = re.fullmatch(r"[0-9]{1,15}", half[3], re.ASCII)
    return Sample(nbytes, time_us * 1e-6, algbw, busbw, in_place, int(wrong[0]) if wrong else None)
