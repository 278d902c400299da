"""The numbers of a report, against a record that was worked out by hand (``records``)."""

import random
import re

import pytest
from msgspec.structs import replace

from tests.launcher.records import (
    CHOICE,
    HINT,
    MS,
    NUM_STEPS,
    RING,
    SWITCH_STEP,
    analysed,
    event,
    graph,
    hello,
    lines,
    report,
    steps,
)
from trainmesh.launcher.report.analysis import analyse, split_of
from trainmesh.launcher.report.analysis_types import RankSkew, Spread
from trainmesh.launcher.report.findings import Tone, headline
from trainmesh.launcher.report.run_sample import MAX_EVENTS, StepSample, collect
from trainmesh.types import Asked, BucketTiming, Collective, LinkOrigin, RecordLine, StepReport


def test_the_run_is_described() -> None:
    run = analysed()
    assert (run.world_size, run.backend, run.device, run.job) == (4, "gloo", "cpu", "job")
    assert [(node.node, node.ranks) for node in run.nodes] == [
        ("host-a", (0, 1)),
        ("host-b", (2, 3)),
    ]
    assert (run.num_steps, run.last_step, run.num_starts, run.num_modules) == (20, 19, 1, 1)
    assert run.duration_s == pytest.approx(10 * 0.1 + 10 * 0.09)
    assert run.missing == ()
    assert run.link_sources == {"declared": 10}


def test_step_time_leaves_out_the_first_two_steps() -> None:
    slow = [replace(report(rank, 0), end_ns=report(rank, 0).begin_ns + 10**12) for rank in range(4)]
    run = analysed([*lines(), *(RecordLine(step=step) for step in slow)])
    # 8 steps of 100 ms and 10 of 90 ms
    assert run.step_time == Spread(median_s=0.09, p5_s=0.09, p95_s=0.1, num_samples=18)


def test_percentiles_are_interpolated() -> None:
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.median_s, spread.num_samples) == (3.0, 5)
    assert spread.p5_s == pytest.approx(1.2)
    assert spread.p95_s == pytest.approx(4.8)
    assert Spread.of([7.0]) == Spread(median_s=7.0, p5_s=7.0, p95_s=7.0, num_samples=1)


def test_where_the_time_went_on_one_rank() -> None:
    # rank 1 under native: ready at 34 and 64, ends at 50 and 70, step 100
    split = split_of([report(1, 5)])
    assert split is not None
    parts = (split.compute_s, split.hidden_s, split.exposed_s, split.rest_s)
    assert parts == pytest.approx((0.048, 0.016, 0.006, 0.030))
    assert split.exposed_share == pytest.approx(0.06)


def test_overlapping_buckets_are_hidden_once() -> None:
    buckets = (
        BucketTiming(0, 1, 10 * MS, 10 * MS, 40 * MS),
        BucketTiming(1, 1, 20 * MS, 20 * MS, 30 * MS),
        BucketTiming(2, 1, 50 * MS, 50 * MS, 70 * MS),
    )
    split = split_of([StepReport(0, 0, 5, 0, 0, 80 * MS, None, buckets)])
    assert split is not None
    parts = (split.compute_s, split.hidden_s, split.exposed_s, split.rest_s)
    assert parts == pytest.approx((0.020, 0.030, 0.020, 0.010))


def test_a_result_before_the_last_gradient_exposes_nothing() -> None:
    buckets = (BucketTiming(0, 1, 10 * MS, 10 * MS, 5 * MS),)
    split = split_of([StepReport(0, 0, 5, 0, 0, 20 * MS, None, buckets)])
    assert split is not None
    assert (split.exposed_s, split.hidden_s) == (0.0, 0.0)
    assert split.step_s == pytest.approx(0.020)


def test_split_per_rank_and_overall() -> None:
    run = analysed()
    assert [item.rank for item in run.rank_splits] == [0, 1, 2, 3]
    # rank 0: exposed 10 ms in 8 steps, 6 ms in 10
    assert run.rank_splits[0].split.exposed_s == pytest.approx((8 * 0.010 + 10 * 0.006) / 18)
    assert run.split is not None
    assert run.split.step_s == pytest.approx((8 * 0.1 + 10 * 0.09) / 18)


