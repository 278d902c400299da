"""Hostfiles of MPI, DeepSpeed and torch launchers: which host runs how many ranks, in order.

::

    # comment
    node1 slots=8              # Open MPI, DeepSpeed; further words such as max_slots=8 are skipped
    node2:8                    # MPICH, Intel MPI, Horovod
    node3                      # one rank

Ranks are numbered host by host, in the order of the file, as all of these launchers do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainmesh.errors import GraphError
from trainmesh.types import MAX_RANKS

__all__ = ["in_order", "parse"]

MAX_CHARS = 16 * 2**20
HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?::([0-9]{1,6}))?", re.ASCII)
SLOTS = re.compile(r"\bslots\s*=\s*(\S{1,40})")


def parse(text: str, *, source: str) -> dict[str, tuple[int, ...]]:
    """The ranks of each host, as ``graph.host_graph`` takes them.

    Raises:
        GraphError: a line that is no host, a host that is there twice, or no ranks; with source
            and line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; not a hostfile")
    slots: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        words = re.split(r"#|//", line, maxsplit=1)[0].split()
        if not words:
            continue
        where = f"{source}:{number}"
        match = HOST.fullmatch(words[0])
        if match is None:
            raise GraphError(
                f"{where}: {words[0][:40]!r} is no host name; write 'node1 slots=8' or 'node1:8'"
            )
        if match[1] in slots:
            raise GraphError(f"{where}: host {match[1]!r} is there twice; give it all its slots")
        slots[match[1]] = _slots(match[2], " ".join(words[1:]), where)
    try:
        return in_order(slots)
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from error


def _slots(after_colon: str | None, rest: str, where: str) -> int:
    match = SLOTS.search(rest)
    word = match[1] if match else after_colon or "1"
    if not re.fullmatch(r"[0-9]{1,6}", word, re.ASCII) or int(word) > MAX_RANKS:
        raise GraphError(f"{where}: slots must be 0 to {MAX_RANKS}, not {word!r}")
    return int(word)


def in_order(slots: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Number the ranks host by host; hosts with none are left out.

    Raises:
        GraphError: there are no ranks, or too many.
    """
    hosts: dict[str, tuple[int, ...]] = {}
    first = 0
    for host, count in slots.items():
        if count:
            hosts[host] = tuple(range(first, first + count))
            first += count
        if first > MAX_RANKS:
            raise GraphError(f"more than the {MAX_RANKS} ranks allowed")
    if not hosts:
        raise GraphError("no host has a slot; write one line 'host slots=N' for each host")
    return hosts
