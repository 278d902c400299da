"""Hostfiles of MPI, DeepSpeed and batch systems: which host runs how many ranks, in order.

::

    # comment
    node1 slots=8 max_slots=8      # Open MPI, DeepSpeed, Horovod
    alice@node2:8                  # MPICH, Intel MPI, Horovod; the user is not the planner's
    [2001:db8::7]:8                # an IPv6 address with slots; without brackets it has none
    node3                          # one rank, and one more for each further line of its own:
    node3                          # PBS and LSF node files, srun hostname

Ranks are numbered host by host, in the order in which the hosts first appear, as all of these
launchers do. A word that none of them knows is refused: it may be a misspelt number of slots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from itertools import pairwise

from trainmesh.errors import GraphError
from trainmesh.types import MAX_RANKS

__all__ = ["Hostfile", "in_order", "parse"]

MAX_CHARS = 16 * 2**20
"""Of a file with a line for each of some 100 000 hosts."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@", re.ASCII)
BRACKETS = re.compile(r"\[([^][]*)\](?::(.*))?")
SLOTS = frozenset({"slots", "count", "cpu"})
"""Open MPI's three words for the number of ranks; DeepSpeed and Horovod know the first."""
MOST = frozenset(
    f"{first}{dash}{last}"
    for word in SLOTS
    for first, last in ((word, "max"), ("max", word))
    for dash in "_-"
)
"""Open MPI's words for how far a host may be oversubscribed."""
IGNORED = frozenset(
    (
        *("username", "user_name", "user-name", "user", "port"),
        *("boards", "sockets", "sockets_per_board", "sockets-per-board"),
        *("cores", "cores_per_socket", "cores-per-socket"),
        *("binding", "ifname"),
    )
)
"""Further words of Open MPI and Hydra; none says how many ranks there are."""
ADVICE = "write 'node1 slots=8' or 'node1:8'"


@dataclass(frozen=True)
class Hostfile:
    """The ranks of each host, as ``graph.host_graph`` takes them; ``notes`` say in words what
    was left out or has several meanings."""

    hosts: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Line:
    """One line: ``slots`` is None where it says no number."""

    host: str
    slots: int | None
    where: str


def parse(text: str, *, source: str) -> Hostfile:
    """The hosts and their ranks.

    Raises:
        GraphError: a line that is no host, a word that is not known, a host whose slots are
            given twice, or no ranks; with source and line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; not a hostfile")
    lines = [
        _line(words, f"{source}:{number}")
        for number, raw in enumerate(text.split("\n"), start=1)
        if (words := re.split(r"#|//", raw, maxsplit=1)[0].split())
    ]
    by_host: dict[str, list[_Line]] = {}
    for line in lines:
        by_host.setdefault(line.host, []).append(line)
    slots = {host: _slots(own) for host, own in by_host.items()}
    try:
        return Hostfile(in_order(slots), tuple(_notes(lines, by_host, slots, source)))
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from error


def _slots(lines: Sequence[_Line]) -> int:
    """Of the lines of one host: the number that the only one gives, or else one for each."""
    if len(lines) == 1:
        return 1 if lines[0].slots is None else lines[0].slots
    if any(line.slots is not None for line in lines):
        again = lines[1]
        raise GraphError(
            f"{again.where}: host {again.host!r} is there twice; give all its slots in one line, "
            "or one line without slots for each rank"
        )
    return len(lines)


def _notes(
    lines: Sequence[_Line],
    by_host: Mapping[str, Sequence[_Line]],
    slots: Mapping[str, int],
    source: str,
) -> Iterator[str]:
    apart = [b for a, b in pairwise(lines) if a.host != b.host and b is not by_host[b.host][0]]
    if apart:
        yield (
            f"{apart[0].where}: the lines of host {apart[0].host!r} are apart; the ranks of a host "
            "are numbered together, as Open MPI and Hydra do"
        )
    for host in (host for host, count in slots.items() if not count):
        yield f"{by_host[host][0].where}: host {host!r} has no slot and is left out"
    bare = sum(len(own) == 1 and own[0].slots is None for own in by_host.values())
    if bare:
        yield (
            f"{source}: {bare} of {len(by_host)} hosts have no number of slots and get one rank "
            "each (Open MPI starts one for each core)"
        )


def _line(words: list[str], where: str) -> _Line:
    host, after_colon = _host(words[0], where)
    slots = None if after_colon is None else _count(after_colon, where)
    most: int | None = None
    for word in re.sub(r"\s*=\s*", "=", " ".join(words[1:])).split():
        key, _, value = word.partition("=")
        key = key.lower()
        if key in SLOTS and value:
            if slots is not None:
                raise GraphError(f"{where}: slots are given twice; {ADVICE}")
            slots = _count(value, where)
        elif key in MOST and value:
            most = _count(value, where)
        elif key not in IGNORED or not value:
            raise GraphError(f"{where}: {word[:40]!r} is not known in a hostfile; {ADVICE}")
    # Open MPI takes the most there may be where nothing else is said.
    return _Line(host, most if slots is None else slots, where)


def _host(word: str, where: str) -> tuple[str, str | None]:
    """The host's name without a user, and what follows the colon after it."""
    rest = USER.sub("", word, count=1)
    if match := BRACKETS.fullmatch(rest):
        if _is_ipv6(match[1]):
            return match[1], match[2]
    elif _is_ipv6(rest):
        return rest, None
    name, colon, after = rest.partition(":")
    if NAME.fullmatch(name):
        return name, after if colon else None
    if "[" in word:
        raise GraphError(
            f"{where}: {word[:40]!r} is a node list of Slurm; write one host a line, as "
            "scontrol show hostnames does"
        )
    raise GraphError(f"{where}: {word[:40]!r} is no host name; {ADVICE}")


def _is_ipv6(word: str) -> bool:
    try:
        IPv6Address(word)
    except AddressValueError:
        return False
    return True


def _count(word: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", word, re.ASCII) or int(word) > MAX_RANKS:
        raise GraphError(f"{where}: slots must be 0 to {MAX_RANKS}, not {word[:40]!r}")
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