def test_bucket_times_do_not_count_waiting_for_the_late_rank() -> None:
    found = {(b.epoch, b.index): b for b in analysed().buckets}
    assert set(found) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    # rank 1 is last: ready at 34 of 50, at 64 of 70; under ring at 34 of 40, at 64 of 66
    assert found[0, 0].transfer_s == pytest.approx(0.016)
    assert found[0, 1].transfer_s == pytest.approx(0.006)
    assert found[1, 0].transfer_s == pytest.approx(0.006)
    assert found[1, 1].transfer_s == pytest.approx(0.002)
    assert found[0, 0].algbw_bytes_per_s == pytest.approx(250e6)
    assert found[0, 0].busbw_bytes_per_s == pytest.approx(375e6)
    assert (found[0, 0].nbytes, found[0, 0].num_samples) == (4_000_000, 8)


def test_skew_on_two_hosts_with_different_clocks() -> None:
    run = analysed()
    assert run.num_clocks == 2
    assert [skew.median_s for skew in run.skew] == pytest.approx([0.0, 0.004, 0.002, 0.0])
    assert [skew.node for skew in run.skew] == ["host-a", "host-a", "host-b", "host-b"]


def test_plans_predicted_and_measured() -> None:
    native, ring = analysed().plans
    assert (native.algorithm, native.first_step, native.last_step) == ("native", 2, 9)
    assert (ring.algorithm, ring.first_step, ring.last_step) == ("ring", 10, 19)
    assert native.plan is not None
    assert native.plan.efficiency == pytest.approx(1 / 3)
    assert native.measured_efficiency == pytest.approx(4 / 16)
    assert ring.measured_efficiency == pytest.approx(4 / 6)
    assert native.switch is None
    effect = ring.switch
    assert effect is not None
    assert (effect.transfer_before_s, effect.transfer_after_s) == pytest.approx((0.022, 0.008))
    assert (effect.step_before_s, effect.step_after_s) == pytest.approx((0.1, 0.09))
    assert effect.transfer_speedup == pytest.approx(2.75)


def test_a_probe_of_the_links_is_no_switch() -> None:
    """It has an epoch of its own, with the plan that was in force."""
    probe = RecordLine(hint=replace(HINT, epoch=2, effective_step=14, probe_bytes=100_000))
    record = [
        replace(line, step=replace(line.step, epoch=2))
        if line.step and line.step.step > 14
        else line
        for line in [*lines()[:-1], probe, lines()[-1]]
    ]
    assert analysed(record).plans == analysed().plans
    assert analysed(record).buckets == analysed().buckets


def test_the_series_holds_each_step_and_the_mean_loss() -> None:
    series = analysed().series
    assert [point.step for point in series] == list(range(2, NUM_STEPS))
    assert [point.epoch for point in series].index(1) == SWITCH_STEP - 2
    assert series[0].loss == pytest.approx(4.0 - 0.2 + 1.5)


def of_module(number: int, num_steps: int) -> list[RecordLine]:
    """The steps of ``lines()`` as those of another module."""
    found = [line.step for line in lines() if line.step is not None and line.step.step < num_steps]
    return [RecordLine(step=replace(step, module=number)) for step in found]


def test_the_module_that_did_the_most_steps_is_analysed() -> None:
    """A script may have warmed up with another one."""
    hellos = [line for line in lines() if line.step is None]
    run = analysed([*hellos, *of_module(0, 1), *of_module(1, NUM_STEPS), *of_module(2, 3)])
    assert (run.module, run.num_modules, run.num_steps) == (1, 3, NUM_STEPS)
    assert run.step_time == analysed(lines()).step_time
    words = "module 2 of 3 (in the order in which they first communicated)"
    (sentence,) = [each for each in run.missing if words in each]
    assert sentence.endswith("the first one, which did 1 step.")


