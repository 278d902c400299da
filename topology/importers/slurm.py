"""The environment of a Slurm job or step: which of its nodes run which ranks.

A step (``srun``) may have fewer nodes than its job: inside one, the step's own variables count.
A heterogeneous job has variables of each component, with ``_HET_GROUP_0`` and so on at the end
(``_PACK_GROUP_0`` before Slurm 20.02). Node lists are written in brackets
(``node[001-004,007],gpu-a[1-2]``), counts of tasks with repeats (``8(x4),4``); see "Output
environment variables" of sbatch(1) and srun(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from trainmesh.errors import GraphError
from trainmesh.topology.importers.hostfile import in_order
from trainmesh.types import MAX_RANKS
from trainmesh.units import count

__all__ = ["Allocation", "expand", "from_environment", "in_job", "task_counts"]

MAX_HOSTS = MAX_RANKS
MAX_CHARS = 4 * 2**20
"""Of a node list; the environment of a process holds less."""
PART = re.compile(r"([^][,\s]*)(?:\[([0-9,-]+)\])?", re.ASCII)
RANGE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", re.ASCII)
COUNT = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", re.ASCII)
NODELISTS = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
STEP_NODELIST = "SLURM_STEP_NODELIST"
TASKS = "SLURM_TASKS_PER_NODE"
STEP_TASKS = "SLURM_STEP_TASKS_PER_NODE"
EACH = "SLURM_NTASKS_PER_NODE"
"""One number for all nodes, where there are no counts."""
FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""From here on, step ids are a batch script's, an interactive shell's and the like: they run on
one node and look after the whole job (slurm.h: SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP)."""


def in_job(environ: Mapping[str, str]) -> bool:
    """Whether these are the variables of a Slurm job or step."""
    return any(environ.get(name) for name in (*NODELISTS, STEP_NODELIST))


@dataclass(frozen=True)
class Allocation:
    """The ranks of each node, as ``graph.host_graph`` takes them; ``notes`` say in words what a
    reader of the environment may have meant otherwise."""

    hosts: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()


def from_environment(
    environ: Mapping[str, str], *, ranks_per_node: int | None = None
) -> Allocation:
    """The nodes and ranks of the step, if this is one, or else of the whole job with all the
    components that a heterogeneous job has.

    Args:
        environ: The variables of the job or step.
        ranks_per_node: Ranks that a launcher starts on each node, where that is not the number
            of its tasks (torchrun as one task a node).

    Raises:
        GraphError: a variable is missing or malformed, or the distribution of the tasks is
            neither block nor cyclic; names the variable.
    """
    components = _components(environ)
    slots: dict[str, int] = {}
    for names in components:
        for node, number in _slots(environ, names, ranks_per_node).items():
            if node in slots:
                raise GraphError(
                    f"{names.nodelist}: node {node[:60]!r} is in two components of the job; "
                    "write a hostfile instead"
                )
            slots[node] = number
    if not any(slots.values()):
        name = components[0].tasks
        raise GraphError(
            f"{name if environ.get(name) else components[0].each}: no node of the job has a task; "
            "give --ranks-per-node"
        )
    notes = tuple(_notes(environ, components[0], slots, ranks_per_node))
    if ranks_per_node is not None or _is_block(environ) or len(slots) == 1:
        return Allocation(in_order(slots), notes)
    if len(components) > 1:
        raise GraphError(
            "SLURM_DISTRIBUTION: the order of tasks over the components of a heterogeneous job is "
            "known for block only; write a hostfile instead"
        )
    return Allocation(_round_robin(slots), notes)


@dataclass(frozen=True)
class _Names:
    """The variables that describe one step, job or component of a job."""

    nodelist: str
    tasks: str
    each: str = ""


