"""HSDP's replica groups, as the coordinator sees them."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from trainmesh.coordinator.coordinator import Coordinator
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.graph import LinkGraph, Provenance, host_graph
from trainmesh.types import (
    BucketTiming,
    Collective,
    Hello,
    Hint,
    NodeReport,
    Note,
    PairTime,
    RankReport,
    StepReport,
)

GROUPS = {0: (0, 2, 4), 1: (1, 3, 5), 2: (0, 2, 4), 3: (1, 3, 5), 4: (0, 2, 4), 5: (1, 3, 5)}
NODES = {"a": [0, 1], "b": [2, 3], "c": [4, 5]}


def hellos(
    replicas: Mapping[int, tuple[int, ...]],
    nodes: Mapping[str, list[int]] = NODES,
    collective: Collective = Collective.ALLREDUCE,
) -> dict[int, Hello]:
    return {
        rank: Hello(
            rank=rank,
            local_rank=0,
            world_size=sum(map(len, nodes.values())),
            node_rank=0,
            node=node,
            pid=1,
            clock="clock",
            backend="gloo",
            device="cpu",
            collective=collective,
            replicas=replicas.get(rank, ()),
        )
        for node, ranks in nodes.items()
        for rank in ranks
    }


def test_ddp_is_one_group_of_all() -> None:
    replicas = Replicas.of(hellos({}))
    asked = Settings(compression="bf16")
    graph = host_graph(NODES)
    assert replicas.groups == ((0, 1, 2, 3, 4, 5),)
    assert replicas.nodes == NODES
    assert replicas.settings(asked) is asked
    assert replicas.share(graph) is graph
    assert replicas.words == ""


def test_hsdp_is_planned_for_one_group() -> None:
    replicas = Replicas.of(hellos(GROUPS))
    assert replicas.groups == ((0, 2, 4), (1, 3, 5))
    assert replicas.size == 3
    assert replicas.nodes == {"a": [0], "b": [1], "c": [2]}
    settings = replicas.settings(Settings(only="ring", compression="bf16"))
    assert (settings.only, settings.fusion_bytes, settings.compression) == ("ring", 0, "none")
    assert "2 groups of 3 replicas" in replicas.words


@pytest.mark.parametrize(
    "found",
    [
        hellos({}, collective=Collective.REDUCE_SCATTER),
        hellos({0: (0, 2), 2: (0, 2)}),  # others all-reduce with all: pipeline stages
        hellos({0: (0, 2, 4), 1: (1, 3), 2: (0, 2, 4), 3: (1, 3), 4: (0, 2, 4), 5: (5,)}),
    ],
)
def test_what_no_plan_fits_is_only_timed(found: dict[int, Hello]) -> None:
    replicas = Replicas.of(found)
    assert not replicas.follows_plans
    assert replicas.size == 6
    assert replicas.settings(Settings(only="ring")).only == "native"
    assert "no plan" in replicas.words


def test_a_probes_pairs_become_those_of_the_plans_ranks() -> None:
    replicas = Replicas.of(hellos(GROUPS))
    whole = host_graph(NODES)
    share = replicas.share(whole)
    pair = PairTime(3, 0, 0, 4, 1000, 0.5, 0.1)  # between the first ranks of a and c
    (found,) = replicas.pairs([pair], whole, share)
    # Two groups share the link, so each has half of what the message had.
    assert found == PairTime(3, 0, 0, 2, 1000, 1.0, 0.1)


def test_pairs_of_nodes_and_ranks_outside_the_group_are_left_out() -> None:
    nodes = {"a": [0], "b": [1], "c": [2], "d": [3]}
    across = Replicas.of(hellos({0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}, nodes))
    whole = host_graph(nodes)
    pairs = [PairTime(1, 0, src, dst, 9, 1.0, 0.1) for src in range(4) for dst in range(4)]
    pairs = [pair for pair in pairs if pair.src != pair.dst]
    found = across.pairs(pairs, whole, across.share(whole))
    assert [(pair.src, pair.dst, pair.transfer_s) for pair in found] == [(0, 1, 1.0), (1, 0, 1.0)]

    one = {"a": [0, 1, 2, 3]}
    inside = Replicas.of(hellos({0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}, one))
    whole = host_graph(one)
    found = inside.pairs(pairs, whole, inside.share(whole))
    assert [(pair.src, pair.dst) for pair in found] == [(0, 1), (1, 0)]


def greet(coordinator: Coordinator, found: dict[int, Hello]) -> None:
    take(coordinator, [RankReport(hello=hello) for hello in found.values()], 0.0)


def take(coordinator: Coordinator, reports: list[RankReport], now_s: float) -> None:
    node_report = NodeReport(node="a", sequence=1, reports=tuple(reports), dropped=0)
    coordinator.report(node_report, now_s)


def steps(first: int, epoch: int, *, ranks: range = range(6)) -> list[RankReport]:
    found = []
    for rank in ranks:
        reports = tuple(
            StepReport(
                rank,
                0,
                step,
                epoch,
                step * 10**8,
                (step + 1) * 10**8,
                None,
                (BucketTiming(0, 10**6, step * 10**8, step * 10**8, step * 10**8 + 5 * 10**7),),
            )
            for step in range(first, first + 24)
        )
        found.append(RankReport(steps=reports))
    return found


def hint_of(coordinator: Coordinator, now_s: float) -> Hint | None:
    hint = coordinator.decide(now_s).hint
    if hint is not None:
        coordinator.hint_seen(hint, now_s)
    return hint


def test_a_coordinator_plans_for_the_replicas_and_waits_for_all_ranks() -> None:
    assumed = host_graph(NODES)
    links = [replace(link, provenance=Provenance.DECLARED) for link in assumed.links]
    declared = LinkGraph(assumed.nodes, links)
    coordinator = Coordinator("job", Settings(only="ring"), declared)
    greet(coordinator, hellos(GROUPS))
    take(coordinator, steps(0, 0), 1.0)
    hint = hint_of(coordinator, 2.0)
    assert hint is not None
    assert (hint.plan.algorithm, hint.plan.world_size) == ("ring", 3)
    notes = [Note(kind="switched", rank=rank, text="ring", step=30, epoch=1) for rank in range(6)]
    take(coordinator, [RankReport(notes=(note,)) for note in notes[:5]], 3.0)
    assert coordinator.status(3.0).epoch == 0
    take(coordinator, [RankReport(notes=tuple(notes[5:]))], 3.0)
    status = coordinator.status(3.0)
    assert status.epoch == 1
    assert status.world_size == 6
    assert any("all 6 ranks switched to ring" in event.text for event in status.events)


def test_a_coordinator_only_watches_reduce_scatters() -> None:
    coordinator = Coordinator("job", Settings(only="ring", compression="bf16"), None)
    greet(coordinator, hellos({}, collective=Collective.REDUCE_SCATTER))
    for first in range(0, 240, 24):
        take(coordinator, steps(first, 0), float(first))
        assert hint_of(coordinator, float(first) + 1) is None
    status = coordinator.status(300.0)
    assert status.step == 239
    assert status.exposed_share == pytest.approx(0.5)
    assert any("no plan is made" in event.text for event in status.events)


def test_shards_with_one_replica_leave_the_coordinator_alive() -> None:
    """A mesh of 1 replica of 6 shards: there is no link between the ranks of a plan."""
    coordinator = Coordinator("job", Settings(only="ring"), None)
    greet(coordinator, hellos({rank: (rank,) for rank in range(6)}))
    take(coordinator, steps(0, 0), 1.0)
    assert hint_of(coordinator, 2.0) is None
    status = coordinator.status(3.0)
    assert (status.world_size, len(status.ranks), status.exposed_share) == (6, 6, None)
    assert any("one replica" in event.text for event in status.events)
    assert [item.refusal for item in status.asked] == [
        "each shard has one replica, so nothing is all-reduced"
    ]


def test_a_share_is_not_zero_where_nothing_was_timed() -> None:
    """Agents leave out the bucket times of most steps, and a new plan has no steps yet."""
    coordinator = Coordinator("job", Settings(only="ring"), None)
    greet(coordinator, hellos({}))
    take(coordinator, steps(0, 0), 1.0)
    bare = [
        RankReport(steps=(StepReport(rank, 0, 24, 0, 24 * 10**8, 25 * 10**8, None, ()),))
        for rank in range(6)
    ]
    take(coordinator, bare, 2.0)
    status = coordinator.status(2.0)
    assert status.step == 24
    assert status.exposed_share == pytest.approx(0.5)
    assert [rank.exposed_share for rank in status.ranks] == [pytest.approx(0.5)] * 6
    assert [rank.skew_s for rank in status.ranks] == [0.0] * 6
    hint = hint_of(coordinator, 3.0)
    assert hint is not None
    notes = [Note(kind="switched", rank=rank, text="", step=30, epoch=1) for rank in range(6)]
    take(coordinator, [RankReport(notes=(note,)) for note in notes], 3.0)
    assert coordinator.status(3.0).epoch == 1
    assert coordinator.status(3.0).exposed_share is None


def test_ranks_that_are_missing_do_not_make_the_job_empty() -> None:
    coordinator = Coordinator("job", Settings(), None)
    some = dict(list(hellos({}).items())[:4])
    greet(coordinator, some)
    take(coordinator, steps(0, 0, ranks=range(4)), 1.0)
    status = coordinator.status(2.0)
    assert (status.world_size, len(status.ranks), status.num_steps) == (6, 4, 24)