def test_of_many_modules_the_largest_are_known() -> None:
    """K folds, each of a model of its own, and one that is trained to the end."""
    hellos = [line for line in lines() if line.step is None]
    folds = [line for number in range(40) for line in of_module(number, 3 + number % 2)]
    run = analysed([*hellos, *folds, *of_module(40, NUM_STEPS)])
    assert (run.module, run.num_modules, run.num_steps) == (40, 41, NUM_STEPS)
    run = analysed([*hellos, *of_module(0, 9), *folds, *of_module(40, 8), *of_module(6, 10)])
    assert (run.module, run.num_steps) == (0, 9 + 3)


def test_other_modules_are_counted_only() -> None:
    others = [RecordLine(step=report(rank, 5, module=1)) for rank in range(4)]
    assert replace(analysed([*lines(), *others]), num_modules=1, lines=0) == replace(
        analysed(), lines=0
    )


def test_after_a_restart_the_last_start_with_steps_counts() -> None:
    again = [RecordLine(hello=hello(rank, pid=900 + rank)) for rank in range(4)]
    run = analysed([*lines(), *again, *steps(range(5))])
    assert (run.num_starts, run.num_steps, run.last_step) == (2, 5, 4)
    assert any("started 2 times" in text for text in run.missing)
    only_greeted = analysed([*lines(), *again])
    assert (only_greeted.num_starts, only_greeted.num_steps) == (2, 20)


def test_a_repeated_report_counts_once() -> None:
    run = analysed([*lines(), *steps([5])])
    assert run.step_time is not None
    assert run.step_time.num_samples == 18


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "No step was recorded"),
        ([RecordLine(hello=hello(0))], "No step was recorded"),
        (list(steps(range(2))), "Only steps 0 to 1"),
        ([*lines()[:4], *steps(ranks=[0, 2])], "No step of ranks 1, 3 was recorded"),
        ([*lines()[:4], *steps([3], [0, 1]), *steps([4], [2, 3])], "recorded by all ranks"),
    ],
)
def test_what_is_missing_is_said(record: list[RecordLine], words: str) -> None:
    run = analysed(record)
    assert any(words in text for text in run.missing)
    assert run.skew == ()
    assert headline(run).advice


def test_steps_without_bucket_times_still_have_a_step_time() -> None:
    bare = [RecordLine(step=replace(report(rank, 5), buckets=())) for rank in range(4)]
    run = analysed([*lines()[:4], *bare])
    assert run.step_time is not None
    assert (run.split, run.buckets, run.skew) == (None, (), ())
    assert any("built-in" in text for text in run.missing)


def test_one_rank_is_not_compared_with_anybody() -> None:
    record = [
        RecordLine(hello=hello(0, world_size=1)),
        *(RecordLine(step=report(0, step, world_size=1)) for step in range(6)),
    ]
    run = analysed(record)
    assert (run.skew, run.buckets, run.split) == ((), (), None)
    found = headline(run)
    assert found.title == "One rank: there was nothing to communicate"
    said = " ".join((*found.points, *run.missing, found.advice))
    assert "nobody to communicate with" in said
    assert "%" not in said


def test_shards_with_one_replica_have_no_all_reduce_to_time() -> None:
    alone = [RecordLine(hello=replace(hello(rank), replicas=(rank,))) for rank in range(4)]
    run = analysed([*alone, *steps()])
    assert run.buckets == ()
    assert any("each shard has one replica" in text for text in run.missing)


def test_corrupt_lines_are_counted() -> None:
    run = analyse(collect(lines()), corrupt_lines=3)
    assert run.corrupt_lines == 3
    assert run.missing[0].startswith("3 lines of the record could not be read")


def test_events_are_bounded_and_the_ends_are_kept() -> None:
    run = analysed([event("note", step, "x") for step in range(MAX_EVENTS + 100)])
    assert (len(run.events), run.events_omitted) == (MAX_EVENTS, 100)
    assert (run.events[0].step, run.events[-1].step) == (0, MAX_EVENTS + 99)


def test_steps_are_bounded_and_short_epochs_stay_whole() -> None:
    sample = StepSample(max_timings=600)
    for step in range(8):
        sample.add(replace(report(0, step), epoch=1))
    for step in range(8, 2_000):
        for rank in range(2):
            sample.add(replace(report(rank, step), epoch=2))
    groups = sample.groups()
    assert sum(len(group) * 3 for _, _, group in groups) <= 600
    assert [step for step, epoch, _ in groups if epoch == 1] == list(range(8))
    long = [(step, len(group)) for step, epoch, group in groups if epoch == 2]
    assert len(long) > 40
    assert {ranks for _, ranks in long} == {2}
    strides = {b - a for (a, _), (b, _) in zip(long, long[1:], strict=False)}
    assert len(strides) == 1


