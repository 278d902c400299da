"""Which executor carries out which plan: our own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from trainmesh.errors import PlanError
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.messages import by_messages
from trainmesh.hooks.executors.native import NativeExecutor
from trainmesh.hooks.executors.ring import ring
from trainmesh.types import Algorithm, Plan

__all__ = ["load"]

GROUP = "trainmesh.hooks"
"""The entry points of other packages."""
BY_BACKEND: dict[str, Callable[[Plan, GroupFactory], Executor]] = {
    Algorithm.NATIVE: NativeExecutor,
    Algorithm.RING: ring,
}
"""Of the built-in algorithms those that are not simply messages between ranks."""


def load(algorithm: str) -> Callable[[Plan, GroupFactory], Executor]:
    """What makes the executor registered for ``algorithm``.

    Raises:
        PlanError: none is registered, or it can't be imported.
    """
    if algorithm in tuple(Algorithm):
        return BY_BACKEND.get(algorithm, by_messages)
    for point in entry_points(group=GROUP, name=algorithm):
        try:
            loaded: Callable[[Plan, GroupFactory], Executor] = point.load()
        except Exception as error:  # third-party code may fail in any way
            raise PlanError(f"executor {algorithm!r} can't be loaded: {error}") from error
        return loaded
    raise PlanError(f"no executor is registered for algorithm {algorithm!r}")
