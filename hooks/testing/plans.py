"""An example plan of every built-in algorithm, and of a plug-in's."""

from __future__ import annotations

from trainmesh.types import Algorithm, Hop, Plan, Tree

__all__ = ["example_plan"]


def example_plan(algorithm: str, world_size: int) -> Plan:
    """A plan that ``algorithm`` can carry out, in which every rank has work.

    One that trainmesh does not know gets a plan with nothing but the ranks in their order.
    """
    ranks = tuple(range(world_size))
    plan = Plan(algorithm=algorithm, world_size=world_size, order=ranks)
    half = (world_size + 1) // 2
    fields: dict[str, dict[str, object]] = {
        Algorithm.RING: {"order": (0, *reversed(ranks[1:]))},
        Algorithm.HIERARCHICAL: {"islands": (ranks[:half], ranks[half:])},
        Algorithm.SHARDED: {"shares": tuple(1 / world_size for _ in ranks)},
        Algorithm.TREE: {"trees": (_chain(ranks, 1.0),)},
        Algorithm.FOREST: {"trees": (_chain(ranks, 0.625), _chain(ranks[::-1], 0.375))},
    }
    values = {name: getattr(plan, name) for name in plan.__struct_fields__}
    return Plan(**(values | fields.get(algorithm, {})))


def _chain(order: tuple[int, ...], share: float) -> Tree:
    up = tuple(Hop(a, b) for a, b in zip(order, order[1:], strict=False))
    down = tuple(Hop(hop.dst, hop.src) for hop in reversed(up))
    return Tree(order[-1], share, up, down)