@pytest.mark.parametrize(("last_step", "words"), [(10, "is"), (12, "are"), (13, "")])
def test_a_switch_is_not_judged_by_few_steps(last_step: int, words: str) -> None:
    """One step after it was called slower, in red."""
    kept = [line for line in lines() if line.step is None or line.step.step <= last_step]
    found = headline(analysed(kept))
    if not words:
        assert "2.75x as fast" in found.title
        return
    number = last_step - 9
    steps = "1 measured step" if number == 1 else f"{number} measured steps"
    assert found.title == (
        f"All ranks moved to ring at step 10; {steps} {words} too few to compare"
    )
    assert found.tone is Tone.NEUTRAL


def test_headline_of_a_switch_that_helped() -> None:
    found = headline(analysed())
    assert found.tone is Tone.GOOD
    assert found.title == (
        "All ranks moved to ring at step 10, and communication became 2.75x as fast"
    )
    assert any("no link was measured" in point for point in found.points)


def test_headline_of_a_switch_that_did_harm() -> None:
    record = [
        RecordLine(
            step=replace(
                line.step,
                epoch=1 - line.step.epoch,
            )
        )
        if line.step is not None
        else line
        for line in lines()
    ]
    # The fast steps now run as epoch 0 and come first.
    record = [
        RecordLine(step=replace(line.step, step=(line.step.step + 10) % 20)) if line.step else line
        for line in record
    ]
    found = headline(analysed(record))
    assert found.tone is Tone.BAD
    assert "slower" in found.title


def test_measured_links_are_not_called_declared() -> None:
    for origin, words in (
        (LinkOrigin.BUCKETS, "fitted to this run's bucket times"),
        (LinkOrigin.PROBES, "measured by probes between two steps"),
        (LinkOrigin.GIVEN, "measured before this run"),
    ):
        measured = [RecordLine(links_from=origin), RecordLine(graph=graph("measured"))]
        run = analysed([*lines(), *measured])
        said = " ".join(headline(run).points)
        assert f"10 of its 10 links had costs {words}." in said
        assert bool(run.fits) is (origin is LinkOrigin.BUCKETS)


@pytest.mark.parametrize("origin", LinkOrigin)
def test_a_bound_that_is_beaten_is_none_and_the_report_says_why(origin: LinkOrigin) -> None:
    """The ring's bucket took 6 ms."""
    beaten = replace(RING, bound_s=0.0075, graph_version=1)
    record = [
        RecordLine(hint=replace(HINT, plan=beaten)) if line.hint is not None else line
        for line in lines()
    ]
    run = analysed([RecordLine(links_from=origin), *record])
    native, ring = run.plans
    assert (ring.exceeds_bound, ring.measured_efficiency, ring.origin) == (True, None, origin)
    assert not native.exceeds_bound
    [said] = [point for point in headline(run).points if "bound" in point and "none" in point]
    assert "took 6.00 ms, less than the bound of 7.50 ms" in said
    assert {
        LinkOrigin.GIVEN: "declared or assumed",
        LinkOrigin.BUCKETS: "fitted to earlier bucket times",
        LinkOrigin.PROBES: "when they were probed",
    }[origin] in said
    assert not any("no algorithm can take less" in point for point in headline(run).points)


