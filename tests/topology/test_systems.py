"""The planner on the reference systems: bounds exact, plans as close as they are said to come."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.topology.systems import TABLE, System, build, exact
from trainmesh.topology.answer import PlanAnswer, answer
from trainmesh.topology.cost import predict
from trainmesh.topology.planners.ring import best_order
from trainmesh.types import Collective, Plan

NBYTES = 10**9
NEAR = 1e-6  # relative
ONE_WAY = (Collective.ALLGATHER, Collective.REDUCE_SCATTER)


def by_name(system: System) -> str:
    return system["name"]


def algbw(found: PlanAnswer) -> float:
    return NBYTES / found.bound.time_s / 1e9


def plans(found: PlanAnswer) -> dict[str, Plan]:
    return {plan.algorithm: plan for plan in found.choice.candidates}


@pytest.mark.parametrize("collective", ONE_WAY)
@pytest.mark.parametrize("system", TABLE, ids=by_name)
def test_gathers_and_scatters(system: System, collective: Collective) -> None:
    graph = build(system)
    found = answer(graph, collective, NBYTES)
    assert algbw(found) == pytest.approx(exact(system["allgather"]), rel=NEAR)
    assert found.bound.kind == "cut"
    assert found.bound.exact
    sending = {graph.rank_node(rank) for rank in range(graph.world_size)} & {*found.bound.cut}
    shards = len(sending)
    if collective == Collective.REDUCE_SCATTER:
        shards = graph.world_size - shards
    assert shards == system["sending"]
    assert 0.999 <= plans(found)["forest"].efficiency <= 1 + 1e-9


@pytest.mark.parametrize("system", TABLE, ids=by_name)
def test_all_reduce(system: System) -> None:
    graph = build(system)
    found = answer(graph, Collective.ALLREDUCE, NBYTES)
    assert algbw(found) == pytest.approx(exact(system["allreduce"]), rel=NEAR)
    assert found.bound.kind == system["kind"]
    assert found.bound.exact
    assert algbw(found) >= exact(system["allgather"]) / 2 * (1 - 1e-9)
    forest = plans(found)["forest"]
    assert len(forest.trees) <= 64
    assert 0.98 <= forest.efficiency <= 1 + 1e-9
    assert all(0 < plan.efficiency <= 1 + 1e-9 for plan in found.choice.candidates)
    if system["build"] == "star":
        assert plans(found)["sharded"].efficiency >= 0.99
    if "ring" in system:
        ring = Plan(algorithm="ring", world_size=graph.world_size, order=best_order(graph))
        assert NBYTES / predict(ring, graph, NBYTES) / 1e9 == pytest.approx(
            exact(system["ring"]), rel=NEAR
        )


@pytest.mark.parametrize("name", ["2 racks x 4, uplink 10", "4 racks x 4, uplink 50"])
def test_pipelined_hierarchical_plans_reach_the_bound_where_racks_limit(name: str) -> None:
    [system] = [s for s in TABLE if s["name"] == name]
    for collective in Collective:
        found = answer(build(system), collective, NBYTES)
        assert plans(found)["hierarchical"].efficiency >= 0.99


def test_the_documentation_shows_this_table() -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, root / "scripts" / "reference_table.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout in (root / "docs" / "planning.md").read_text()
