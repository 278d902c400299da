"""The executor of any plan that is carried out by messages between ranks."""

from __future__ import annotations

from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.pipeline import PipelinedExecutor
from trainmesh.hooks.executors.rounds import RoundsExecutor
from trainmesh.types import Plan

__all__ = ["by_messages"]


def by_messages(plan: Plan, group_factory: GroupFactory) -> Executor:
    """Piece by piece where a process can send and receive at will (gloo), else in rounds."""
    made = PipelinedExecutor if group_factory.backend == "gloo" else RoundsExecutor
    return made(plan, group_factory)
