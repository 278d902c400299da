"""A pool in simulated time, with four clients and one of four servers at fault."""

import pytest

from tests.serving.decide.loads import SLOW_S, closed, gpu, play, prompts, quick
from trainmesh.serving.config.types import EjectConfig
from trainmesh.serving.decide.simulate import Fault, SimulatedServer, Simulation
from trainmesh.serving.decide.types import AttemptKind

ALL_S = 4.0
HEALED_S = 3.0


def lines(simulation: Simulation) -> list[str]:
    return [line for _, line in simulation.result.lines]


def asked_again_s(simulation: Simulation, healed_s: float) -> float:
    """When the last endpoint got a client's request after it was well again."""
    times = [t for t in simulation.result.sent["e3"] if t >= healed_s]
    assert times, "never asked again"
    return times[0] - healed_s


def test_healthy_endpoints_share_the_load_and_nothing_is_ejected() -> None:
    simulation = closed(quick(), ALL_S)
    result = simulation.result
    assert result.failed == 0
    assert not result.lines
    assert set(result.attempts) == {AttemptKind.FIRST}
    assert all(0.2 < result.share(f"e{i}") < 0.3 for i in range(4))


def test_requests_one_by_one_are_spread_too() -> None:
    result = closed(quick(), ALL_S, clients=1).result
    assert all(0.2 < result.share(f"e{i}") < 0.3 for i in range(4))


@pytest.mark.parametrize("policy", ["hybrid", "round_robin", "least_requests", "power_of_two"])
def test_a_slow_replica_costs_next_to_nothing(policy: str) -> None:
    healthy = closed(quick(), ALL_S, policy=policy).result
    slow = closed(quick(4, Fault("slow", 0, extra_s=SLOW_S)), ALL_S, policy=policy)
    assert slow.result.failed == 0
    # The first clients of all meet it before anything is known; from then on:
    assert sum(d.at_s > 2 for d in slow.result.done) > 0.97 * sum(d.at_s > 2 for d in healthy.done)
    assert slow.result.ttft_s(0.99) <= 1.5 * healthy.ttft_s(0.99)
    assert slow.result.share("e3") < 0.02
    if policy != "hybrid":  # which need not eject what it doesn't choose
        told = [line for line in lines(slow) if "e3: ejected" in line]
        assert told
        assert "times the others'" in told[0]


def test_a_replica_that_becomes_slow_is_out_within_a_few_requests() -> None:
    servers = quick(4, Fault("slow", 2, extra_s=SLOW_S))
    simulation = closed(servers, ALL_S, clients=2, policy="round_robin")
    ejected = [t for t, line in simulation.result.lines if "e3: ejected" in line]
    sent = [t for t in simulation.result.sent["e3"] if 2 <= t < ejected[0]]
    assert len(sent) <= 2 * EjectConfig().samples


@pytest.mark.parametrize("what", ["full", "refuse", "error"])
@pytest.mark.parametrize("clients", [1, 8])
def test_no_client_notices_a_replica_that_fails(what: str, clients: int) -> None:
    simulation = closed(quick(4, Fault(what, 1)), ALL_S, clients)
    result = simulation.result
    assert result.failed == 0
    assert result.attempts[AttemptKind.RETRY] <= 3 + clients
    assert result.share("e3", 1.5) < 0.001


@pytest.mark.parametrize("what", ["full", "refuse", "error", "slow", "hang"])
@pytest.mark.parametrize("policy", ["hybrid", "round_robin"])
def test_it_is_asked_again_within_three_seconds_of_recovery(what: str, policy: str) -> None:
    fault = Fault(what, 1, HEALED_S, extra_s=SLOW_S)
    simulation = closed(quick(4, fault), HEALED_S + 6, policy=policy)
    assert simulation.result.failed == 0
    assert asked_again_s(simulation, HEALED_S) < 3.0
    assert simulation.result.share("e3", HEALED_S + 5.5) > 0.1  # and has its part soon
    assert simulation.pool.exclusions() == {}


