"""The models of a worker, which stay through reloads."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping

from trainmesh.serving.config.types import Config
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.observe.log import LOGGER, log_event
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.route import ModelRoute

__all__ = ["ModelRoutes"]


class ModelRoutes:
    """One worker's.

    Args:
        loop: what they run in.
        way: of this router.
        keeps_rows: choices are written down (``Pool``).
    """

    __slots__ = ("_keeps_rows", "_loop", "_random", "_way", "by_name")

    def __init__(self, loop: asyncio.AbstractEventLoop, way: ViaChain, *, keeps_rows: bool) -> None:
        self._loop = loop
        self._keeps_rows = keeps_rows
        self._way = way
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 - no secret
        self.by_name: Mapping[str, ModelRoute] = {}

    @property
    def pools(self) -> dict[str, Pool]:
        """By the names of their models."""
        return {name: route.pool for name, route in self.by_name.items()}

    def configure(self, config: Config, row: WorkerRow, now_s: float) -> None:
        """Go on with the models of ``config``, and count in ``row``.

        Raises:
            ConfigError: it can't be used.
        """
        scorers, problems = load_scorers()
        for problem in problems:
            log_event(LOGGER, "plug_in", reason=problem)
        before, old_pools = self.by_name, self.pools
        routes: dict[str, ModelRoute] = {}
        for name, model in config.models.items():
            pool = Pool(
                name, model, limits=config.limits, scorers=scorers, rng=self._random,
                previous=old_pools.get(name), now_s=now_s, keeps_rows=self._keeps_rows,
            )  # fmt: skip
            route = before.get(name)
            if route is None:
                route = ModelRoute(pool, row, config.limits, self._loop, self._way)
            else:
                route.configure(pool, row, config.limits)
            routes[name] = route
        for name, route in before.items():
            if name not in routes:
                route.close()
        self.by_name = routes
        Pool.share(self.pools.values(), old_pools.values())
        counters = [route.counters for route in routes.values()]
        for each in counters:
            each.share(counters)

    def take(self, snapshot: Snapshot, now_s: float) -> None:
        """Decide with ``snapshot`` from now on."""
        for name, route in self.by_name.items():
            signals = {signal.name: signal for signal in snapshot.signals.get(name, ())}
            route.pool.update(signals, now_s)
            if snapshot.demand.get(name, 0.0) >= 1:
                route.pool.demand.unmet()

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """What other workers of this router have in flight."""
        for route in self.by_name.values():
            route.counters.hear_others(counters, worker)

    def renew_certificates(self) -> list[str]:
        """Look at the files of certificates again; what was new, or wrong."""
        return [line for route in self.by_name.values() for line in route.renew_certificates()]

    def exclusions(self) -> dict[str, dict[str, str]]:
        """Model -> endpoint -> why it gets no requests."""
        return {name: dict(route.pool.exclusions()) for name, route in self.by_name.items()}

    def missing(self) -> dict[str, str]:
        """Model -> why none of its endpoints is in service."""
        return {name: why for name, pool in self.pools.items() if (why := pool.why_out())}

    def abort(self) -> None:
        """End everything now."""
        for route in self.by_name.values():
            route.abort()
