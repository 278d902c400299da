"""What an agent publishes: not every bucket time of busy reports, and introductions at once."""

from tests.launcher.records import hello
from trainmesh.agent.process import Inbox, thin
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


def test_a_process_that_introduces_itself_is_news_and_its_next_reports_are_not() -> None:
    inbox = Inbox()
    inbox.put(RankReport(hello=hello(0)))
    assert inbox.news.is_set()
    inbox.news.clear()
    inbox.put(RankReport(hello=hello(0)))
    assert not inbox.news.is_set()
    inbox.put(RankReport(hello=hello(0, pid=999)))
    assert inbox.news.is_set()
