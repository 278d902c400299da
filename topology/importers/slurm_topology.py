"""Slurm's ``topology.conf``: which switch joins which nodes.

::

    SwitchName=leaf1 Nodes=n[1-18]                  # topology/tree
    SwitchName=core Switches=leaf[1-4] LinkSpeed=100
    BlockName=b1 Nodes=n[1-18]                      # topology/block: a block is one switch
    BlockSizes=18

Slurm knows no speeds: the units of LinkSpeed are arbitrary, it is not used. Links to hosts are
taken as ``graph.ETHERNET``, and those between switches as wide as all the hosts below, so that
no switch blocks; their classes (ethernet, tier2, tier3, ...) are measured apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainmesh.errors import GraphError
from trainmesh.topology.graph import ETHERNET, LOOPBACK, MAX_NAME, Kind, Provenance
from trainmesh.topology.importers.fragment import NETWORK, Fragment, Pen, rank_name
from trainmesh.topology.importers.slurm import expand
from trainmesh.types import LinkCost

__all__ = ["Switch", "all_nodes", "fragment", "joined", "parse"]

MAX_CHARS = 16 * 2**20
"""Of a topology.conf with a line for each of some 100 000 switches."""
MAX_SWITCHES = 20_000
"""The largest clusters have some thousands."""
MAX_TIERS = 16
"""Fat trees have three or four; more is a circle."""
MAX_BELOW = 2_000_000
"""Hosts below all the switches together."""
KEYS = frozenset({"switchname", "nodes", "switches", "linkspeed", "blockname", "blocksizes"})


@dataclass(frozen=True)
class Switch:
    """A line: a switch with the nodes and the switches below it."""

    name: str
    nodes: tuple[str, ...]
    switches: tuple[str, ...]
    where: str


def parse(text: str, *, source: str) -> tuple[Switch, ...]:
    """The switches, each after those below it; blocks have one more that joins them.

    Raises:
        GraphError: a line that is no such line, a switch twice or below itself, one that no line
            declares, or switches and blocks in one file; with source and line.
    """
    if len(text) > MAX_CHARS:
        raise GraphError(f"{source}: larger than {MAX_CHARS // 2**20} MiB; not a topology.conf")
    switches: dict[str, Switch] = {}
    blocks: set[str] = set()
    for where, line in _lines(text, source):
        fields = _fields(line, where)
        if fields.keys() == {"blocksizes"}:
            continue
        found = _switch(fields, where)
        if found.name in switches:
            raise GraphError(f"{where}: {found.name[:60]!r} is there twice")
        if len(switches) == MAX_SWITCHES:
            raise GraphError(f"{where}: more than {MAX_SWITCHES} switches")
        switches[found.name] = found
        blocks |= {found.name} if "blockname" in fields else set()
        if blocks and len(blocks) != len(switches):
            raise GraphError(f"{where}: switches and blocks in one file; give one of them")
    if not switches:
        raise GraphError(f"{source}: no SwitchName= or BlockName= in it; give topology.conf")
    return joined(switches, source, are_blocks=bool(blocks))


def joined(switches: Mapping[str, Switch], source: str, *, are_blocks: bool) -> tuple[Switch, ...]:
    """``switches``, each after those below it; several blocks have one more that joins them.

    Raises:
        GraphError: too many, one below itself, or one that nothing declares.
    """
    if len(switches) > MAX_SWITCHES:
        raise GraphError(f"{source}: more than {MAX_SWITCHES} switches")
    if are_blocks and len(switches) > 1:
        switches = {**switches, NETWORK: Switch(NETWORK, (), tuple(switches), source)}
    return _from_below(switches)


def fragment(switches: Sequence[Switch], hosts: Mapping[str, Sequence[int]]) -> Fragment:
    """The ranks of ``hosts``, each around its host, and the switches above them.

    Args:
        switches: What ``parse`` gave.
        hosts: The ranks of each host of the job; other nodes of the file are left out.

    Raises:
        GraphError: a host is on no switch, or the switches are above too many hosts in all.
    """
    pen = Pen()
    for host, ranks in hosts.items():
        pen.node(host, Kind.HOST)
        for rank in ranks:
            name = pen.node(rank_name(host, rank), Kind.RANK, rank)
            pen.both_ways(name, host, LOOPBACK, "loopback", Provenance.ASSUMED)
    below: dict[str, set[str]] = {}
    tiers: dict[str, int] = {}
    num_below = 0
    for switch in switches:
        own = [node for node in switch.nodes if node in hosts]
        children = [child for child in switch.switches if below[child]]
        below[switch.name] = set(own).union(*(below[child] for child in children))
        tiers[switch.name] = 1 + max((tiers[child] for child in children), default=0)
        num_below += len(below[switch.name])
        if num_below > MAX_BELOW:
            raise GraphError(f"{switch.where}: the switches are above more than {MAX_BELOW} hosts")
        for node in own:
            pen.node(switch.name, Kind.SWITCH)
            pen.both_ways(node, switch.name, ETHERNET, "ethernet", Provenance.ASSUMED)
        for child in children:
            pen.node(switch.name, Kind.SWITCH)
            cost, link_class = _wide(len(below[child])), f"tier{tiers[child] + 1}"
            pen.both_ways(child, switch.name, cost, link_class, Provenance.ASSUMED)
    if missing := sorted(hosts.keys() - set().union(*below.values())):
        raise GraphError(f"node {missing[0][:60]!r} is on no switch of the file")
    pen.notes(["speeds are assumed, and that no switch blocks; Slurm says neither"])
    return pen.fragment()


def all_nodes(switches: Sequence[Switch]) -> list[str]:
    """The nodes on the switches, in the order of the file."""
    return list(dict.fromkeys(node for switch in switches for node in switch.nodes))


def _wide(num_hosts: int) -> LinkCost:
    return LinkCost(
        alpha_s=ETHERNET.alpha_s / 2,
        bandwidth_bytes_per_s=num_hosts * ETHERNET.bandwidth_bytes_per_s,
    )


def _lines(text: str, source: str) -> Iterable[tuple[str, str]]:
    """(place, text) of the lines that say something; a backslash at the end continues one."""
    begun, first = "", 1
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.partition("#")[0].rstrip()
        first = first if begun else number
        begun += line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            if begun.strip():
                yield f"{source}:{first}", begun.strip()
            begun = ""
    if begun.strip():
        raise GraphError(f"{source}:{first}: nothing follows the backslash; is the file cut off?")


def _fields(line: str, where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in line.split():
        key, equals, value = word.partition("=")
        key = key.lower()
        if not equals or not value or key not in KEYS or key in fields:
            raise GraphError(
                f"{where}: {word[:40]!r} is not expected here; lines are "
                "'SwitchName=... Nodes=...|Switches=...' or 'BlockName=... Nodes=...'"
            )
        fields[key] = value
    return fields


def _switch(fields: Mapping[str, str], where: str) -> Switch:
    name = fields.get("switchname") or fields.get("blockname", "")
    if not name or len(name) > MAX_NAME or ("switchname" in fields) is ("blockname" in fields):
        raise GraphError(f"{where}: give SwitchName= or BlockName=, up to {MAX_NAME} characters")
    nodes, switches = fields.get("nodes"), fields.get("switches")
    if nodes is None and switches is None:
        raise GraphError(f"{where}: {name[:60]!r} has neither Nodes= nor Switches=")
    if nodes is not None and nodes.upper() == "ALL":
        raise GraphError(f"{where}: Nodes=ALL does not say which; write them out")
    return Switch(
        name,
        tuple(expand(nodes, what=where)) if nodes else (),
        tuple(expand(switches, what=where)) if switches else (),
        where,
    )


def _from_below(switches: Mapping[str, Switch]) -> tuple[Switch, ...]:
    """Each switch after those below it; checks that these are declared and that there are not too
    many tiers."""
    for switch in switches.values():
        for child in switch.switches:
            if child not in switches:
                raise GraphError(f"{switch.where}: nothing declares switch {child[:60]!r}")
    ordered: dict[str, Switch] = {}
    left = dict(switches)
    for _ in range(MAX_TIERS):
        tier = {n: s for n, s in left.items() if all(child in ordered for child in s.switches)}
        ordered |= tier
        left = {name: switch for name, switch in left.items() if name not in tier}
    if left:
        name, switch = next(iter(left.items()))
        raise GraphError(
            f"{switch.where}: switch {name[:60]!r} is below itself, or above more than "
            f"{MAX_TIERS} tiers"
        )
    return tuple(ordered.values())
