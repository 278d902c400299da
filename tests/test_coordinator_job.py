"""Whole jobs, simulated: what the coordinator makes of links that change, of noise, of executors
that don't keep what was promised, of many small buckets, and of codecs."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.simulated import MB, SimulatedJob
from tests.topology.graphs import star
from trainmesh.coordinator.coordinator import Coordinator
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import CodecCost, Hint, RankReport

SMALL = (MB, 5 * MB, 5 * MB, 2 * MB)


@cache
def hosts(*gbps: float) -> LinkGraph:
    """Hosts around a switch, by the speed of their links (GB/s)."""
    return star(gbps, alpha_us=50)


GOOD, BAD = hosts(0.125, 0.125, 0.125, 0.125), hosts(0.125, 0.125, 0.125, 0.03125)


def drop(step: int) -> LinkGraph:
    """One link is at 25 % from step 40 until step 120."""
    return BAD if 40 <= step < 120 else GOOD


def constant(graph: LinkGraph) -> Callable[[int], LinkGraph]:
    return lambda step: graph


@pytest.mark.parametrize("declared", [GOOD, None])
def test_a_link_that_drops_is_avoided_until_it_heals(declared: LinkGraph | None) -> None:
    job = SimulatedJob(drop, declared, sizes=SMALL)
    job.train(400)
    [(out, there), (back, here)] = job.plans
    assert there != "native"
    assert here == "native"
    assert out <= 96  # noticed, probed and planned, at two agreements of the ranks
    assert 120 < back <= 192
    assert job.step_s[out] < 0.8 * job.step_s[out - 1]
    assert job.step_s[-1] == pytest.approx(job.step_s[30])
    words = " ".join(job.texts("fit"))
    assert "25% of before" in words
    assert "400% of before" in words


def test_probing_takes_next_to_no_time() -> None:
    job = SimulatedJob(lambda step: BAD if step >= 40 else GOOD, GOOD, sizes=SMALL)
    job.train(3000)
    assert job.probes > 3  # it keeps looking whether the link has healed
    assert job.probing_s < 0.005 * sum(job.step_s)
    assert len(job.plans) == 1
    assert len([text for text in job.texts() if "as they were" in text]) == 1


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("declared", [GOOD, None])
def test_noise_changes_nothing(declared: LinkGraph | None, noise: float) -> None:
    job = SimulatedJob(constant(GOOD), declared, sizes=SMALL, noise=noise)
    job.train(1000)
    assert job.plans == []
    assert job.probing_s < 0.005 * sum(job.step_s)


def test_unequal_links_are_found_where_none_are_declared() -> None:
    job = SimulatedJob(constant(BAD), None, sizes=SMALL)
    job.train(200)
    assert job.probes >= 1
    assert len(job.plans) == 1
    assert job.step_s[-1] < 0.8 * job.step_s[5]


def test_two_nodes_are_not_probed() -> None:
    job = SimulatedJob(constant(hosts(0.125, 0.125)), None, sizes=SMALL)
    job.train(200)
    assert job.probes == 0
    assert job.plans == []


def test_plans_that_do_not_deliver_are_taken_back_once_each() -> None:
    slow = dict.fromkeys(("ring", "tree", "sharded", "hierarchical", "forest"), 3.0)
    job = SimulatedJob(constant(BAD), BAD, sizes=SMALL, factors=slow)
    job.train(1500)
    tried = [words for _, words in job.plans if words != "native"]
    assert len(tried) == len(set(tried)) > 0
    assert job.plans[-1][1] == "native"
    assert len(job.texts("revert")) == len(tried)
    assert "counts 3.00 times its prediction now" in job.texts("revert")[0]


@pytest.mark.slow
def test_a_plan_that_delivers_on_some_links_only_may_be_tried_on_others() -> None:
    weaker, bad = (hosts(*[0.125] * 7, 0.125 * share) for share in (0.6, 0.25))

    def links(step: int) -> LinkGraph:
        return weaker if step < 700 else bad

    weak = dict.fromkeys(("ring", "tree", "sharded", "hierarchical", "forest"), 1.4)
    job = SimulatedJob(links, weaker, sizes=SMALL, factors=weak)
    job.train(2000)
    assert [words for step, words in job.plans if step < 700][-1] == "native"
    assert job.plans[-1][1] != "native"
    assert job.step_s[-1] < 0.95 * job.step_s[701]


def test_a_busy_machine_is_no_reason_for_another_plan() -> None:
    job = SimulatedJob(constant(GOOD), GOOD, sizes=SMALL)
    job.train(60)
    job._factors = {"native": 2.0}
    job.train(600)
    assert job.plans == []
    assert 1 <= job.probes <= 3


def test_many_small_buckets_are_fused() -> None:
    fast = hosts(1.25, 1.25, 1.25, 1.25)
    job = SimulatedJob(
        constant(fast), fast, sizes=[100_000] * 31 + [60_000], overhead_s=2e-3,
        backward_s=0.02, compute_s=0.02, settings=Settings(only="ring"),
    )  # fmt: skip
    job.train(300)
    [_, (_, words)] = job.plans
    assert words.startswith("ring, fused")
    assert job.step_s[-1] < 0.6 * job.step_s[5]
    hint = job.coordinator.status(0.0).hint
    assert hint is not None
    assert hint.fusion_bytes < sum(job.sizes)
    assert "it stays" in job.texts("fit")[-1]


def test_who_asks_for_native_gets_ddps_own_buckets() -> None:
    fast = hosts(1.25, 1.25, 1.25, 1.25)
    for fusion_bytes, asked in ((None, set()), (MB, {MB})):
        job = SimulatedJob(
            constant(fast), fast, sizes=[100_000] * 31 + [60_000], overhead_s=2e-3,
            backward_s=0.02, compute_s=0.02,
            settings=Settings(only="native", fusion_bytes=fusion_bytes),
        )  # fmt: skip
        job.train(300)
        assert {hint.fusion_bytes for hint in job.hints} == asked


def test_large_buckets_are_not_fused() -> None:
    fast = hosts(1.25, 1.25, 1.25, 1.25)
    job = SimulatedJob(constant(fast), fast, sizes=[MB, *[25 * MB] * 4, 9 * MB], overhead_s=2e-3)
    job.train(300)
    assert job.hints == []


def test_fusion_that_does_not_help_is_taken_back_and_not_tried_again() -> None:
    class Deaf(SimulatedJob):
        """Its ranks fuse, and each bucket costs its overhead all the same."""

        def _step(self) -> None:
            given = self.comm_config
            self.comm_config = type(given)(given.plan)
            super()._step()
            self.comm_config = given

    fast = hosts(1.25, 1.25, 1.25, 1.25)
    job = Deaf(
        constant(fast), fast, sizes=[100_000] * 31 + [60_000], overhead_s=2e-3,
        backward_s=0.02, compute_s=0.02, settings=Settings(only="ring"),
    )  # fmt: skip
    job.train(600)
    assert [words for _, words in job.plans][2:] == ["ring"]
    assert len(job.texts("revert")) == 1


def coded(graph: LinkGraph, compression: str = "auto") -> SimulatedJob:
    job = SimulatedJob(
        constant(graph), graph, sizes=[MB, *[25 * MB] * 4, 9 * MB],
        settings=Settings(compression=compression, only="native"),
        ratios={"bf16": 2, "int8": 4, "powersgd": 50}, coding_s_per_byte=1e-9,
    )  # fmt: skip
    return job


def tell_costs(job: SimulatedJob, powersgd_s_per_byte: float = 1e-7) -> None:
    costs = (
        CodecCost("bf16", 5e-10, 5e-10, 1, 2),
        CodecCost("int8", 5e-10, 5e-10, 2, 4),
        CodecCost("powersgd", powersgd_s_per_byte, powersgd_s_per_byte, 2, 50),
    )
    job.send([RankReport(costs=costs)])


@pytest.mark.parametrize("known_at", [0, 100])
def test_on_slow_links_codecs_pay_bf16_first(known_at: int) -> None:
    job = coded(GOOD)
    job.train(known_at)
    assert job.plans == []
    tell_costs(job)
    job.train(300)
    assert [words for _, words in job.plans] == ["native, bf16", "native, int8"]
    assert job.step_s[-1] < 0.5 * job.step_s[5]
    assert job.texts("note") == []  # PowerSGD takes too long to encode here


def test_a_codec_that_costs_loss_is_advised_once() -> None:
    job = coded(GOOD)
    tell_costs(job, powersgd_s_per_byte=1e-9)
    job.train(400)
    assert [words for _, words in job.plans] == ["native, bf16", "native, int8"]
    [words] = job.texts("note")
    assert "--compression powersgd is predicted to save" in words


def test_on_fast_links_no_codec_pays() -> None:
    job = coded(hosts(12.5, 12.5, 12.5, 12.5))
    tell_costs(job)
    job.train(300)
    assert job.hints == []


def test_a_codec_goes_when_the_links_are_fast_again() -> None:
    fast = hosts(12.5, 12.5, 12.5, 12.5)
    job = coded(GOOD)
    job.links = lambda step: GOOD if step < 150 else fast
    tell_costs(job)
    job.train(500)
    assert [words for _, words in job.plans] == ["native, bf16", "native, int8", "native"]


def test_a_codec_is_never_used_unless_it_was_asked_for() -> None:
    job = coded(GOOD, compression="none")
    tell_costs(job)
    job.train(300)
    assert job.hints == []


def test_what_was_asked_for_is_used_from_the_first_hint_on_for_good() -> None:
    settings = Settings(compression="powersgd:2", fusion_bytes=8 * MB)
    job = SimulatedJob(drop, GOOD, sizes=SMALL, settings=settings, coding_s_per_byte=1e-9)
    job.train(400)
    assert len(job.hints) > 2
    assert {hint.codec for hint in job.hints} == {"powersgd:2"}
    assert {hint.fusion_bytes for hint in job.hints} == {8 * MB}
    assert job.hints[0].effective_step < 16


def test_a_forced_plan_follows_the_links() -> None:
    job = SimulatedJob(drop, GOOD, sizes=SMALL, settings=Settings(only="sharded"))
    job.train(100)
    shares = [hint.plan.shares for hint in job.hints if not hint.probe_bytes]
    assert {hint.plan.algorithm for hint in job.hints} == {"sharded"}
    assert len(set(shares)) == 2
    assert shares[-1][3] < shares[0][3]


def test_with_native_forced_nothing_is_probed() -> None:
    job = SimulatedJob(drop, None, sizes=SMALL, settings=Settings(only="native"))
    job.train(300)
    assert job.hints == []


def test_a_new_coordinator_measures_the_links_and_leaves_a_good_plan_alone() -> None:
    job = SimulatedJob(constant(BAD), GOOD, sizes=SMALL)
    job.coordinator = Coordinator("job", Settings(), BAD)
    job.send(RankReport(hello=job.hello(rank)) for rank in range(job.world))
    job.train(100)
    [(_, words)] = job.plans
    job.coordinator = Coordinator("job", Settings(), GOOD)  # it believes what was declared
    job.coordinator.hint_seen(job.hints[-1], job.now_s)
    job.send(RankReport(hello=job.hello(rank)) for rank in range(job.world))
    job.train(400)
    assert [words for _, words in job.plans] == [words]
    assert job.probes >= 1
    assert job.hints[-1].epoch == len(job.hints)


def test_a_probe_without_reports_is_given_up_with_a_warning() -> None:
    class Silent(SimulatedJob):
        def _probe(self, hint: Hint) -> None:
            self.probes += 1

    job = Silent(constant(BAD), None, sizes=SMALL)
    job.train(300)
    assert "no rank has reported" in job.texts("warning")[0]
    assert 1 < job.probes < 10
