"""Which ranks all-reduce with each other, and what is planned for them. Pure.

DDP: all. HSDP (FSDP2 on a mesh of two dimensions): those that hold the same shard; their groups do
the same at the same time, so one of them stands for all, and every group carries its plan out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from msgspec import structs

from trainmesh.coordinator.tuning.settings import NO_CODEC, Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.shared import share_of_first
from trainmesh.types import Algorithm, Collective, Hello, PairTime

__all__ = ["Replicas"]


@dataclass(frozen=True)
class Replicas:
    """The groups of ranks that all-reduce together. ``node_of`` has the node of every rank."""

    groups: tuple[tuple[int, ...], ...]
    node_of: Mapping[int, str]
    follows_plans: bool = True
    """False: the ranks do something that no plan says."""

    @classmethod
    def of(cls, hellos: Mapping[int, Hello]) -> Replicas:
        """Those of a job whose ranks have all introduced themselves."""
        everyone = tuple(sorted(hellos))
        node_of = {rank: hello.node for rank, hello in hellos.items()}
        groups = tuple(sorted({hello.replicas or everyone for hello in hellos.values()}))
        members = sorted(rank for group in groups for rank in group)
        follows = (
            members == list(everyone)
            and len({len(group) for group in groups}) == 1
            and all(hello.collective == Collective.ALLREDUCE for hello in hellos.values())
        )
        return cls(groups if follows else (everyone,), node_of, follows)

    @property
    def size(self) -> int:
        """How many ranks a plan is for."""
        return len(self.groups[0])

    @property
    def are_all(self) -> bool:
        """Whether one group has all ranks, in their order."""
        return len(self.groups) == 1

    @property
    def are_single(self) -> bool:
        """Whether each rank is the only one that has its shard: nothing is all-reduced."""
        return self.size == 1 and not self.are_all

    @property
    def words(self) -> str:
        """Anything unusual, as an addition to a sentence; empty if there is nothing."""
        if self.are_single:
            return "; each shard has one replica, so nothing is all-reduced and no plan is made"
        if not self.follows_plans:
            return "; gradients are not all-reduced by all: they are timed, no plan is made"
        if self.are_all:
            return ""
        return f"; {len(self.groups)} groups of {self.size} replicas, for which plans are made"

    @property
    def nodes(self) -> dict[str, list[int]]:
        """The ranks of a plan on each node."""
        nodes: dict[str, list[int]] = {}
        for place, rank in enumerate(self.groups[0]):
            nodes.setdefault(self.node_of[rank], []).append(place)
        return nodes

    def settings(self, asked: Settings) -> Settings:
        """What of ``asked`` these ranks can do (``refusals`` says why not the rest)."""
        if not self.follows_plans or self.size == 1:
            return replace(asked, only=Algorithm.NATIVE, fusion_bytes=0, compression=NO_CODEC)
        return asked if self.are_all else replace(asked, fusion_bytes=0, compression=NO_CODEC)

    def share(self, whole: LinkGraph) -> LinkGraph:
        """What a plan has of the job's links."""
        return whole if self.are_all else share_of_first(whole, self.groups)

    def pairs(
        self, pairs: Iterable[PairTime], whole: LinkGraph, share: LinkGraph
    ) -> tuple[PairTime, ...]:
        """A probe's measurements, as they would be between the ranks of a plan: the probe's
        messages had the links for themselves, but in a step all groups' messages share them."""
        if self.are_all:
            return tuple(pairs)
        found = []
        for pair in pairs:
            src, dst = self._place(pair.src), self._place(pair.dst)
            if src is not None and dst is not None:
                path = share.path(src, dst)
                factor = max(_speed(whole, link.name) / _speed(share, link.name) for link in path)
                transfer_s = pair.transfer_s * factor
                found.append(structs.replace(pair, src=src, dst=dst, transfer_s=transfer_s))
        return tuple(found)

    def _place(self, rank: int) -> int | None:
        """The rank of a plan at the place of ``rank``; None if there is none."""
        if len(self.nodes) > 1:
            return next(iter(self.nodes.get(self.node_of[rank], ())), None)
        group = self.groups[0]
        return group.index(rank) if rank in group else None


def _speed(graph: LinkGraph, name: str) -> float:
    return graph.link(name).cost.bandwidth_bytes_per_s