NUMBER = r"([0-9.]+) (s|ms|us)"
UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@pytest.mark.parametrize("seed", range(40))
def test_every_ratio_is_the_quotient_of_the_printed_numbers(seed: int) -> None:
    """Several switches, times that round badly."""
    draw = random.Random(seed)
    record = lines()
    for epoch in range(2, 4):
        start = NUM_STEPS + 10 * (epoch - 2)
        record.append(RecordLine(hint=replace(HINT, epoch=epoch, fusion_bytes=epoch)))
        factor = draw.uniform(0.3, 3)
        for step in range(start, start + 10):
            for rank in range(4):
                told = report(rank, step)
                buckets = tuple(
                    replace(b, end_ns=b.start_ns + round(factor * (b.end_ns - b.start_ns)))
                    for b in told.buckets
                )
                record.append(RecordLine(step=replace(told, epoch=epoch, buckets=buckets)))
    run = analysed(record)
    found = headline(run)
    pattern = f"buckets moved in {NUMBER}, in the .* after it in {NUMBER} \\(([0-9.]+)x as fast"
    switches = [match for p in found.points if (match := re.search(pattern, p))]
    assert len(switches) == 3
    for match in switches:
        before, unit, after, other, ratio = match.groups()
        assert f"{float(before) * UNIT_S[unit] / (float(after) * UNIT_S[other]):.2f}" == ratio
    title = re.search(r"([0-9.]+)x as fast", found.title)
    if title is not None:
        assert title.group(1) == switches[-1].group(5)


def test_a_straggler_is_named() -> None:
    run = replace(analysed(), skew=skewed((0.0, 0.1), (4.0, 0.9)))
    assert headline(run).advice.startswith(
        "Rank 1 is ready 4.00 ms after the earliest rank (median), the other 0 s, while"
    )


def skewed(*ranks: tuple[float, float]) -> tuple[RankSkew, ...]:
    """Median lateness in ms, and the share of buckets at which the rank was the last."""
    return tuple(
        RankSkew(rank=rank, node="a", median_s=late / 1e3, p95_s=late / 1e3, last_share=share)
        for rank, (late, share) in enumerate(ranks)
    )


@pytest.mark.parametrize(
    ("skew", "words"),
    [
        (skewed((4.0, 0.5), (0.0, 0.0), (4.2, 0.5), (0.1, 0.0)), "Ranks 0, 2 are ready 4.00 ms to"),
        (skewed((4.0, 0.9), (0.0, 0.0), (0.1, 0.1)), "Rank 0 is ready 4.00 ms after"),
        # Two ranks that are late by turns: one of the medians is 0, by chance.
        (skewed((0.0, 0.45), (4.0, 0.55)), "If all communication were hidden"),
        (skewed((4.0, 0.3), (4.1, 0.3), (4.2, 0.3), (0.0, 0.1)), "Ranks are ready 4.05 ms after"),
    ],
)
def test_only_ranks_that_are_always_late_are_named(skew: tuple[RankSkew, ...], words: str) -> None:
    assert headline(replace(analysed(), skew=skew)).advice.startswith(words)


def test_who_was_the_last_is_counted() -> None:
    assert [rank.last_share for rank in analysed().skew] == [0, 1, 0, 0]


def test_ranks_that_learn_their_world_late_were_started_once() -> None:
    """They may introduce themselves before they know its number, each in its own time."""
    known = [RecordLine(hello=replace(hello(rank), world=77)) for rank in range(4)]
    late = RecordLine(hello=hello(3))
    run = analysed([*lines()[:4], *steps(range(8)), *known[:2], late, *known[2:], *steps([8, 9])])
    assert (run.num_starts, run.num_steps) == (1, 10)
    again = [RecordLine(hello=replace(hello(rank), world=78, pid=1)) for rank in range(4)]
    assert analysed([*lines()[:4], *known, *again]).num_starts == 2


def test_little_waiting_needs_no_advice_on_the_network() -> None:
    quick = []
    for rank in range(4):
        for step in range(10):
            told = report(rank, step)
            quick.append(RecordLine(step=replace(told, end_ns=told.begin_ns + 1_000 * MS)))
    assert "Look at compute" in headline(analysed([*lines()[:4], *quick])).advice


def in_one_epoch(epoch: int, numbers: range = range(NUM_STEPS)) -> list[RecordLine]:
    return [
        RecordLine(step=replace(report(rank, step), epoch=epoch))
        for step in numbers
        for rank in range(4)
    ]


OWN = range(NUM_STEPS, NUM_STEPS + 6)
BF16 = replace(
    HINT, codec="bf16", plan=replace(HINT.plan, algorithm="native", order=(0, 1, 2, 3),
    predicted_s=0.0, bound_s=0.0, nbytes=0),
)  # fmt: skip


