"""The text of ``nvidia-smi topo -m`` to a matrix: complete, or refused.

The first line names the columns, each further one is a row. What comes after the cells (CPU
Affinity, NUMA Affinity, GPU NUMA ID) may be blank in any row, so it is told apart by where it
stands. A terminal or a mail may have wrapped the lines: their parts are joined. Every row must
have a cell in each column and its X in its own, every column a row, and a pair of devices the same
link both ways.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from trainmesh.errors import GraphError

__all__ = ["Matrix", "read_matrix"]

MAX_CHARS = 4 * 2**20
"""Of one host's matrix: some kB, or a few hosts' one after the other."""
MAX_DEVICES = 256
"""GPUs and NICs of one host."""
ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Za-z0-9]|\][^\x07\x1b]*(\x07|\x1b\\))")
"""Colours, character sets and titles of terminals."""
CELL = re.compile(r"X|NV[0-9]{1,3}|PIX|PXB|PHB|NODE|SYS|SOC|N/A", re.ASCII)
DEVICE = re.compile(r"(GPU|NIC)[0-9]{1,3}|[a-z][a-z0-9]*_[a-z0-9_]*[0-9]", re.ASCII)
"""mlx5_0 and its likes are NICs in outputs of old drivers."""
HEAD = re.compile(r"\s*GPU0(\s+(GPU|NIC)[0-9]|\s+[a-z][a-z0-9]*_|\s+CPU Aff|\s*$)", re.ASCII)
AFFINITY = re.compile(r"CPU Affinity|NUMA Affinity|GPU NUMA ID")
NIC_NAME = re.compile(r"\s*(NIC\d{1,4}):\s*(\S{1,80})\s*", re.ASCII)
END = re.compile(r"\s*(NIC )?Legend\s*:")
ROCM = re.compile(r"ROCm System Management|\(Topology\)|DRM devices|AMD-?SMI|ACCESS TABLE")
NUMA = "NUMA Affinity"
UNTOLD = ("N/A", "NV0")
"""Cells that say nothing of a link."""
TAB = 8
"""Columns to a tab stop, as terminals have them."""
AGAIN = "give it as nvidia-smi wrote it: nvidia-smi topo -m > FILE"


@dataclass(frozen=True)
class Matrix:
    """``cells[a, b]`` for a row ``a`` and a column ``b``; ``numa`` is NUMA Affinity by row, ""
    where it is blank or no single node; ``names`` is the legend of the NICs."""

    devices: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    numa: Mapping[str, str]
    names: Mapping[str, str]
    where: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    """A line as nvidia-smi wrote it; ``is_whole`` unless it was joined from several."""

    text: str
    number: int
    is_whole: bool = True


def read_matrix(text: str, *, source: str) -> Matrix:
    """The matrix in ``text``, which may have colours, prompts and other lines around it.

    Raises:
        GraphError: there is none, there are two, or a part of it is missing; with source and
            line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; not nvidia-smi's")
    lines = [line.rstrip("\r") for line in ESCAPE.sub("", text).split("\n")]
    heads = [index for index, line in enumerate(lines) if HEAD.match(line)]
    foreign = next((index for index, line in enumerate(lines) if ROCM.search(line)), None)
    if foreign is not None:
        raise GraphError(
            f"{source}:{foreign + 1}: this is of rocm-smi or amd-smi; give nccl-topo what RCCL "
            "writes to NCCL_TOPO_DUMP_FILE"
        )
    if not heads:
        raise GraphError(f"{source}: no line of columns GPU0 GPU1 ...; give nvidia-smi topo -m")
    if len(heads) > 1:
        raise GraphError(
            f"{source}:{heads[1] + 1}: a second matrix begins here; give a FILE for each host"
        )
    return _Reader(lines, heads[0], source).read()


