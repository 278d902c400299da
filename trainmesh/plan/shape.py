"""What makes a plan well formed for a job; both the planner and every rank check it."""

from __future__ import annotations

from collections.abc import Sequence

from trainmesh.errors import PlanError
from trainmesh.plan.kind import FIELDS, PlanKind, is_built_in, kind_of
from trainmesh.types import Algorithm, Collective, Plan, Tree

__all__ = ["check_shape", "check_tree"]

NEARLY = 1e-9
"""Shares are decimal fractions; their sum may miss 1 by rounding."""
USUAL = {
    PlanKind.ORDER: "native",
    PlanKind.RINGS: "ring",
    PlanKind.ISLANDS: "hierarchical",
    PlanKind.TREES: "tree and forest",
    PlanKind.SHARES: "sharded",
}
"""What plans of a kind are usually called, in the words of an error."""


def check_shape(plan: Plan, world_size: int) -> None:
    """Check that ``plan`` names each rank of a job of ``world_size`` exactly once.

    Raises:
        PlanError: it does not; the message says what is wrong.
    """
    if plan.world_size != world_size:
        raise PlanError(f"plan is for {plan.world_size} ranks, the job has {world_size}")
    _check_order(plan.algorithm, plan.order, world_size)
    if plan.algorithm == Algorithm.NATIVE and plan.order != tuple(range(world_size)):
        raise PlanError("native: order must be rank order")
    kind = kind_of(plan) if is_built_in(plan) else PlanKind.ORDER
    _check_fields(plan, kind)
    if kind == PlanKind.RINGS:
        _check_rings(plan)
    elif kind == PlanKind.ISLANDS:
        _check_levels(plan)
    elif kind == PlanKind.SHARES:
        _check_shares(plan, world_size)
    elif kind == PlanKind.TREES:
        _check_trees(plan)


def _check_fields(plan: Plan, kind: PlanKind) -> None:
    for name in {name for names in FIELDS.values() for name in names}.difference(FIELDS[kind]):
        if getattr(plan, name):
            owners = " and ".join(USUAL[each] for each, names in FIELDS.items() if name in names)
            raise PlanError(f"{plan.algorithm}: {name} belong to {owners} plans only")


def check_tree(tree: Tree, collective: Collective, world_size: int) -> None:
    """Check that ``tree`` reaches every rank exactly once, in an order that can be carried out.

    Raises:
        PlanError: it does not.
    """
    what = f"tree of root {tree.root}"
    if bool(tree.up) is (collective == Collective.ALLGATHER) and world_size > 1:
        raise PlanError(f"{what}: an allgather only broadcasts")
    if bool(tree.down) is (collective == Collective.REDUCE_SCATTER) and world_size > 1:
        raise PlanError(f"{what}: a reduce_scatter only reduces")
    if tree.down:
        _check_spanning(tree.root, [(hop.src, hop.dst) for hop in tree.down], world_size, what)
    if tree.up:
        backwards = [(hop.dst, hop.src) for hop in reversed(tree.up)]
        _check_spanning(tree.root, backwards, world_size, what)


def _check_spanning(root: int, hops: Sequence[tuple[int, int]], world_size: int, what: str) -> None:
    have = {root}
    for src, dst in hops:
        if src not in have:
            raise PlanError(f"{what}: rank {src} would send before it has received")
        if dst in have or not 0 <= dst < world_size:
            raise PlanError(f"{what}: rank {dst} is reached twice or is unknown")
        have.add(dst)
    if len(have) != world_size:
        raise PlanError(f"{what}: reaches {len(have)} of {world_size} ranks")


def _check_order(what: str, order: Sequence[int], world_size: int) -> None:
    if sorted(order) != list(range(world_size)):
        raise PlanError(f"{what}: order is not a permutation of 0..{world_size - 1}")


def _check_sum(what: str, shares: Sequence[float]) -> None:
    if abs(sum(shares) - 1) > NEARLY * max(1, len(shares)):
        raise PlanError(f"{what}: the shares add up to {sum(shares)}, not to 1")


def _check_rings(plan: Plan) -> None:
    if len(plan.rings) != len(plan.shares):
        raise PlanError(f"{plan.algorithm}: {len(plan.rings)} rings, but {len(plan.shares)} shares")
    if plan.rings:
        _check_sum(plan.algorithm, plan.shares)
    for ring in plan.rings:
        _check_order(plan.algorithm, ring, plan.world_size)


def _check_shares(plan: Plan, world_size: int) -> None:
    if len(plan.shares) != world_size:
        raise PlanError(f"{plan.algorithm}: {len(plan.shares)} shares for {world_size} ranks")
    _check_sum(plan.algorithm, plan.shares)
    if plan.collective != Collective.ALLREDUCE:
        raise PlanError(f"{plan.algorithm}: only an allreduce has shares to choose")


def _check_levels(plan: Plan) -> None:
    if plan.levels and plan.levels[0] != plan.islands:
        raise PlanError(f"{plan.algorithm}: the first level must be the islands")
    inner: dict[int, int] = {}
    for level in plan.levels or (plan.islands,):
        if not level or not all(level):
            raise PlanError(f"{plan.algorithm}: no islands, or an empty one")
        if sorted(rank for island in level for rank in island) != list(range(plan.world_size)):
            raise PlanError(f"{plan.algorithm}: islands don't partition 0..{plan.world_size - 1}")
        block = {rank: number for number, island in enumerate(level) for rank in island}
        home: dict[int, int] = {}
        for rank, island in inner.items():
            if home.setdefault(island, block[rank]) != block[rank]:
                raise PlanError(f"{plan.algorithm}: a level splits an island of the one before")
        inner = block
    if len(plan.levels) > 1 or plan.shares or plan.collective != Collective.ALLREDUCE:
        _check_equal(plan.algorithm, plan.levels or (plan.islands,))
    if plan.shares:
        _check_places(plan)


def _check_places(plan: Plan) -> None:
    if plan.collective != Collective.ALLREDUCE:
        raise PlanError(f"{plan.algorithm}: only an allreduce has shares to choose")
    if len(plan.shares) != len(plan.islands[0]):
        size = len(plan.islands[0])
        raise PlanError(f"{plan.algorithm}: {len(plan.shares)} shares for islands of {size}")
    _check_sum(plan.algorithm, plan.shares)


def _check_equal(what: str, levels: Sequence[Sequence[Sequence[int]]]) -> None:
    for level in levels:
        if len({len(island) for island in level}) != 1:
            raise PlanError(f"{what}: islands of a level must be of equal size here")


def _check_trees(plan: Plan) -> None:
    _check_sum(plan.algorithm, [tree.share for tree in plan.trees])
    for tree in plan.trees:
        check_tree(tree, plan.collective, plan.world_size)
    if plan.collective != Collective.ALLREDUCE:
        owned = [0.0] * plan.world_size
        for tree in plan.trees:
            owned[tree.root] += tree.share
        if max(owned) - min(owned) > NEARLY:
            raise PlanError(f"{plan.algorithm}: the ranks' shares must be equal")