def test_a_row_is_a_plan_a_fusion_size_and_a_codec() -> None:
    """A native hint that only brings a codec carries no prediction: no bound of 0, and the gain
    is not native's."""
    fused = replace(HINT, epoch=2, fusion_bytes=5_000_000)
    record = [
        *(line for line in lines() if line.hint is None and line.choice is None),
        RecordLine(hint=BF16),
        RecordLine(hint=fused),
        *in_one_epoch(2, range(NUM_STEPS, NUM_STEPS + 5)),
    ]
    run = analysed(record)
    assert [(row.epoch, row.name) for row in run.plans] == [
        (0, "native"),
        (1, "native, bf16"),
        (2, "ring, fused to 5.00 MB"),
    ]
    assert (run.plans[1].plan, run.plans[1].measured_efficiency) == (None, None)
    found = headline(analysed([line for line in record if not (line.step and line.step.epoch > 1)]))
    assert found.title == (
        "All ranks moved to native, bf16 at step 10, and communication became 2.75x as fast"
    )


def test_what_is_predicted_is_not_held_against_what_a_codec_measured() -> None:
    """The ring of the record with bf16: its plan's bytes are those on the wire."""
    record = [line for line in lines() if line.hint is None]
    ring = analysed([*record, RecordLine(hint=replace(HINT, codec="bf16"))]).plans[1]
    assert ring.name == "ring, bf16"
    assert (ring.measured_s, ring.measured_efficiency) == (None, None)
    assert ring.step_transfer_s == pytest.approx(0.008)


def test_an_epoch_without_its_hint_is_named_for_what_it_is() -> None:
    record = [line for line in lines() if line.hint is None]
    assert headline(analysed(record)).title.startswith(
        "All ranks moved to a plan that the record does not hold at step 10"
    )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            [*lines()[:5], *steps(range(8))],
            "that takes 16 measured steps of all ranks in a row, and the job had 6 before it ended "
            "or changed. What ran: native.",
        ),
        (
            [*lines()[:5], RecordLine(hint=BF16), *in_one_epoch(1, range(12))],
            "16 measured steps of all ranks in a row, and the job had 10 before it ended or "
            "changed. What ran: native, bf16.",
        ),
        (
            [
                *(
                    RecordLine(hello=replace(hello(rank), collective=Collective.REDUCE_SCATTER))
                    for rank in range(4)
                ),
                *in_one_epoch(0),
            ],
            "gradients are not all-reduced by all ranks",
        ),
        (
            [*lines()[:5], event("hook_kept", 0, "rank 0: mine"), *in_one_epoch(0)],
            "the script's own communication hook is kept (rank 0: mine)",
        ),
        ([*lines()[:3], *in_one_epoch(0)], "only 3 of 4 ranks introduced themselves"),
        (
            [
                *lines()[:5],
                RecordLine(asked=(Asked(knob="plan", value="native", since_step=0),)),
                *in_one_epoch(0),
            ],
            "native was asked for",
        ),
        ([*lines()[:5], *in_one_epoch(0)], "the coordinator did not get to it"),
    ],
)
def test_why_no_plans_were_compared(record: list[RecordLine], words: str) -> None:
    [text] = [text for text in analysed(record).missing if "compared" in text]
    assert text.startswith("No plans were compared: ")
    assert words in text


def test_one_rank_has_no_plans_to_compare() -> None:
    alone = [RecordLine(step=report(0, step, world_size=1)) for step in range(6)]
    run = analysed([RecordLine(hello=hello(0, world_size=1)), *alone])
    assert not [text for text in run.missing if "compared" in text]


def test_what_was_asked_for_and_never_came_is_the_headline() -> None:
    wish = Asked(knob="plan", value="tree")
    run = analysed([*lines(), RecordLine(asked=(wish,))])
    assert run.unmet == (
        "--plan tree was asked for but never in force: the job ended after 20 steps",
    )
    found = headline(run)
    assert (found.title, found.tone) == (run.unmet[0], Tone.BAD)
    no_way = replace(wish, refusal="one rank has nobody to send to")
    assert analysed([*lines(), RecordLine(asked=(wish,)), RecordLine(asked=(no_way,))]).unmet == (
        "--plan tree was asked for and can't run here: one rank has nobody to send to",
    )


