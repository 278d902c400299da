"""The environment of a Slurm job: which of its nodes run which ranks.

Slurm writes node lists in brackets (``node[001-004,007],gpu-a[1-2]``) and counts of tasks with
repeats (``8(x4),4``); see "Output environment variables" of sbatch(1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

from trainmesh.errors import GraphError
from trainmesh.topology.importers.hostfile import in_order
from trainmesh.types import MAX_RANKS

__all__ = ["NODELISTS", "expand", "from_environment", "task_counts"]

MAX_HOSTS = MAX_RANKS
MAX_CHARS = 4 * 2**20
PART = re.compile(r"([^][,\s]*)(?:\[([0-9,-]+)\])?", re.ASCII)
RANGE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", re.ASCII)
COUNT = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", re.ASCII)
NODELISTS = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
TASKS = ("SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")


def from_environment(
    environ: Mapping[str, str], *, ranks_per_node: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The ranks of each node, as ``graph.host_graph`` takes them.

    Args:
        environ: The variables of the job or step.
        ranks_per_node: Ranks that a launcher starts on each node, where that is not the number
            of its tasks (torchrun as one task a node).

    Raises:
        GraphError: a variable is missing or malformed, or the distribution of the tasks is
            neither block nor cyclic; names the variable.
    """
    name, nodelist = _variable(environ, NODELISTS)
    nodes = expand(nodelist, what=name)
    if ranks_per_node is not None:
        return in_order(dict.fromkeys(nodes, ranks_per_node))
    name, tasks = _variable(environ, TASKS)
    counts = task_counts(tasks, what=name)
    if len(counts) == 1:
        counts *= len(nodes)
    if len(counts) != len(nodes):
        raise GraphError(f"{name} is for {len(counts)} nodes, but the job has {len(nodes)}")
    slots = dict(zip(nodes, counts, strict=True))
    distribution = environ.get("SLURM_DISTRIBUTION", "block").partition(":")[0].partition(",")[0]
    if distribution == "block" or len(nodes) == 1:
        return in_order(slots)
    if distribution == "cyclic":
        return _round_robin(slots)
    raise GraphError(
        f"SLURM_DISTRIBUTION={distribution[:40]!r}: only block and cyclic are known; "
        "write a hostfile instead"
    )


def _variable(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    for name in names:
        if environ.get(name):
            return name, environ[name]
    raise GraphError(f"{names[0]} is not set; run this inside a Slurm job (sbatch, srun, salloc)")


def _round_robin(slots: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    in_order(slots)  # for its complaints
    hosts: dict[str, list[int]] = {node: [] for node, count in slots.items() if count}
    rank = 0
    for turn in range(max(slots.values())):
        for node, ranks in hosts.items():
            if turn < slots[node]:
                ranks.append(rank)
                rank += 1
    return {node: tuple(ranks) for node, ranks in hosts.items()}


def expand(nodelist: str, *, what: str) -> list[str]:
    """The names in a Slurm node list, in its order.

    Raises:
        GraphError: not such a list, a name twice, or too many; the message begins with ``what``.
    """
    if len(nodelist) > MAX_CHARS:
        raise GraphError(f"{what}: longer than {MAX_CHARS} characters")
    names: dict[str, None] = {}
    for word in _split(nodelist, what):
        for name in _names(word, what):
            if name in names:
                raise GraphError(f"{what}: node {name[:60]!r} is there twice")
            if len(names) == MAX_HOSTS:
                raise GraphError(f"{what}: more than {MAX_HOSTS} nodes")
            names[name] = None
    return list(names)


def _split(nodelist: str, what: str) -> list[str]:
    """At the commas outside of brackets."""
    words = re.findall(r"(?:[^][,\s]|\[[0-9,-]+\])+", nodelist, re.ASCII)
    if not words or ",".join(words) != nodelist.strip():
        raise GraphError(
            f"{what}: {nodelist.strip()[:40]!r} is no node list such as node[001-004,007],login1"
        )
    return words


def _names(word: str, what: str) -> list[str]:
    """One word with any number of brackets; the last one counts fastest."""
    parts: list[list[str]] = []
    size = 1
    for text, numbers in PART.findall(word):
        parts.append([text])
        if numbers:
            parts.append(_numbers(numbers, what))
            size *= len(parts[-1])
            if size > MAX_HOSTS:
                raise GraphError(f"{what}: more than {MAX_HOSTS} nodes")
    return ["".join(chosen) for chosen in product(*parts)]


def _numbers(text: str, what: str) -> list[str]:
    """``001-004,007``: as wide as they are written."""
    found: list[str] = []
    for word in text.split(","):
        match = RANGE.fullmatch(word)
        if match is None:
            raise GraphError(f"{what}: [{text[:40]}] is no list of numbers such as [001-004,007]")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_HOSTS or len(found) > MAX_HOSTS:
            raise GraphError(f"{what}: [{word}] is empty or more than {MAX_HOSTS} nodes")
        found += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return found


def task_counts(text: str, *, what: str) -> list[int]:
    """``8(x4),4`` as 8, 8, 8, 8, 4.

    Raises:
        GraphError: not such a list; the message begins with ``what``.
    """
    counts: list[int] = []
    for word in text.strip().split(","):
        match = COUNT.fullmatch(word)
        if match is None or int(match[1]) > MAX_RANKS:
            raise GraphError(f"{what}: {text[:40]!r} is no list of counts such as 8(x4),4")
        repeats = int(match[2] or 1)
        if len(counts) + repeats > MAX_HOSTS:
            raise GraphError(f"{what}: more than {MAX_HOSTS} nodes")
        counts += [int(match[1])] * repeats
    return counts
