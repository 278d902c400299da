"""The interpreter bites: schedules that lose, repeat or misdirect a contribution are refused."""

from collections.abc import Iterator

import pytest

from tests.topology.graphs import both_ways, direct, racks, star
from trainmesh.errors import PlanError
from trainmesh.plan.schedule import Schedule, schedule
from trainmesh.plan.stages import Message
from trainmesh.topology.cost import link_loads, plan_cost
from trainmesh.topology.graph import Kind, LinkGraph, Node
from trainmesh.topology.planner import BUILT_IN
from trainmesh.topology.request import PlanRequest
from trainmesh.topology.validate import flows, interpret
from trainmesh.types import Collective, Plan

RING = Plan(algorithm="ring", world_size=3, order=(0, 2, 1))


def rounds() -> list[list[Message]]:
    return [list(messages) for messages in schedule(RING).rounds]


def run(messages: list[list[Message]]) -> None:
    interpret(3, Schedule(schedule(RING).chunks, tuple(messages)))


def test_the_right_schedule_passes() -> None:
    run(rounds())


def test_leaving_out_any_one_message_is_noticed() -> None:
    for number, messages in enumerate(rounds()):
        for place in range(len(messages)):
            broken = rounds()
            del broken[number][place]
            with pytest.raises(PlanError):
                run(broken)


def test_repeating_a_reduction_is_noticed() -> None:
    broken = rounds()
    broken.insert(1, broken[0])
    with pytest.raises(PlanError, match="twice"):
        run(broken)


def test_storing_where_it_should_add_is_noticed() -> None:
    broken = rounds()
    first = broken[0][0]
    broken[0][0] = Message(first.src, first.dst, first.chunk, reduce=False)
    with pytest.raises(PlanError, match="without rank"):
        run(broken)


def pods() -> LinkGraph:
    """Two of two racks of two: a hierarchy of three levels."""
    nodes = [Node("core", Kind.SWITCH)]
    links = []
    for pod in range(2):
        nodes.append(Node(f"pod{pod}", Kind.SWITCH))
        links += both_ways(f"pod{pod}", "core", 2)
    for rack in range(4):
        nodes.append(Node(f"rack{rack}", Kind.SWITCH))
        links += both_ways(f"rack{rack}", f"pod{rack // 2}", 5)
        for rank in (2 * rack, 2 * rack + 1):
            nodes.append(Node(f"g{rank}", Kind.RANK, rank))
            links += both_ways(f"g{rank}", f"rack{rack}", 10)
    return LinkGraph(nodes, links)


GRAPHS = {
    "star of unequal NICs": star([10, 10, 5], alpha_us=5),
    "star": star([10] * 7, alpha_us=5),
    "racks": racks(range(6), uplink=5, per_rack=3),
    "pods": pods(),
    "unequal racks": direct([(0, 1, 10), (1, 2, 10), (2, 0, 10), (2, 3, 1), (3, 4, 10)]),
    "clique, for several rings": direct([(a, b, 1) for a in range(4) for b in range(a)]),
}


def plans() -> Iterator[tuple[LinkGraph, Plan]]:
    for graph in GRAPHS.values():
        for collective in Collective:
            for planner in BUILT_IN.values():
                plan = planner(graph, PlanRequest(10**8, collective))
                if plan is not None:
                    yield graph, plan


PLANS = list(plans())


def test_all_kinds_of_plans_are_among_them() -> None:
    every = [plan for _, plan in PLANS]
    assert {plan.algorithm for plan in every} == set(BUILT_IN)
    assert any(len(plan.rings) > 1 for plan in every)
    assert any(len(plan.levels) > 1 for plan in every)
    assert any(len({len(island) for island in plan.islands}) == 2 for plan in every)
    assert any(len(plan.trees) == 2 and plan.algorithm == "tree" for plan in every)


@pytest.mark.parametrize(
    ("graph", "plan"), PLANS, ids=[f"{p.algorithm} {p.collective} {p.world_size}" for _, p in PLANS]
)
def test_any_one_message_lost_or_sent_elsewhere_or_twice_is_noticed(
    graph: LinkGraph, plan: Plan
) -> None:
    whole = schedule(plan)

    def prove(number: int, *instead: list[Message]) -> None:
        rounds = (*whole.rounds[:number], *instead, *whole.rounds[number + 1 :])
        changed = Schedule(whole.chunks, rounds)
        interpret(plan.world_size, changed, plan.collective)
        # What can be right all the same loads other links than the plan says.
        sent, said = link_loads(flows(changed), graph), plan_cost(plan, graph).loads
        if any(abs(sent.get(name, 0.0) - said.get(name, 0.0)) > 1e-9 for name in {*sent, *said}):
            raise PlanError("loads")

    for number, messages in enumerate(whole.rounds):
        for place, message in enumerate(messages):
            others = [*messages[:place], *messages[place + 1 :]]
            with pytest.raises(PlanError, match="without rank"):
                prove(number, others)
            with pytest.raises(PlanError, match="twice" if message.reduce else "loads"):
                prove(number, messages, [message])
            for dst in {*range(plan.world_size)} - {message.src, message.dst}:
                to = message._replace(dst=dst, via=None)
                with pytest.raises(PlanError):
                    prove(number, [*others, to])