def test_a_hanging_replica_is_ejected_long_before_any_time_out() -> None:
    simulation = closed(quick(4, Fault("hang", 1, 50)), ALL_S, policy="round_robin")
    ejected = [t for t, line in simulation.result.lines if "e3: ejected" in line]
    assert ejected[0] < 1.6
    assert simulation.result.ttft_s(0.99) < 0.1


def test_when_all_become_slow_none_is_ejected() -> None:
    servers = [
        SimulatedServer(
            base_s=0.005, jitter=0.2, serial=False, faults=[Fault("slow", 2, extra_s=SLOW_S)]
        )
        for _ in range(4)
    ]
    simulation = closed(servers, 8)
    assert not [line for line in lines(simulation) if "ejected" in line]


def test_a_few_milliseconds_more_eject_nobody() -> None:
    servers = quick(4, Fault("slow", 0, extra_s=0.012), jitter=0.5)
    simulation = closed(servers, ALL_S, policy="round_robin")
    assert not simulation.result.lines


@pytest.mark.parametrize("policy", ["hybrid", "round_robin", "least_requests"])
def test_queues_and_long_prompts_are_no_illness(policy: str) -> None:
    servers = [gpu(1) for _ in range(4)]
    result, _ = play(policy, servers, lambda seed: prompts(75, 20, seed))
    assert not [line for _, line in result.lines if "ejected" in line]


def test_slower_hardware_is_no_illness() -> None:
    servers = [gpu(1), gpu(1), gpu(2), gpu(4)]
    result, _ = play("hybrid", servers, lambda seed: prompts(45, 20, seed))
    assert not [line for _, line in result.lines if "ejected" in line]
    assert result.share("e3") > 0.02


def test_a_flapping_replica_fails_no_client_and_its_ejections_grow() -> None:
    faults = [Fault("refuse", float(t), t + 1.0) for t in range(1, 12, 2)]
    simulation = closed(quick(4, *faults), 17)
    result = simulation.result
    assert result.failed == 0
    lengths = [float(line.split()[5]) for line in lines(simulation) if "ejected for" in line]
    assert lengths == sorted(lengths)
    assert lengths[-1] == EjectConfig().max_s
    assert result.share("e3", 16.5) > 0.1


def test_all_replicas_down_fails_at_once_and_recovers_at_once() -> None:
    servers = [
        SimulatedServer(base_s=0.005, serial=False, faults=[Fault("refuse", 1, 3)])
        for _ in range(4)
    ]
    simulation = closed(servers, ALL_S)
    during = [d for d in simulation.result.done if 1.1 < d.at_s < 3]
    assert during
    assert not any(done.ok for done in during)
    assert all(done.end_s - done.at_s < 0.1 for done in during)
    after = [d for d in simulation.result.done if d.at_s > 3.05]
    assert all(done.ok for done in after)


def test_one_endpoint_alone_is_never_out() -> None:
    simulation = closed(quick(1, Fault("slow", 1, extra_s=SLOW_S)), ALL_S, clients=4)
    assert simulation.result.failed == 0
    assert not simulation.result.lines


def test_half_of_a_pool_at_most_is_ejected_for_errors() -> None:
    servers = [
        SimulatedServer(base_s=0.005, serial=False, faults=[Fault("error", 1)] if i else [])
        for i in range(4)
    ]
    simulation = closed(servers, 3)
    out = [name for name, why in simulation.pool.exclusions().items() if "faults" in why]
    assert len(out) == 2


def test_hedges_stay_within_their_budget() -> None:
    servers = [SimulatedServer(base_s=0.02, jitter=0.0, serial=False) for _ in range(4)]
    for server in servers:
        server.jitter = 0.9  # so many are late that the quantile is passed all the time
    simulation = closed(servers, 20)
    attempts = simulation.result.attempts
    assert 0 < attempts[AttemptKind.HEDGE] <= 0.05 * attempts[AttemptKind.FIRST] + 25
