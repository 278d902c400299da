"""Policies against each other in simulated time."""

import pytest

from tests.serving.decide.loads import gpu, model, play, prompts, talks
from trainmesh.serving.decide.simulate import Simulation
from trainmesh.serving.decide.types import EndpointSignal

OTHERS = ["round_robin", "power_of_two", "least_requests"]


@pytest.mark.parametrize("rate", [30, 45])
def test_hybrid_is_ahead_where_gpus_are_unequal(rate: float) -> None:
    def p99(policy: str) -> float:
        servers = [gpu(1), gpu(1), gpu(2), gpu(4)]
        result, _ = play(policy, servers, lambda seed: prompts(rate, 18, seed), until_s=50)
        assert result.failed == 0
        return result.ttft_s(0.99)

    assert 1.5 * p99("hybrid") < min(p99(policy) for policy in OTHERS)


def test_hybrid_is_ahead_where_gpus_are_equal_and_busy() -> None:
    def p99(policy: str) -> float:
        servers = [gpu(1) for _ in range(4)]
        result, _ = play(policy, servers, lambda seed: prompts(80, 18, seed), until_s=50)
        return result.ttft_s(0.99)

    assert p99("hybrid") < min(p99(policy) for policy in OTHERS)


@pytest.mark.parametrize("named", [False, True])
def test_prompts_go_where_their_prefix_is(named: bool) -> None:
    def run(policy: str) -> tuple[float, bool]:
        servers = [gpu(1, cache_blocks=1500) for _ in range(4)]
        result, simulation = play(
            policy, servers, lambda seed: talks(40, 22, seed, named=named), until_s=40
        )
        return result.ttft_s(0.99), simulation.pool.prefix_pays

    p99, pays = run("hybrid")
    assert pays
    # One request more or less in its worst hundredth is a tenth of it.
    assert 2.5 * p99 < min(run(policy)[0] for policy in OTHERS)


def test_prefixes_do_not_count_where_nothing_is_asked_twice() -> None:
    servers = [gpu(1, cache_blocks=1500) for _ in range(4)]
    result, simulation = play(
        "hybrid", servers, lambda seed: talks(20, 20, seed, prefix_cache=False), until_s=40
    )
    assert simulation.pool.prefix_reuse < 0.01
    assert not simulation.pool.prefix_pays
    assert all(0.15 < result.share(f"e{i}") < 0.35 for i in range(4))


def test_prefixes_do_not_count_where_engines_keep_no_cache() -> None:
    servers = [gpu(1) for _ in range(4)]
    _, simulation = play("hybrid", servers, lambda seed: talks(20, 30, seed), until_s=50)
    assert simulation.pool.prefix_reuse > 0.5
    assert not simulation.pool.prefix_pays


@pytest.mark.parametrize("known", [True, False])
def test_the_replica_behind_a_slow_link_is_used_when_it_pays_and_not_called_ill(
    known: bool,
) -> None:
    def run(policy: str, rate: float) -> tuple[float, float, int]:
        servers = [gpu(1) for _ in range(4)]
        servers[3].rtt_s = 0.1
        simulation = Simulation(
            model(4, policy),
            servers,
            signals=[EndpointSignal(name="e3", rtt_s=0.1 if known else 0.0)],
        )
        simulation.load(prompts(rate, 20, 1))
        result = simulation.run(40)
        ejected = sum("ejected" in line for _, line in result.lines)
        return result.ttft_s(0.9), result.share("e3"), ejected

    quiet, _, _ = run("hybrid", 20)
    assert quiet < run("round_robin", 20)[0]
    _, share, ejected = run("hybrid", 75)
    assert 0.05 < share < 0.25
    assert not ejected