def _components(environ: Mapping[str, str]) -> list[_Names]:
    """A step's variables are complete: those of the job may be there beside them, and srun sets
    SLURM_TASKS_PER_NODE to the step's counts but leaves SLURM_JOB_NODELIST."""
    if environ.get(STEP_NODELIST) and not _is_special_step(environ):
        return [_Names(STEP_NODELIST, STEP_TASKS if environ.get(STEP_TASKS) else TASKS)]
    for kind in ("HET", "PACK"):
        word = environ.get(f"SLURM_{kind}_SIZE", "")
        if word:
            if not re.fullmatch(r"[0-9]{1,4}", word, re.ASCII) or not int(word):
                raise GraphError(f"SLURM_{kind}_SIZE={word[:40]!r} is no number of components")
            ends = [f"_{kind}_GROUP_{number}" for number in range(int(word))]
            return [_Names(NODELISTS[0] + end, TASKS + end, EACH + end) for end in ends]
    nodelist = next((name for name in NODELISTS if environ.get(name)), NODELISTS[0])
    return [_Names(nodelist, TASKS, EACH)]


def _is_special_step(environ: Mapping[str, str]) -> bool:
    word = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or ""
    return bool(re.fullmatch(r"[0-9]{1,10}", word, re.ASCII)) and int(word) >= FIRST_SPECIAL_STEP


def _slots(environ: Mapping[str, str], names: _Names, ranks_per_node: int | None) -> dict[str, int]:
    nodes = expand(_value(environ, names.nodelist), what=names.nodelist)
    if ranks_per_node is not None:
        return dict.fromkeys(nodes, ranks_per_node)
    if not environ.get(names.tasks) and environ.get(names.each):
        each = environ[names.each]
        if not re.fullmatch(r"[0-9]{1,6}", each, re.ASCII) or int(each) > MAX_RANKS:
            raise GraphError(f"{names.each}={each[:40]!r} is no number of tasks up to {MAX_RANKS}")
        return dict.fromkeys(nodes, int(each))
    counts = task_counts(_value(environ, names.tasks), what=names.tasks)
    if len(counts) != len(nodes):
        raise GraphError(
            f"{names.tasks} is for {count(len(counts), 'node')}, but {names.nodelist} has "
            f"{len(nodes)}; give --ranks-per-node"
        )
    return dict(zip(nodes, counts, strict=True))


def _value(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise GraphError(f"{name} is not set; run this inside a Slurm job (sbatch, srun, salloc)")
    return environ[name]


def _notes(
    environ: Mapping[str, str],
    names: _Names,
    slots: Mapping[str, int],
    ranks_per_node: int | None,
) -> Iterator[str]:
    if names.nodelist == STEP_NODELIST:
        job = environ.get(NODELISTS[0], "")
        in_job = len(expand(job, what=NODELISTS[0])) if job else len(slots)
        if in_job != len(slots):
            yield (
                f"{STEP_NODELIST}: the step has {count(len(slots), 'node')} of the job's {in_job}; "
                "only these count"
            )
    if ranks_per_node is not None:
        return
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if gpus.isdecimal() and int(gpus) > 1 and set(slots.values()) == {1}:
        yield (
            f"one task a node is taken as one rank, but this node has {int(gpus)} GPUs "
            "(SLURM_GPUS_ON_NODE); where torchrun starts a rank for each, give --ranks-per-node "
            f"{int(gpus)}"
        )
    if names.tasks == TASKS and not any(environ.get(name) for name in ("SLURM_NTASKS", EACH)):
        yield (
            f"the job was not asked for a number of tasks, so {TASKS} counts what CPUs allow; "
            "--ranks-per-node says how many ranks there are"
        )


def _is_block(environ: Mapping[str, str]) -> bool:
    """Whether tasks fill one node after the other; a ``*`` is Slurm's word for the default."""
    word = environ.get("SLURM_DISTRIBUTION") or "block"
    distribution = re.split("[:,]", word, maxsplit=1)[0].lower()
    if distribution not in ("block", "*", "cyclic"):
        raise GraphError(
            f"SLURM_DISTRIBUTION={word[:40]!r}: only block and cyclic are known; write a hostfile "
            "instead"
        )
    return distribution != "cyclic"


def _round_robin(slots: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    in_order(slots)  # for its complaints
    hosts: dict[str, list[int]] = {node: [] for node, number in slots.items() if number}
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
