"""Every planner's schedules are proven, and the proof bites: any single wrong message is found."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from tests.topology.graphs import both_ways, direct, hgx, racks, random_graphs, star
from trainmesh.errors import PlanError
from trainmesh.plan.schedule import Schedule, schedule, stages
from trainmesh.plan.shape import check_shape
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.graph import Kind, LinkGraph, Node
from trainmesh.topology.planner import BUILT_IN, choose
from trainmesh.topology.request import ANY, PlanRequest
from trainmesh.topology.validate import check_loads, interpret, validate
from trainmesh.types import Algorithm, Collective, Hop, Plan, Tree
from trainmesh.wire import decode, encode

NBYTES = 10**8


def unequal_racks() -> LinkGraph:
    """Racks of 3 and 2 hosts with a narrow link between them."""
    nodes = [Node(f"leaf{i}", Kind.SWITCH) for i in range(2)]
    links = both_ways("leaf0", "leaf1", 2)
    for rank in range(5):
        nodes.append(Node(f"g{rank}", Kind.RANK, rank))
        links += both_ways(f"g{rank}", f"leaf{rank // 3}", 10)
    return LinkGraph(nodes, links)


GRAPHS = {
    "star": star([10, 10, 10, 5], alpha_us=3),
    "racks": racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=10),
    "hosts": hgx(2, 12.5),
    "unequal racks": unequal_racks(),
    "square": direct([(0, 1, 2), (1, 2, 2), (2, 3, 2), (3, 0, 1)]),
}


def plans() -> list[tuple[str, LinkGraph, Plan]]:
    found = []
    for name, graph in GRAPHS.items():
        for collective in Collective:
            for planner in BUILT_IN.values():
                plan = planner(graph, PlanRequest(NBYTES, collective))
                if plan is not None:
                    label = f"{name} {plan.algorithm} {collective.value}"
                    found.append((label, graph, plan))
    return found


PLANS = plans()
IDS = [label for label, _, _ in PLANS]


@pytest.mark.parametrize(("label", "graph", "plan"), PLANS, ids=IDS)
def test_plans_are_proven_and_survive_the_wire(label: str, graph: LinkGraph, plan: Plan) -> None:
    validate(plan, graph.world_size)
    check_loads(plan, graph, plan_cost(plan, graph).loads)
    assert decode(encode(plan), Plan, what=label) == plan


@pytest.mark.parametrize(("label", "graph", "plan"), PLANS, ids=IDS)
def test_a_message_left_out_or_added_twice_is_found(
    label: str, graph: LinkGraph, plan: Plan
) -> None:
    whole = schedule(plan)
    places = [(i, j) for i, messages in enumerate(whole.rounds) for j in range(len(messages))]
    for i, j in random.Random(label).sample(places, min(12, len(places))):
        rounds = [list(messages) for messages in whole.rounds]
        message = rounds[i].pop(j)
        left_out = Schedule(whole.chunks, tuple(rounds))
        with pytest.raises(PlanError, match="would end without"):
            interpret(plan.world_size, left_out, plan.collective)
        if message.reduce:
            twice = (*whole.rounds[: i + 1], [message], *whole.rounds[i + 1 :])
            with pytest.raises(PlanError, match="twice"):
                interpret(plan.world_size, Schedule(whole.chunks, twice), plan.collective)


@pytest.mark.parametrize(("label", "graph", "plan"), PLANS, ids=IDS)
def test_a_load_that_was_not_reckoned_with_is_found(
    label: str, graph: LinkGraph, plan: Plan
) -> None:
    loads = dict(plan_cost(plan, graph).loads)
    busiest = max(loads, key=lambda name: loads[name])
    for wrong in ({**loads, busiest: loads[busiest] * 1.001}, {**loads, "a->b": 0.1}):
        with pytest.raises(PlanError, match="cross"):
            check_loads(plan, graph, wrong)


def test_three_levels_are_the_same_bytes_on_every_link_as_their_proof() -> None:
    graph = racks(range(16), uplink=5, per_rack=4)
    levels = (
        tuple((2 * i, 2 * i + 1) for i in range(8)),
        tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(4)),
    )
    for collective in Collective:
        plan = Plan(
            algorithm="hierarchical",
            world_size=16,
            order=tuple(range(16)),
            islands=levels[0],
            levels=levels,
            collective=collective,
        )
        validate(plan, 16)
        check_loads(plan, graph, plan_cost(plan, graph).loads)
    assert len(stages(replace(plan, collective=Collective.ALLREDUCE))) == 5


TREE = Tree(0, 1.0, (Hop(2, 1), Hop(1, 0)), (Hop(0, 1), Hop(1, 2)))


def forest(*trees: Tree, collective: Collective = Collective.ALLREDUCE) -> Plan:
    return Plan(
        algorithm=Algorithm.FOREST,
        world_size=3,
        order=(0, 1, 2),
        trees=trees,
        collective=collective,
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (forest(), "no trees"),
        (forest(replace(TREE, share=0.5)), "add up to 0.5"),
        (forest(replace(TREE, down=(Hop(1, 2), Hop(0, 1)))), "before it has received"),
        (forest(replace(TREE, down=(Hop(0, 1), Hop(0, 1)))), "reached twice"),
        (forest(replace(TREE, down=(Hop(0, 1),))), "reaches 2 of 3"),
        (forest(replace(TREE, up=())), "only broadcasts"),
        (forest(replace(TREE, up=()), collective=Collective.ALLGATHER), "must be equal"),
        (
            Plan(algorithm="sharded", world_size=3, order=(0, 1, 2), shares=(0.5, 0.5)),
            "2 shares for 3",
        ),
        (
            Plan(algorithm="sharded", world_size=3, order=(0, 1, 2), shares=(0.5, 0.5, 0.5)),
            "add up",
        ),
        (
            Plan(algorithm="ring", world_size=3, order=(0, 1, 2), rings=((0, 1, 2),)),
            "1 rings, but 0 shares",
        ),
        (
            Plan(
                algorithm="hierarchical",
                world_size=4,
                order=(0, 1, 2, 3),
                islands=((0, 1), (2, 3)),
                levels=(((0, 1), (2, 3)), ((0, 2), (1, 3))),
            ),
            "splits an island",
        ),
    ],
)
def test_malformed_plans_are_refused_with_the_reason(wrong: Plan, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        check_shape(wrong, wrong.world_size)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(random_graphs(max_ranks=9))
def test_on_any_graph_every_candidate_is_proven_and_below_the_bound(graph: LinkGraph) -> None:
    for collective in Collective:
        choice = choose(graph, [NBYTES], collective=collective, executors=ANY, margin=0.0)
        assert choice.chosen == choice.candidates[0].algorithm
        for plan in choice.candidates:
            validate(plan, graph.world_size)
            assert 0 < plan.efficiency <= 1 + 1e-9
            assert plan.busy_s <= plan.predicted_s * (1 + 1e-9)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(random_graphs(max_ranks=12))
def test_a_route_hands_on_what_it_gets(graph: LinkGraph) -> None:
    for src in range(graph.world_size):
        for dst in range(graph.world_size):
            balance = dict.fromkeys((node.name for node in graph.nodes), 0.0)
            for name, part in graph.route(src, dst).parts:
                link = graph.link(name)
                balance[link.src] -= part
                balance[link.dst] += part
            if src != dst:
                balance[graph.rank_node(src)] += 1
                balance[graph.rank_node(dst)] -= 1
            assert all(abs(rest) < 1e-9 for rest in balance.values())


def test_several_spines_share_what_crosses_them() -> None:
    nodes = [Node(f"spine{i}", Kind.SWITCH) for i in range(3)]
    links = []
    for leaf in range(2):
        nodes.append(Node(f"leaf{leaf}", Kind.SWITCH))
        for spine in range(3):
            links += both_ways(f"leaf{leaf}", f"spine{spine}", 10)
    for rank in range(4):
        nodes.append(Node(f"h{rank}", Kind.RANK, rank))
        links += both_ways(f"h{rank}", f"leaf{rank // 2}", 10)
    fabric = LinkGraph(nodes, links)
    parts = dict(fabric.route(0, 2).parts)
    assert parts["leaf0->spine1"] == parts["spine2->leaf1"] == pytest.approx(1 / 3)
    assert parts["h0->leaf0"] == parts["leaf1->h2"] == 1
    assert fabric.route(0, 0).parts == ()


def test_a_slow_nic_gets_less_to_carry_on_a_large_cluster() -> None:
    """Three hosts on two rails, one NIC at half its speed: the places share 2 : 1 (by hand: 75 GB/s
    of NICs a host instead of 100, and half an all-reduce's bytes each way over them)."""
    nodes = [Node(f"rail{rail}", Kind.SWITCH) for rail in range(2)]
    links = []
    for host in range(3):
        nodes.append(Node(f"nvswitch{host}", Kind.SWITCH))
        for gpu in range(2):
            rank = 2 * host + gpu
            nodes.append(Node(f"g{rank}", Kind.RANK, rank))
            links += both_ways(f"g{rank}", f"nvswitch{host}", 900)
            links += both_ways(f"g{rank}", f"rail{gpu}", 50 if rank else 25)
    graph = LinkGraph(nodes, links)
    plan = BUILT_IN["hierarchical"](graph, PlanRequest(NBYTES))
    assert plan is not None
    assert plan.shares == pytest.approx((1 / 3, 2 / 3))
    validate(plan, 6)
    cost = plan_cost(plan, graph)
    check_loads(plan, graph, cost.loads)
    assert 1 / cost.busiest_s_per_byte == pytest.approx(75e9 / (2 * 2 / 3))
    for wrong, reason in (
        (replace(plan, shares=(1.0,)), "1 shares for islands of 2"),
        (replace(plan, shares=(0.5, 0.6)), "add up"),
        (replace(plan, collective=Collective.ALLGATHER), "only an allreduce"),
    ):
        with pytest.raises(PlanError, match=reason):
            check_shape(wrong, 6)


def test_unequal_places_on_three_levels_are_proven_too() -> None:
    graph = racks(range(16), uplink=5, per_rack=4)
    levels = (
        tuple((2 * i, 2 * i + 1) for i in range(8)),
        tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(4)),
    )
    plan = Plan(
        algorithm="hierarchical",
        world_size=16,
        order=tuple(range(16)),
        islands=levels[0],
        levels=levels,
        shares=(0.75, 0.25),
    )
    validate(plan, 16)
    check_loads(plan, graph, plan_cost(plan, graph).loads)
