"""What is to happen to links: read from the file, and done in time."""

from pathlib import Path

import pytest

from trainmesh.errors import GraphError
from trainmesh.launcher.lab.steps import Pace
from trainmesh.launcher.lab.timeline import due, words
from trainmesh.topology.document import LinkChange, dump, load, load_file_with_timeline

TWO_HOSTS = """version: 1
nodes: {h0: {kind: rank}, h1: {kind: rank}, sw: {kind: switch}, up: {kind: switch}}
links:
  - {src: h0, dst: sw, bandwidth_gbps: 1}
  - {src: h1, dst: sw, bandwidth_gbps: 1}
  - {src: up, dst: sw, bandwidth_gbps: 1, duplex: false}
timeline:
"""
FIRST_LINE = 8


def changes(folder: Path, *entries: str) -> tuple[LinkChange, ...]:
    path = folder / "f.yaml"
    path.write_text(TWO_HOSTS + "".join(f"  - {{{entry}}}\n" for entry in entries))
    return load_file_with_timeline(path)[1]


def test_every_kind_of_change_is_read(tmp_path: Path) -> None:
    assert changes(
        tmp_path,
        "at_step: 40, link: [h0, sw], bandwidth_mbps: 100",
        "at_s: 1.5, link: [sw, h0], bandwidth_gbps: 2, latency_us: 500, loss: 0.25",
        "at_s: 2, link: [up, sw], down: true, direction: forward",
        "at_s: 3, link: [h0, sw], restore: true, direction: both",
    ) == (
        LinkChange(("h0", "sw"), at_step=40, bandwidth_bytes_per_s=12.5e6),
        LinkChange(("sw", "h0"), at_s=1.5, bandwidth_bytes_per_s=250e6, latency_s=5e-4, loss=0.25),
        LinkChange(("up", "sw"), at_s=2, down=True, both=False),
        LinkChange(("h0", "sw"), at_s=3, restore=True),
    )


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("link: [h0, sw], down: true", "give at_step or at_s"),
        ("at_step: 1, at_s: 1, link: [h0, sw], down: true", "give at_step or at_s"),
        ("at_step: -1, link: [h0, sw], down: true", "at_step must be a whole number"),
        ("at_s: nan, link: [h0, sw], down: true", "at_s must be a non-negative finite number"),
        ("at_s: 1, down: true", "link must be a list of two nodes"),
        ("at_s: 1, link: h0, down: true", "link must be a list of two nodes"),
        ("at_s: 1, link: [h0, [sw]], down: true", "link must be a single value"),
        ("at_s: 1, link: [h0, h1], down: true", "there is no link h0->h1"),
        ("at_s: 1, link: [up, sw], down: true", "there is no link sw->up"),
        ("at_s: 1, link: [h0, sw]", "nothing changes; give one of bandwidth_mbps"),
        ("at_s: 1, link: [h0, sw], down: false", "down must be one of true, not 'false'"),
        ("at_s: 1, link: [h0, sw], down: true, loss: 0.1", "down stands alone"),
        ("at_s: 1, link: [h0, sw], restore: true, loss: 0", "restore stands alone"),
        ("at_s: 1, link: [h0, sw], loss: 1.5", "loss must be a share from 0 to 1"),
        ("at_s: 1, link: [h0, sw], bandwidth_mbps: 0", "must be a positive finite number"),
        ("at_s: 1, link: [h0, sw], bandwidth_mbps: 1, bandwidth_gbps: 1", "give one of bandwidth"),
        ("at_s: 1, link: [h0, sw], latency_us: -1", "latency_us must be a non-negative"),
        ("at_s: 1, link: [h0, sw], down: true, direction: back", "must be one of both, forward"),
        ("at_s: 1, link: [h0, sw], speed: 1", "unknown key 'speed'"),
    ],
)
def test_every_complaint_names_the_line(tmp_path: Path, entry: str, complaint: str) -> None:
    good = "at_s: 1, link: [h0, sw], down: true"
    with pytest.raises(GraphError, match=rf"/f\.yaml:{FIRST_LINE + 1}: .*{complaint}"):
        changes(tmp_path, good, entry)


def test_a_timeline_that_is_no_list_is_refused() -> None:
    with pytest.raises(GraphError, match=r"^f\.yaml:7: timeline must be a list"):
        load(TWO_HOSTS.rstrip() + " {at_s: 1}\n", source="f.yaml")


def test_the_graph_is_the_same_without_its_timeline() -> None:
    entry = "  - {at_s: 1, link: [h0, sw], down: true}\n"
    with_it = load(TWO_HOSTS + entry, source="f")
    assert dump(with_it) == dump(load(TWO_HOSTS.replace("timeline:\n", ""), source="f"))


def test_changes_are_due_at_their_time_or_in_their_step() -> None:
    at_time, at_step = LinkChange(("a", "b"), at_s=2.0), LinkChange(("a", "b"), at_step=5)
    left = [at_time, at_step]
    assert due(left, 1.9, None) == []
    assert due(left, 2.0, None) == [at_time]
    assert due(left, 1.0, 4) == []
    assert due(left, 1.0, 5) == [at_step]


def test_a_change_at_step_zero_is_due_at_once() -> None:
    change = LinkChange(("a", "b"), at_step=0)
    assert due([change], 0.0, None) == [change]


def test_steps_between_two_reports_are_counted_by_their_usual_length() -> None:
    pace = Pace()
    assert pace.current(0) is None
    for step in range(10):
        pace.add(step, step * 100_000_000)
    end_ns = 900_000_000
    assert pace.current(end_ns + 99_000_000) == 10
    assert pace.current(end_ns + 101_000_000) == 11
    assert pace.current(end_ns + 1_050_000_000) == 20


def test_a_job_that_stands_still_is_not_counted_on() -> None:
    pace = Pace()
    for step in range(10):
        pace.add(step, step * 100_000_000)
    assert pace.current(60_000_000_000) == 10


def test_words_say_link_and_values() -> None:
    change = LinkChange(
        ("a", "b"), both=False, bandwidth_bytes_per_s=12.5e6, latency_s=0.005, loss=0.01
    )
    assert words(change) == "link a->b: 100 Mbit/s, latency 5.00 ms, loss 1 %"
    assert words(LinkChange(("a", "b"), restore=True)) == "link a-b: restored"
