"""An agent leaves bucket times out of busy reports, and nothing else."""

from trainmesh.agent import thin
from trainmesh.types import BucketTiming, Note, PairTime, RankReport, StepReport


def test_everything_but_the_bucket_times_of_most_steps_is_kept() -> None:
    buckets = (BucketTiming(0, 1, 0, 0, 1),)
    report = RankReport(
        steps=tuple(StepReport(0, 0, number, 0, 0, 1, None, buckets) for number in range(64)),
        notes=(Note(kind="switched", rank=0, text="ring"),),
        pairs=(PairTime(1, 0, 0, 1, 9, 1.0, 0.1),),
        dropped=3,
    )
    [thinned] = thin([report], keep=8)
    assert (thinned.notes, thinned.pairs, thinned.dropped) == (report.notes, report.pairs, 3)
    assert [step.step for step in thinned.steps if step.buckets] == list(range(0, 64, 8))
    assert len(thinned.steps) == 64