class _Reader:
    def __init__(self, lines: Sequence[str], head: int, source: str) -> None:
        self._lines, self._source, self._head = lines, source, head
        self._names = {
            match[1]: match[2] for line in lines[head:] if (match := NIC_NAME.fullmatch(line))
        }
        first = self._first_row()
        self._header = _join(range(head, first), lines, DEVICE)
        affinity = AFFINITY.search(self._header.text)
        end = affinity.start() if affinity else len(self._header.text)
        self._columns = self._header.text[:end].split()
        self._tails = re.findall(AFFINITY, self._header.text)
        self._check_columns()
        self._records = self._rows(first)

    def read(self) -> Matrix:
        where = self._where(self._head)
        cells: dict[tuple[str, str], str] = {}
        tails: dict[str, dict[str, str] | None] = {}
        for name, record in self._records.items():
            own = self._cells(name, record)
            cells |= {(name, column): cell for column, cell in own.items()}
            tails[name] = self._tail(record)
        if missing := [name for name in self._columns if name not in self._records]:
            raise GraphError(f"{where}: no row {missing[0][:40]!r}; {AGAIN}")
        notes = [*self._one_sided(cells), *self._blank(tails)]
        nodes = {name: (tail or {}).get(NUMA, "") for name, tail in tails.items()}
        numa = {
            name: word if re.fullmatch(r"[0-9]{1,4}", word, re.ASCII) else ""
            for name, word in nodes.items()
        }
        return Matrix(tuple(self._columns), cells, numa, self._names, where, tuple(notes))

    def _one_sided(self, cells: Mapping[tuple[str, str], str]) -> Iterator[str]:
        """A note where two devices have another number of NVLinks one way than the other, which
        a link that is down might explain; another kind of link is none of nvidia-smi's."""
        uneven: list[str] = []
        for a, b in combinations(self._columns, 2):
            there, back = cells[a, b], cells[b, a]
            if there == back or there in UNTOLD or back in UNTOLD:
                continue
            where = self._where(self._records[b].number)
            differ = f"{where}: {a} to {b} is {there}, but {b} to {a} is {back}"
            if _kind(there) != _kind(back):
                raise GraphError(f"{differ}; {AGAIN}")
            if there.startswith("NV"):
                uneven.append(differ)
        if uneven:
            more = f" (so for {len(uneven)} pairs)" if len(uneven) > 1 else ""
            yield f"{uneven[0]}{more}; each way has its own number of NVLinks in the graph"

    def _blank(self, tails: Mapping[str, Mapping[str, str] | None]) -> Iterator[str]:
        """Notes on NUMA nodes of GPUs that are not there, or can't be told."""
        untold = next((name for name, tail in tails.items() if tail is None), None)
        if untold is not None:
            yield (
                f"{self._where(self._records[untold].number)}: which of {', '.join(self._tails)} "
                "is blank can't be told; the NUMA nodes of such rows are not used"
            )
        gpus = {name: tail for name, tail in tails.items() if name.startswith("GPU")}
        without = [name for name, tail in gpus.items() if tail is not None and not tail.get(NUMA)]
        if without and any((tail or {}).get(NUMA) for tail in gpus.values()):
            yield (
                f"{self._where(self._records[without[0]].number)}: row {without[0]} has no {NUMA}, "
                "rows of other GPUs have one; its NUMA node is not used; is the line cut?"
            )

    def _where(self, index: int) -> str:
        return f"{self._source}:{index + 1}"

    def _first_row(self) -> int:
        """The line after the header's last part."""
        for index in range(self._head + 1, len(self._lines)):
            words = self._lines[index].split()
            if len(words) > 1 and words[0] == "GPU0":
                return index
            if END.match(self._lines[index]):
                break
        raise GraphError(f"{self._where(self._head)}: no row 'GPU0'; {AGAIN}")

    def _check_columns(self) -> None:
        where = self._where(self._head)
        twice = len(set(self._columns)) != len(self._columns)
        if twice or len(self._columns) > MAX_DEVICES:
            raise GraphError(f"{where}: a column is there twice, or over {MAX_DEVICES}")
        unknown = next((name for name in self._columns if not DEVICE.fullmatch(name)), None)
        if unknown is not None:
            raise GraphError(f"{where}: {unknown[:40]!r} is no GPU or NIC; {AGAIN}")
        nameless = next((name for name in self._names if name not in self._columns), None)
        if nameless is not None:
            raise GraphError(
                f"{where}: {nameless} of the legend has no column; is the line cut? {AGAIN}"
            )

    def _rows(self, first: int) -> dict[str, _Record]:
        """The rows by name, each with the lines that belong to it."""
        starts: list[int] = []
        parts: dict[int, list[int]] = {}
        for index in range(first, len(self._lines)):
            words = self._lines[index].split()
            if END.match(self._lines[index]):
                break
            if not words or NIC_NAME.fullmatch(self._lines[index]):
                continue
            if words[0] in self._columns:
                starts.append(index)
                parts[index] = [index]
            elif DEVICE.fullmatch(words[0]) and any(map(CELL.fullmatch, words[1:])):
                raise GraphError(
                    f"{self._where(index)}: row {words[0][:40]} has no column; is the line of "
                    f"columns cut? {AGAIN}"
                )
            elif self._continues(parts[starts[-1]], words):
                parts[starts[-1]].append(index)
            elif len(starts) < len(self._columns):
                raise GraphError(
                    f"{self._where(index)}: {' '.join(words)[:40]!r} is no part of the matrix; "
                    f"{AGAIN}"
                )
        records: dict[str, _Record] = {}
        for start in starts:
            record = _join(parts[start], self._lines, CELL)
            name = record.text.split()[0]
            if name in records:
                raise GraphError(f"{self._where(start)}: row {name} is there twice; {AGAIN}")
            records[name] = record
        return records

    def _continues(self, before: Sequence[int], words: Sequence[str]) -> bool:
        """Whether ``words`` belong to the row of the lines ``before``: cells that it lacks, or
        affinities."""
        have = sum(len(self._lines[index].split()) for index in before) - 1
        wanted = len(self._columns) + len(self._tails) - have
        parts = r"[A-Z0-9/,-]{1,400}"
        return len(words) <= wanted + 1 and all(re.fullmatch(parts, word) for word in words)

    def _cells(self, name: str, record: _Record) -> dict[str, str]:
        where = f"{self._where(record.number)}: row {name[:40]}"
        words = record.text.split()[1:]
        own, rest = words[: len(self._columns)], words[len(self._columns) :]
        wrong = next((word for word in own if not CELL.fullmatch(word)), None)
        if wrong is not None or len(own) < len(self._columns):
            few = f"{len(own)} cells in {len(self._columns)} columns"
            what = few if wrong is None else f"{wrong[:40]!r} is no link"
            raise GraphError(f"{where}: {what}; {AGAIN}")
        if any(CELL.fullmatch(word) and word != "N/A" for word in rest):
            raise GraphError(f"{where}: more cells than columns; is the line of columns cut?")
        cells = dict(zip(self._columns, own, strict=True))
        if [column for column, cell in cells.items() if cell == "X"] != [name]:
            raise GraphError(f"{where}: its X is not in its own column; {AGAIN}")
        return cells

    def _tail(self, record: _Record) -> dict[str, str] | None:
        """What a row says in the columns after the cells; None if that can't be told."""
        words = _words(record.text)[1 + len(self._columns) :]
        if len(words) == len(self._tails):
            return {tail: word for tail, (word, _) in zip(self._tails, words, strict=True)}
        if not words:
            return {}
        if not record.is_whole or not self._header.is_whole or len(words) > len(self._tails):
            return None
        cells = r"\s*" + r"\s+".join([r"\S+"] * (1 + len(self._columns))) + r"[ ]*(\t*)"
        before = re.match(cells, record.text)
        if before and len(before[1]) > 1 and len(words) == len(self._tails) - 1:
            # nvidia-smi writes a tab after each column: the first one is blank.
            return {tail: word for tail, (word, _) in zip(self._tails[1:], words, strict=True)}
        if not self._lines_up(record):
            return None
        found = {self._column_at.get(at, ""): word for word, at in words}
        return None if "" in found or len(found) < len(words) else found

    def _lines_up(self, record: _Record) -> bool:
        """Whether the cells stand below their columns' names, so that places mean something; an X
        stands one further to the right."""
        names = [at for _, at in _words(self._header.text)[: len(self._columns)]]
        cells = [at for _, at in _words(record.text)[1 : 1 + len(self._columns)]]
        return all(at - name in (0, 1) for name, at in zip(names, cells, strict=True))

    @cached_property
    def _column_at(self) -> dict[int, str]:
        """Where the columns after the cells begin: in the header, or in rows without a blank,
        which need not line up with it. Places that mean two columns are left out."""
        places: dict[int, set[str]] = defaultdict(set)
        for match in AFFINITY.finditer(self._header.text.expandtabs(TAB)):
            places[match.start()].add(match[0])
        for record in self._records.values():
            words = _words(record.text)[1 + len(self._columns) :]
            if record.is_whole and len(words) == len(self._tails):
                for tail, (_, at) in zip(self._tails, words, strict=True):
                    places[at].add(tail)
        return {at: tails.pop() for at, tails in places.items() if len(tails) == 1}


def _kind(cell: str) -> str:
    """What a cell says but for the number of NVLinks; SOC is SYS in old drivers' words."""
    return "NV" if cell.startswith("NV") else "SYS" if cell == "SOC" else cell


def _words(line: str) -> list[tuple[str, int]]:
    """Each word and the column of a terminal at which it begins."""
    return [(match[0], match.start()) for match in re.finditer(r"\S+", line.expandtabs(TAB))]


def _join(indices: Sequence[int], lines: Sequence[str], whole: re.Pattern[str]) -> _Record:
    """The record that was wrapped into these lines. Where a line ends and the next begins without
    a blank, a word was cut in two, unless its first half is a word (``whole``) and both together
    are none: then the blank between them was trimmed."""
    text = ""
    for index in indices:
        line = lines[index]
        if text and line and not text[-1].isspace() and not line[0].isspace():
            left, right = text.split()[-1], line.split()[0]
            if whole.fullmatch(left) and not whole.fullmatch(left + right):
                text += " "
        text += line
    return _Record(text, indices[0], is_whole=sum(bool(lines[i].strip()) for i in indices) == 1)
