"""The proof of a plan: run it on sets of ranks and check that the result is its collective's.

A chunk's value is the bit set of the ranks that have been added to it. Reducing two sets that
overlap would count a rank twice, an incomplete set at the end would miss one. Messages come in
rounds, all of a round's sends read what the round before left, so no schedule of this form can make
a rank wait for ever. The idea is that of msccl-tools (Collective.check). The proof also adds up the
bytes on every link, which must equal those of the prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from trainmesh.errors import PlanError
from trainmesh.plan.kind import is_built_in
from trainmesh.plan.schedule import Schedule, schedule
from trainmesh.plan.shape import check_shape
from trainmesh.plan.stages import Flow
from trainmesh.topology.cost import link_loads
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Collective, Plan

__all__ = ["EXACT_UP_TO", "check_loads", "flows", "interpret", "validate"]

EXACT_UP_TO = 64
"""World size up to which a plan is interpreted. Above, its shape is the proof: rings over
permutations, islands that partition the ranks, and trees that reach each rank once are the same
schedules at any size."""
NEARLY = 1e-9
"""Of sums of float64, in their last digits."""


def validate(plan: Plan, world_size: int) -> None:
    """Prove that ``plan`` is its collective over ``world_size`` ranks.

    A plug-in's algorithm is checked for its shape only: its messages are not known here.

    Raises:
        PlanError: it is not; the message says why.
    """
    check_shape(plan, world_size)
    if is_built_in(plan) and 1 < world_size <= EXACT_UP_TO:
        interpret(world_size, schedule(plan), plan.collective)


def check_loads(plan: Plan, graph: LinkGraph, predicted: Mapping[str, float]) -> None:
    """Check that the messages of ``plan`` load every link as ``predicted`` (link name to share of
    the bytes). Nothing is checked above ``EXACT_UP_TO`` ranks, or for a plug-in's algorithm.

    Raises:
        PlanError: they don't; the message names a link.
    """
    if not is_built_in(plan) or not 1 < plan.world_size <= EXACT_UP_TO:
        return
    loads = link_loads(flows(schedule(plan)), graph)
    for name in sorted({*loads, *predicted}):
        sent, reckoned = loads.get(name, 0.0), predicted.get(name, 0.0)
        if abs(sent - reckoned) > NEARLY * max(1.0, reckoned):
            raise PlanError(
                f"{plan.algorithm}: {sent} of the bytes cross {name}, predicted were {reckoned}"
            )


def interpret(
    world_size: int, plan: Schedule, collective: Collective = Collective.ALLREDUCE
) -> None:
    """Run ``plan`` on sets.

    Raises:
        PlanError: a contribution is counted twice, or is missing where it is due.
    """
    everyone = (1 << world_size) - 1
    gathers = collective == Collective.ALLGATHER
    values = [
        [1 << rank if not gathers or chunk.owner == rank else 0 for chunk in plan.chunks]
        for rank in range(world_size)
    ]
    for messages in plan.rounds:
        sent = [(message, values[message.src][message.chunk]) for message in messages]
        for message, value in sent:
            held = values[message.dst][message.chunk]
            if message.reduce and held & value:
                twice = (held & value).bit_length() - 1
                raise PlanError(f"rank {message.dst} would count rank {twice} twice")
            values[message.dst][message.chunk] = held | value if message.reduce else value
    for rank, chunks in enumerate(values):
        for chunk, value in zip(plan.chunks, chunks, strict=True):
            if collective == Collective.REDUCE_SCATTER and chunk.owner != rank:
                continue
            due = 1 << chunk.owner if gathers else everyone
            if value != due:
                missing = (due & ~value).bit_length() - 1
                raise PlanError(f"rank {rank} would end without rank {missing}'s contribution")


def flows(messages: Schedule) -> list[Flow]:
    """What a schedule sends between each two ranks."""
    total: dict[tuple[int, int, tuple[str, ...] | None], float] = defaultdict(float)
    for together in messages.rounds:
        for message in together:
            total[message.src, message.dst, message.via] += messages.chunks[message.chunk].share
    return [Flow(src, dst, share, via) for (src, dst, via), share in total.items()]