def test_steps_show_what_was_in_force_even_if_nobody_said_so() -> None:
    run = analysed([RecordLine(asked=(Asked(knob="plan", value="ring"),)), *lines()])
    assert [item.since_step for item in run.asked] == [SWITCH_STEP]
    assert run.unmet == ()


def test_on_one_node_nobody_is_told_to_declare_links() -> None:
    quiet = [
        RecordLine(step=replace(told, buckets=tuple(_punctual(told))))
        for told in (report(rank, step) for step in range(9) for rank in range(4))
    ]
    for node, declares in (("host-a", False), (None, True)):
        hellos = [RecordLine(hello=hello(rank, node=node)) for rank in range(4)]
        found = headline(analysed([*hellos, RecordLine(graph=graph("assumed")), *quiet]))
        assert ("Declare the links" in found.advice) is declares


def _punctual(told: StepReport) -> list[BucketTiming]:
    """The buckets, as if no rank were late."""
    late_ns = told.buckets[0].arrival_ns - told.begin_ns - 30 * MS
    return [
        replace(b, arrival_ns=b.arrival_ns - late_ns, start_ns=b.start_ns - late_ns)
        for b in told.buckets
    ]


def test_only_what_was_taken_back_is_called_so() -> None:
    """The ring is taken back, and afterwards bf16 stays."""
    away = RecordLine(hint=replace(BF16, epoch=2, codec="none"))
    coded = RecordLine(hint=replace(BF16, epoch=3))
    tried = [*lines(), away, event("revert", 20, "ring: back to native"), *in_one_epoch(2, OWN)]
    title = headline(analysed(tried)).title
    assert title == "What was tried did not help, and was taken back"
    stays = [*tried, coded, *in_one_epoch(3, range(OWN.stop, OWN.stop + 6))]
    assert headline(analysed(stays)).title.startswith("All ranks moved to native, bf16 at step 26")


def test_native_is_not_held_against_a_ring_that_the_backend_does_not_run() -> None:
    hellos = [RecordLine(hello=replace(hello(rank), backend="nccl")) for rank in range(4)]
    native, ring = analysed([*hellos, *lines()[4:]]).plans
    assert (native.plan, native.measured_efficiency) == (None, None)
    assert ring.plan is not None


def test_a_prediction_for_other_bytes_is_not_shown_for_native() -> None:
    """The first choice was made under bf16: for half of a bucket's bytes."""
    halves = tuple(replace(plan, nbytes=2_000_000) for plan in CHOICE.candidates)
    half = replace(CHOICE, nbytes=2_000_000, candidates=halves)
    record = [RecordLine(choice=half) if line.choice is not None else line for line in lines()]
    native, ring = analysed(record).plans
    assert (native.plan, native.measured_s) == (None, None)
    assert ring.plan is not None


def test_a_prediction_for_other_links_is_not_held_against_busy_cpus() -> None:
    """The links were probed, and found slower, after the plan was made."""
    slow = [
        RecordLine(hint=replace(HINT, plan=replace(RING, predicted_s=0.002, bound_s=0.001)))
        if line.hint is not None
        else line
        for line in lines()
    ]
    probed = [RecordLine(links_from=LinkOrigin.PROBES), RecordLine(graph=graph_of_version(7))]
    for more, words in (([], "busy CPUs"), (probed, "what probes found of them later")):
        [said] = [p for p in headline(analysed([*slow, *more])).points if "times predicted" in p]
        assert said.startswith("Measured is 3.0 times predicted")
        assert words in said


def graph_of_version(version: int) -> dict[str, object]:
    return graph("measured") | {"graph_version": version}


def test_a_choice_that_came_too_late_is_called_so() -> None:
    early = [line for line in lines() if line.hint is None and line.step is None]
    run = analysed([*early, *steps(range(SWITCH_STEP))])
    found = headline(run)
    assert found.title == "Ring was chosen, but not yet taken up when the job ended"
