from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.serving.proxy.backend import Backend, answer, backends
from tests.serving.running import RunningRouter, running_router, until


@dataclass
class Routed:
    """A router with three endpoints of model ``m``, and one of model ``one``."""

    router: RunningRouter
    backends: list[Backend]
    one: Backend

    @property
    def port(self) -> int:
        return self.router.port

    def asked(self) -> int:
        return sum(len(backend.asked) for backend in self.backends)


@pytest.fixture(scope="module")
def module_routed() -> Iterator[Routed]:
    with backends(4) as made:
        endpoints = [{"url": backend.url} for backend in made[:3]]
        models = {
            "m": {"endpoints": endpoints, "hedge": {"enabled": False}, "policy": "round_robin"},
            "one": {"endpoints": [{"url": made[3].url}], "hedge": {"enabled": False}},
        }
        config = {"models": models, "limits": {"body_bytes": 1_000_000, "drain_s": 5}}
        with running_router(config) as router:
            yield Routed(router, made[:3], made[3])


@pytest.fixture
def routed(module_routed: Routed) -> Routed:
    """With nothing asked yet, and endpoints that answer and are in use."""
    for backend in (*module_routed.backends, module_routed.one):
        backend.say(answer())
    for model, made in (("m", module_routed.backends), ("one", [module_routed.one])):
        body = b'{"model":"%s","messages":[]}' % model.encode()

        def works(body: bytes = body, made: list[Backend] = made) -> bool:
            return module_routed.router.post(body)[0] == 200 and all(one.asked for one in made)

        until(works, what=f"the endpoints of {model} are not all in use")
        for backend in made:
            backend.asked.clear()
    return module_routed
