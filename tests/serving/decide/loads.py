"""Pools and loads for the tests of routing decisions. All chance has a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainmesh.serving.config.types import EndpointConfig, LimitsConfig, ModelConfig
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.simulate import Result, SimulatedRequest, SimulatedServer, Simulation
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    Candidate,
    Context,
    EndpointSignal,
    RequestFacts,
)

SLOW_S = 0.295
"""What a 300 ms replica takes more than a 5 ms one."""


def model(n: int = 4, policy: str = "hybrid", **more: Any) -> ModelConfig:
    """A model with endpoints e0, e1, ..."""
    endpoints = tuple(
        EndpointConfig(url=f"http://127.0.0.1:{9000 + i}", name=f"e{i}") for i in range(n)
    )
    return ModelConfig(endpoints=endpoints, policy=policy, **more)


def pool_of(config: ModelConfig, *, now_s: float = 0.0, **more: Any) -> Pool:
    """A pool of the built-in policies whose clock never runs out."""
    options: dict[str, Any] = {
        "limits": LimitsConfig(),
        "scorers": load_scorers()[0],
        "rng": random.Random(1),
        "clock": lambda: 0.0,
    }
    return Pool("m", config, now_s=now_s, **{**options, **more})


def facts(number: int = 0, **more: Any) -> RequestFacts:
    """A small request."""
    fields: dict[str, Any] = {
        "request_id": f"r{number}",
        "model": "m",
        "nbytes": 200,
        "prompt_tokens": 50,
        "output_tokens": 10,
    }
    return RequestFacts(**{**fields, **more})


def signal(name: str, **fields: Any) -> dict[str, EndpointSignal]:
    """One endpoint's, as ``Pool.update`` wants it."""
    return {name: EndpointSignal(name=name, **fields)}


def quick(n: int = 4, *last: Any, jitter: float = 0.1) -> list[SimulatedServer]:
    """Servers that take 5 ms; ``last``: the faults of the last one."""
    servers = [SimulatedServer(base_s=0.005, jitter=jitter, serial=False) for _ in range(n)]
    servers[-1].faults = last
    return servers


def closed(
    servers: Sequence[SimulatedServer], until_s: float, clients: int = 4, **config: Any
) -> Simulation:
    """A simulation of clients that send one small request after the other."""
    simulation = Simulation(model(len(servers), **config), servers, seed=1)
    simulation.clients(clients, facts)
    simulation.run(until_s)
    return simulation


def gpu(times_slower: float, cache_blocks: int = 0) -> SimulatedServer:
    """An engine that reads 20 000 tokens a second, or less."""
    return SimulatedServer(
        base_s=0.01 * times_slower,
        s_per_token=5e-5 * times_slower,
        s_per_output_token=0.02 * times_slower,
        jitter=0.1,
        cache_blocks=cache_blocks,
    )


def prompts(rate: float, until_s: float, seed: int) -> Iterator[SimulatedRequest]:
    """Independent prompts of very different lengths, at random times."""
    rng = random.Random(seed)
    at_s = 0.0
    number = 0
    while (at_s := at_s + rng.expovariate(rate)) < until_s:
        tokens = int(rng.lognormvariate(6, 1))
        answer = rng.randint(50, 400)
        number += 1
        yield SimulatedRequest(
            at_s,
            facts(
                number, stream=True, nbytes=4 * tokens, prompt_tokens=tokens, output_tokens=answer
            ),
        )


def talks(
    rate: float, until_s: float, seed: int, *, prefix_cache: bool = True, named: bool = False
) -> Iterator[SimulatedRequest]:
    """Turns of 64 conversations, each with all that was said before; ``prefix_cache`` False: turns
    have nothing in common; ``named``: with a session header."""
    rng = random.Random(seed)
    said: dict[int, list[int]] = {}
    at_s = 0.0
    number = 0
    while (at_s := at_s + rng.expovariate(rate)) < until_s:
        talk = rng.randrange(64)
        blocks = said.setdefault(talk, [])
        if not prefix_cache or len(blocks) > 40:
            blocks.clear()
        blocks += [rng.getrandbits(60), rng.getrandbits(60)]
        number += 1
        more = {"session": b"talk-%d" % talk} if named else {}
        yield SimulatedRequest(
            at_s,
            facts(
                number,
                stream=True,
                nbytes=512 * len(blocks),
                prompt_tokens=128 * len(blocks),
                output_tokens=100,
                blocks=tuple(blocks),
                **more,
            ),
        )


def play(
    policy: str,
    servers: Sequence[SimulatedServer],
    load: Callable[[int], Iterator[SimulatedRequest]],
    *,
    seed: int = 1,
    until_s: float = 30.0,
    **config: Any,
) -> tuple[Result, Simulation]:
    """Runs a load against a policy until all of it is answered."""
    simulation = Simulation(model(len(servers), policy, **config), servers, seed=seed)
    simulation.load(load(seed))
    return simulation.run(until_s), simulation


def answer(pool: Pool, endpoint: Endpoint, now_s: float, ttft_s: float = 0.005) -> None:
    attempt = pool.begin(endpoint, facts(), AttemptKind.FIRST, now_s)
    pool.first_byte(attempt, now_s + ttft_s)
    pool.end(attempt, AttemptOutcome.OK, now_s + ttft_s, 10)


class Fixed:
    """A policy that always wants one endpoint."""

    name = "fixed"

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        return [float(c.index != self.wanted) for c in candidates]
