"""What the scenarios have in common: engines, a router before them, and what is reported."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.serving.figures import Aim, Column, Figures
from benchmarks.serving.programs import Load, Mock
from benchmarks.serving.routers import Goal, Router, Running, running

__all__ = ["FAILED", "NONE_FAILED", "Bench", "Engine", "Scenario", "aim"]

Engine: TypeAlias = Mapping[str, object]
"""Options of a mock."""


@dataclass(frozen=True)
class Bench:
    """A router to try, and how long. ``scale``: how much shorter than usual; ``seed``: of what is
    random, another one for each round."""

    router: Router
    folder: Path
    scale: float
    seed: int

    @contextlib.contextmanager
    def started(
        self, engines: Sequence[Engine], goal: Goal = Goal.LOAD
    ) -> Iterator[tuple[list[Mock], Running]]:
        """Engines and the router before them, after a second of requests."""
        with contextlib.ExitStack() as stack:
            fleet = [stack.enter_context(Mock(f"e{i}", e)) for i, e in enumerate(engines)]
            addresses = [mock.address for mock in fleet]
            router = stack.enter_context(running(self.router, addresses, goal, self.folder))
            Load(router.port, seconds=1, connections=16, tokens=2).result()
            yield fleet, router

    def load(self, router: Running, seconds: float, **options: object) -> Load:
        return Load(router.port, seconds=seconds * self.scale, seed=self.seed, **options)


@dataclass(frozen=True)
class Scenario:
    """``key``: the figure that says who is ahead, less being better."""

    name: str
    about: str
    run: Callable[[Bench], Figures]
    columns: tuple[Column, ...]
    aims: tuple[Aim, ...]
    key: str = "p99_ms"


def aim(text: str, met: Callable[[Figures], bool]) -> Aim:
    """One that needs no peer to compare with."""
    return Aim(text, lambda ours, _: met(ours))


FAILED = Column("failed", "failed")
NONE_FAILED = aim("no failed request", lambda ours: ours["failed"] == 0)
