"""The pure decisions one by one: tables, and properties that hold for all jobs."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.graphs import racks, star
from trainmesh.coordinator.measure import MeasuredStep
from trainmesh.coordinator.tuning.acceptance import delivers, harm, quicker
from trainmesh.coordinator.tuning.calibration import LEAST, MOST, Calibration
from trainmesh.coordinator.tuning.change_detection import (
    baseline,
    change,
    gap_s,
    probe_bytes,
    probe_s,
)
from trainmesh.coordinator.tuning.codec_choice import Sending, advice, better_codec
from trainmesh.coordinator.tuning.comm_config import CommConfig, grouped, same_way
from trainmesh.coordinator.tuning.fusion_size import Overhead, fusion_size, overhead, waiting_s
from trainmesh.coordinator.tuning.link_state import Links
from trainmesh.coordinator.tuning.replan import Planned, predicted_s, replan
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.errors import WireError
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import (
    ClassFit,
    CodecCost,
    Hop,
    LinkCost,
    LinkOrigin,
    PairTime,
    Plan,
    RankReport,
    Tree,
)
from trainmesh.wire import decode, encode

MB = 1_000_000
START = Calibration({"hierarchical": 1.6})
SETTINGS = Settings()


def step(
    transfers: list[tuple[int, float]],
    *,
    number: int = 5,
    step_s: float = 0.1,
    share: float = 0.2,
    arrivals_s: list[float] | None = None,
) -> MeasuredStep:
    times = tuple(transfers)
    arrivals = tuple(arrivals_s or [0.0] * len(times))
    return MeasuredStep(number, 0, step_s, share, times, times, times, arrivals)


def waiting(step_ms: float, waiting_ms: float, transfer_ms: float) -> list[MeasuredStep]:
    one = step([(1, transfer_ms / 1e3)], step_s=step_ms / 1e3, share=waiting_ms / step_ms)
    return [one] * 3


# judging


@pytest.mark.parametrize(
    ("step_ms", "waiting_ms", "transfer_ms", "expected"),
    [
        (100, 20, 10, False),
        (112, 32, 10, True),  # costs more than it brings
        (112, 32, 5, False),  # the buckets did become faster: something else makes it wait
        (130, 25, 10, False),  # a busy machine: the compute part grew
        (105, 25, 10, False),  # noise
        (101, 21, 13, True),  # the buckets take much longer
        (99, 19, 13, False),  # but nothing waits for them
    ],
)
def test_harm_is_longer_waiting_for_no_faster_buckets(
    step_ms: float, waiting_ms: float, transfer_ms: float, expected: bool
) -> None:
    after = waiting(step_ms, waiting_ms, transfer_ms)
    harmful, words = harm(waiting(100, 20, 10), after, SETTINGS)
    assert harmful is expected
    assert f"{step_ms:.2f} ms" in words


@pytest.mark.parametrize(
    ("waiting_ms", "transfer_ms", "expected"),
    [(20, 10, False), (20, 9.8, False), (20, 9.7, True), (17, 10, True), (18, 10, False)],
)
def test_a_plan_delivers_by_quicker_buckets_or_less_waiting(
    waiting_ms: float, transfer_ms: float, expected: bool
) -> None:
    after = waiting(100, waiting_ms, transfer_ms)
    assert delivers(waiting(100, 20, 10), after, SETTINGS) is expected


@pytest.mark.parametrize(
    ("step_ms", "least", "expected"),
    [(97, 0.025, True), (98, 0.025, False), (102, -0.025, True), (103, -0.025, False)],
)
def test_fusion_and_codecs_are_judged_by_the_step(
    step_ms: float, least: float, expected: bool
) -> None:
    better, words = quicker(waiting(100, 20, 10), waiting(step_ms, 20, 10), least=least)
    assert better is expected
    assert "before 100.00 ms" in words


# calibration


def test_factors_are_relative_to_native() -> None:
    found = START.learn("native", 1.5, "ring", 3.0)
    assert found.factor("ring") == pytest.approx(2.0)
    assert found.factor("native") == 1.0
    assert found.factors == {"hierarchical": 1.6, "ring": 2.0}
    found = found.learn("ring", 3.0, "tree", 3.3)
    assert found.factor("tree") == pytest.approx(2.2)
    back = START.learn("tree", 2.0, "native", 1.6)
    assert back.factor("tree") == pytest.approx(1.25)


def test_the_median_of_the_last_few_counts() -> None:
    found = START
    for ratio in (1.0, 4.0, 1.2, 1.1, 1.1):
        found = found.learn("native", 1.0, "ring", ratio)
    assert found.factor("ring") == pytest.approx(1.1)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.sampled_from(["native", "ring", "tree"]))
def test_factors_stay_in_bounds(before: float, after: float, name: str) -> None:
    found = START.learn(name, before, "tree", after)
    assert all(LEAST <= factor <= MOST for factor in found.factors.values())
    assert found.factor("native") == 1.0


# noticing


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0] * 20, None),
        ([1.3] * 8, 1.3),
        ([0.5] * 9, 0.5),
        ([1.3] * 7, None),
        ([1.3] * 20 + [1.1], None),
        ([1.3, 0.5] * 8, None),
        ([1.0] * 9 + [2.0] * 8, 2.0),
    ],
)
def test_a_change_is_several_steps_in_a_row(ratios: list[float], expected: float | None) -> None:
    usual = baseline([step([(100, 1.0), (200, 2.0)])] * 5)
    assert usual == {(100, 200): 3.0}
    steps = [step([(100, ratio), (200, 2 * ratio)]) for ratio in ratios]
    found = change(steps, usual, SETTINGS)
    assert found == (None if expected is None else pytest.approx(expected))


def test_sizes_that_were_never_seen_say_nothing() -> None:
    assert change([step([(7, 100.0)])] * 20, {(100,): 1.0}, SETTINGS) is None


@given(st.floats(1e3, 1e12))
def test_probe_messages_are_short_on_the_slowest_link(bandwidth: float) -> None:
    nbytes = probe_bytes(bandwidth, SETTINGS)
    assert 65_536 <= nbytes <= 8 * 1024 * 1024
    if nbytes > 65_536:
        assert nbytes / bandwidth <= SETTINGS.probe_transfer_s


@given(st.floats(0, 1e4), st.booleans(), st.integers(0, 100))
def test_routine_probes_keep_to_their_share(took_s: float, urgent: bool, in_vain: int) -> None:
    gap = gap_s(took_s, SETTINGS, urgent=urgent, in_vain=in_vain)
    assert 5 <= gap < math.inf
    if not urgent:
        assert took_s <= SETTINGS.probe_share * gap * (1 + 1e-9)
        assert gap <= max(600, took_s / SETTINGS.probe_share)
    assert gap <= gap_s(took_s, SETTINGS, urgent=urgent, in_vain=in_vain + 1)


def test_a_probe_takes_the_sum_of_its_turns() -> None:
    pairs = [PairTime(1, 0, 0, 1, 9, 0.4, 0.0), PairTime(1, 0, 2, 3, 9, 0.8, 0.0)]
    pairs.append(PairTime(1, 1, 0, 2, 9, 0.4, 0.0))
    assert probe_s(pairs) == pytest.approx(1.25 * 1.2)
    assert probe_s([]) == 0


# configs


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(0, 500))
def test_groups_are_runs_of_at_least_the_fusion_size(sizes: list[int], fusion_bytes: int) -> None:
    groups = grouped(sizes, fusion_bytes)
    assert [place for group in groups for place in group] == list(range(len(sizes)))
    for group in groups[:-1]:
        assert sum(sizes[place] for place in group) >= fusion_bytes
        assert sum(sizes[place] for place in group[:-1]) < max(1, fusion_bytes)


def test_plans_are_the_same_if_they_move_the_same_bytes() -> None:
    plan = Plan(algorithm="ring", world_size=3, order=(0, 2, 1), reason="a", predicted_s=1.0)
    again = Plan(algorithm="ring", world_size=3, order=(0, 2, 1), reason="b", graph_version=9)
    other = Plan(algorithm="ring", world_size=3, order=(0, 1, 2))
    assert same_way(plan, again)
    assert not same_way(plan, other)
    assert CommConfig(plan, 8 * MB, "bf16").words == "ring, fused to 8.00 MB, bf16"


# planning

INTERLEAVED = racks([0, 2, 1, 3], uplink=1, nic=1, per_rack=2)
NATIVE = CommConfig.native(4).plan
SIZES = [MB, 25 * MB]


def planned(
    graph: LinkGraph = INTERLEAVED,
    current: Plan = NATIVE,
    calibration: Calibration = START,
    settings: Settings = SETTINGS,
    *,
    backend: str = "gloo",
    degraded: bool = False,
    refused: Collection[str] = (),
) -> Planned:
    return replan(
        graph, SIZES, current, calibration, settings,
        backend=backend, degraded=degraded, refused=refused,
    )  # fmt: skip


def test_a_plan_takes_the_place_of_native_if_it_gains_the_margin() -> None:
    found = planned()
    assert found.plan is not None
    assert found.plan.algorithm == found.choice.chosen != "native"
    assert planned(current=found.plan).plan is None
    assert planned(settings=Settings(margin=0.9)).plan is None


def test_refused_algorithms_are_left_out() -> None:
    refused: set[str] = set()
    for _ in range(6):
        found = planned(refused=refused)
        if found.plan is None:
            break
        assert found.plan.algorithm not in refused
        refused.add(found.plan.algorithm)
    assert found.plan is None


def test_a_plan_that_brings_nothing_any_more_goes_back_to_native() -> None:
    plan = planned().plan
    assert plan is not None
    even = star([1.0] * 4)
    back = planned(graph=even, current=plan)
    assert back.plan is not None
    assert back.plan.algorithm == "native"
    assert planned(graph=even, current=plan, refused={"native"}).plan is None


def test_what_executors_cost_counts() -> None:
    slow = START
    for name in ("ring", "tree", "hierarchical", "sharded", "forest"):
        slow = slow.learn("native", 1.0, name, 4.0)
    assert planned(calibration=slow).plan is None


def test_on_nccl_the_choice_is_left_to_it_unless_a_link_is_slow() -> None:
    one_slow = star([1.0, 0.25, 1.0, 1.0])
    assert planned(graph=one_slow).choice.chosen not in ("native", "ring")
    left = planned(graph=one_slow, backend="nccl").choice
    assert {plan.algorithm for plan in left.candidates} <= {"native", "ring"}
    assert all(not plan.rings for plan in left.candidates)
    around = planned(graph=one_slow, backend="nccl", degraded=True).choice
    assert around.chosen not in ("native", "ring")
    asked = planned(graph=one_slow, backend="cpu:gloo,cuda:nccl", settings=Settings(only="tree"))
    assert asked.choice.chosen == "tree"


def test_a_plan_that_names_nodes_of_another_graph_has_no_prediction() -> None:
    up = (Hop(1, 0, ("elsewhere",)),)
    plan = Plan(
        algorithm="tree", world_size=2, order=(0, 1), trees=(Tree(0, 1.0, up, (Hop(0, 1),)),)
    )
    assert predicted_s(plan, star([1.0, 1.0]), SIZES) is None
    plug_in = Plan(algorithm="plugged", world_size=2, order=(0, 1))
    assert predicted_s(plug_in, star([1.0, 1.0]), SIZES) is None


# fusion


def test_the_overhead_is_the_intercept_of_the_line() -> None:
    steps = [step([(MB, 3e-3), (2 * MB, 5e-3), (4 * MB, 9e-3)])] * 3
    found = overhead(steps, None, 0.0)
    assert found is not None
    assert found.seconds == pytest.approx(1e-3)
    assert found.s_per_byte == pytest.approx(2e-9)


def test_the_overhead_of_buckets_of_one_size() -> None:
    steps = [step([(MB, 3e-3)] * 4)] * 3
    found = overhead(steps, None, 5e-10)
    assert found is not None
    assert found.seconds == pytest.approx(2.5e-3)
    assert found.s_per_byte == 5e-10
    known = Overhead(1e-3, 5e-10)
    found = overhead(steps, known, 1e-9)
    assert found is not None
    assert found.seconds == 1e-3
    assert found.s_per_byte == pytest.approx(2e-9)
    quick = [step([(MB, 5e-4)] * 4)] * 3
    found = overhead(quick, known, 1e-9)
    assert found is not None
    assert found.seconds == pytest.approx(1e-3 / 3)
    assert found.s_per_byte == pytest.approx(5e-10 / 3)
    assert overhead(steps, None, 2e-9) is None  # the belief may be wrong by that much


def evenly(count: int, backward_s: float) -> list[float]:
    return [backward_s * place / (count - 1) for place in range(count)]


@pytest.mark.parametrize(
    ("count", "nbytes", "overhead_s", "backward_s", "fuses"),
    [
        (32, 100_000, 2e-3, 0.02, True),  # overheads hold everything up
        (32, 100_000, 1e-6, 0.02, False),  # there are none
        (32, 100_000, 2e-3, 1.0, False),  # the backward pass hides them
        (6, 25 * MB, 2e-3, 0.1, False),  # bytes hold everything up
    ],
)
def test_which_buckets_are_fused(
    count: int, nbytes: int, overhead_s: float, backward_s: float, fuses: bool
) -> None:
    cost = Overhead(overhead_s, 1e-9)
    arrivals = evenly(count, backward_s)
    transfers = [(nbytes, cost.time_s(nbytes))] * count
    wait_s = waiting_s([nbytes] * count, arrivals, 0, cost)
    one = step(transfers, step_s=backward_s * 2 + wait_s, arrivals_s=arrivals)
    found, reason = fusion_size([one] * 16, 0, cost, 0.05)
    assert (found > 0) is fuses
    assert ("predicted to save" in reason) is fuses
    if fuses:
        assert nbytes * 2 <= found < nbytes * count
        again, _ = fusion_size([one] * 16, found, cost, 0.05)
        assert again == found


@given(
    st.lists(st.integers(1_000, 30 * MB), min_size=1, max_size=40),
    st.floats(0, 0.01),
    st.floats(0, 1e-7),
    st.floats(0, 1.0),
)
def test_fusion_is_never_predicted_to_lose(
    sizes: list[int], overhead_s: float, s_per_byte: float, backward_s: float
) -> None:
    cost = Overhead(overhead_s, s_per_byte)
    arrivals = evenly(len(sizes), backward_s) if len(sizes) > 1 else [0.0]
    one = step([(n, cost.time_s(n)) for n in sizes], step_s=1.0, arrivals_s=arrivals)
    found, _ = fusion_size([one], 0, cost, 0.05)
    gain_s = waiting_s(sizes, arrivals, 0, cost) - waiting_s(sizes, arrivals, found, cost)
    assert found == 0 or gain_s > 0.05
    assert found <= sum(sizes)


# compression

BF16 = CodecCost("bf16", 5e-10, 5e-10, 1, 2.0)
INT8 = CodecCost("int8", 1e-9, 1e-9, 2, 4.0)
POWERSGD = CodecCost("powersgd:4", 2e-8, 2e-8, 2, 50.0)
COSTS = {cost.codec: cost for cost in (BF16, INT8, POWERSGD)}


def sending(plain: Overhead, exposed_s: float, sizes: Sequence[int] = (25 * MB,) * 4) -> Sending:
    return Sending(sizes, plain, step_s=1.0, exposed_s=exposed_s)


@pytest.mark.parametrize(
    ("current", "s_per_byte", "exposed_s", "expected"),
    [
        ("none", 1e-8, 0.5, "bf16"),  # a gigabit
        ("none", 1e-8, 0.01, "none"),  # which nothing waits for
        ("none", 1e-9, 0.5, "none"),  # ten gigabits: coding takes as long as it saves
        ("bf16", 1e-8, 0.5, "int8"),
        ("bf16", 1e-6, 90.0, "int8"),
        ("bf16", 1e-9, 0.5, "none"),  # the links are fast again
        ("int8", 1e-8, 0.5, "int8"),
        ("topk:1", 1e-8, 0.0, "topk:1"),
    ],
)
def test_which_codec_pays(current: str, s_per_byte: float, exposed_s: float, expected: str) -> None:
    slow = sending(Overhead(1e-3, s_per_byte), exposed_s)
    codec, reason = better_codec(COSTS, slow, current, 0.05)
    assert codec == expected
    assert reason


def test_a_codec_that_was_tried_in_vain_is_left_out() -> None:
    slow, fast = sending(Overhead(0.0, 1e-8), 0.5), sending(Overhead(0.0, 1e-9), 0.5)
    assert better_codec(COSTS, slow, "none", 0.05, refused={"bf16"})[0] == "none"
    assert better_codec(COSTS, slow, "bf16", 0.05, refused={"int8"})[0] == "bf16"
    assert better_codec(COSTS, fast, "bf16", 0.05, refused={"none"})[0] == "bf16"


def test_small_buckets_cost_a_second_collective_each() -> None:
    slow, count = Overhead(1e-2, 1e-7), 50
    one, many = sending(slow, 0.9, [5 * MB]), sending(slow, 0.9, [5 * MB // count] * count)
    assert better_codec(COSTS, one, "bf16", 0.05)[0] == "int8"
    assert better_codec(COSTS, many, "bf16", 0.05)[0] == "bf16"


@pytest.mark.parametrize(
    ("current", "s_per_byte", "expected"),
    [("int8", 1e-6, True), ("int8", 1e-8, False), ("powersgd:2", 1e-6, False)],
)
def test_what_costs_loss_is_advised_only(current: str, s_per_byte: float, expected: bool) -> None:
    words = advice(COSTS, sending(Overhead(1e-3, s_per_byte), 0.5), current, 0.05)
    assert bool(words) is expected
    assert not words or "--compression powersgd:4 is predicted to save 500 ms" in words


@pytest.mark.parametrize(
    "numbers",
    ["", "1,2,3", "1,2,3,null", "-1,2,3,2", "1,2,3,0.5", "1,2,0,2", "null,1,1,2", "1e999,1,1,2",
     "1,1,1,1e9", "1,1,1e9,2", '"1",1,1,2'],
)  # fmt: skip
def test_costs_that_cannot_be_are_refused(numbers: str) -> None:
    names = ("encode_s_per_byte", "decode_s_per_byte", "num_collectives", "ratio")
    values = numbers.split(",") if numbers else []
    fields = ",".join(f'"{name}":{value}' for name, value in zip(names, values, strict=False))
    data = '{"codec":"a"%s}' % (f",{fields}" if fields else "")
    with pytest.raises(WireError):
        decode(data.encode(), CodecCost, what="cost")


def test_a_cost_comes_as_it_was_sent() -> None:
    report = RankReport(costs=(POWERSGD,))
    assert decode(encode(report), RankReport, what="report") == report
    assert POWERSGD.name == "powersgd"


@pytest.mark.parametrize("link_class", ["nvlink", "xgmi", "infiniband"])
def test_links_that_a_tcp_probe_does_not_take_are_not_measured_by_one(link_class: str) -> None:
    """On one host: the training's bytes go over NVLink or xGMI, a probe's through the kernel."""
    graph = star([25.0] * 4)
    ranks = {"host": range(4)}
    assert Links(graph, ranks, "gloo").can_be_probed
    assert not Links(graph, ranks, "cpu:gloo,cuda:nccl").can_be_probed
    links = [replace(link, link_class=link_class) for link in graph.links]
    before = LinkGraph(graph.nodes, links)
    known = Links(before, {f"n{rank}": (rank,) for rank in range(4)}, "nccl")
    pairs = [
        PairTime(1, turn, src, dst, MB, 1e-2, 1e-4)
        for turn, (src, dst) in enumerate(permutations(range(4), 2))
    ]
    known.probe(pairs)
    assert known.now.links == before.links
    tcp = Links(graph, {f"n{rank}": (rank,) for rank in range(4)}, "nccl")
    tcp.probe(pairs)
    assert tcp.now.links != graph.links


def test_a_probe_never_makes_a_declared_link_faster_than_declared() -> None:
    """Ranks of one machine that stand in for hosts would measure its memory."""
    graph = star([0.1] * 4)
    links = Links(graph, {f"n{rank}": (rank,) for rank in range(4)}, "gloo")
    fast, slow = 1e-4, 4e-2  # 10 GB/s and 25 MB/s
    pairs = [
        PairTime(1, turn, src, dst, MB, slow if 0 in (src, dst) else fast, 0.0)
        for turn, (src, dst) in enumerate(permutations(range(4), 2))
    ]
    links.probe(pairs)
    speeds = [link.cost.bandwidth_bytes_per_s for link in links.now.links]
    assert max(speeds) == pytest.approx(0.1e9)
    assert min(speeds) < 0.05e9


def origin(links: Links) -> LinkOrigin:
    return links.origin


def test_where_link_costs_come_from_is_known() -> None:
    """A probe says more than buckets' times, also of those that come later."""
    graph = star([0.1] * 4)
    links = Links(graph, {f"n{rank}": (rank,) for rank in range(4)}, "gloo")
    cost = LinkCost(alpha_s=1e-4, bandwidth_bytes_per_s=8e7)
    link_class = graph.links[0].link_class
    fit = ClassFit(link_class=link_class, measured=cost, planned=cost, num_samples=9, residual=0.1)
    assert origin(links) is LinkOrigin.GIVEN
    assert links.fit(fit)
    assert origin(links) is LinkOrigin.BUCKETS
    pairs = [
        PairTime(1, turn, src, dst, MB, 4e-2 if 0 in (src, dst) else 1e-2, 0.0)
        for turn, (src, dst) in enumerate(permutations(range(4), 2))
    ]
    links.probe(pairs)
    assert links.origin is LinkOrigin.PROBES
    assert not links.fit(fit)
    assert links.origin is LinkOrigin.PROBES
