"""What ring orders cost on racks, exact; and how one plan is chosen."""

import tomllib
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import pytest

from tests.topology.graphs import racks, star
from tests.topology.requests import PLAIN
from trainmesh.topology.bounds import bound
from trainmesh.topology.cost import busbw_bytes_per_s, predict
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import choose
from trainmesh.topology.planners import hierarchical, native, ring
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Plan

NBYTES = 10**9
NEAR = 1e-6  # relative


class Racks(TypedDict):
    uplink: float
    slow_host: NotRequired[float]
    bound: float
    contiguous: float
    interleaved: NotRequired[float]
    hierarchical: NotRequired[float]


class ByName(TypedDict):
    uplink: float
    by_name: float
    ring: float


class Table(TypedDict):
    """reference.toml, which says what the keys mean."""

    racks: list[Racks]
    by_name: list[ByName]


TABLE = cast(Table, tomllib.loads(Path(__file__).with_name("reference.toml").read_text()))


def algbw(plan: Plan | None, graph: LinkGraph) -> float:
    assert plan is not None
    return NBYTES / predict(plan, graph, NBYTES) / 1e9


@pytest.mark.parametrize("case", TABLE["racks"], ids=lambda case: f"uplink {case['uplink']}")
def test_racks(case: Racks) -> None:
    uplink, slow_host = case["uplink"], case.get("slow_host")
    contiguous = racks(range(8), uplink=uplink, slow_host=slow_host)
    interleaved = racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=uplink, slow_host=slow_host)
    for graph in (contiguous, interleaved):
        limit = NBYTES / bound(graph, NBYTES).time_s / 1e9
        assert limit == pytest.approx(case["bound"], rel=NEAR)
        best = algbw(ring.plan(graph, PlanRequest(NBYTES, executors=PLAIN)), graph)
        assert best == pytest.approx(case["contiguous"], rel=NEAR)
    assert algbw(
        native.plan(contiguous, PlanRequest(1, executors=PLAIN)), contiguous
    ) == pytest.approx(case["contiguous"], rel=NEAR)
    if "interleaved" in case:
        assert algbw(
            native.plan(interleaved, PlanRequest(1, executors=PLAIN)), interleaved
        ) == pytest.approx(case["interleaved"], rel=NEAR)
    if "hierarchical" in case:
        plan = hierarchical.plan(interleaved, PlanRequest(NBYTES, executors=PLAIN))
        assert algbw(plan, interleaved) == pytest.approx(case["hierarchical"], rel=NEAR)


@pytest.mark.parametrize("case", TABLE["by_name"], ids=lambda case: f"uplink {case['uplink']}")
def test_rank_order_by_host_name(case: ByName) -> None:
    """node1, node10, ... sorted as text: torchrun's rank order on 4 racks of 4 hosts."""
    hosts = [f"node{i}" for i in range(1, 17)]
    rank_of = {host: rank for rank, host in enumerate(sorted(hosts))}
    graph = racks([rank_of[host] for host in hosts], uplink=case["uplink"], nic=100)
    assert algbw(native.plan(graph, PlanRequest(1, executors=PLAIN)), graph) == pytest.approx(
        case["by_name"], rel=NEAR
    )
    assert algbw(ring.plan(graph, PlanRequest(1, executors=PLAIN)), graph) == pytest.approx(
        case["ring"], rel=NEAR
    )


def test_the_choice_explains_itself() -> None:
    graph = racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=10)
    choice = choose(graph, [NBYTES])
    assert choice.chosen == "hierarchical"
    [winner, *_] = choice.candidates
    assert 0.9 < winner.efficiency < 1  # a message costs an executor something
    assert winner.bound_kind == "cut"
    assert set(winner.bound_cut) in (
        {"leaf0", "h0", "h1", "h2", "h3"},
        {"leaf1", "h4", "h5", "h6", "h7"},
        {"core", "leaf0", "h0", "h1", "h2", "h3"},
        {"core", "leaf1", "h4", "h5", "h6", "h7"},
    )
    words = " ".join(choice.explain)
    for part in ("leaf", "10.0 GB/s", "Chosen: hierarchical"):
        assert part in words


def test_native_stays_where_nothing_is_to_be_gained() -> None:
    assert choose(star([10] * 4), [NBYTES]).chosen == "native"
    assert choose(star([10]), [NBYTES]).chosen == "native"
    assert choose(star([10] * 4), [NBYTES], only="ring").chosen == "ring"
    # Within the margin is not enough.
    graph = racks([0, 2, 1, 3], uplink=40, nic=25, per_rack=2)
    assert choose(graph, [NBYTES], margin=0.05).chosen == "ring"
    assert choose(graph, [NBYTES], margin=0.5).chosen == "native"


def test_calibration_decides_by_what_executors_really_do() -> None:
    graph = racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=10)
    slow = dict.fromkeys(("hierarchical", "tree", "sharded", "forest"), 9.0)
    assert choose(graph, [NBYTES], calibration=slow).chosen == "ring"


def test_busbw_is_that_of_nccl_tests() -> None:
    assert busbw_bytes_per_s(8e9, 1.0, 8) == pytest.approx(14e9)
