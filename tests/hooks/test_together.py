"""One rank that is not like the others, observers that fail, modules that come and go."""

from typing import Any

import pytest

from tests.torchjob import run_job

pytestmark = pytest.mark.torch

KEEPS_NATIVE = {
    "rank_without_us": "1 of 2 ranks run trainmesh",
    "other_cadence": "1 of 2 ranks run trainmesh",
    "no_context": "1 of 2 ranks run trainmesh",
    "cannot_leave_marks": "1 of 2 ranks run trainmesh",
    "cannot_connect": "not every rank could connect",
    "cannot_read_marks": "",
    "cannot_propose": "agreement broke, no plan is followed",
    "cannot_read_hints": "",
}
"""What rank 0 says of what only rank 1 can't do."""


Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    results = run_job("together.py", world_size=2, out=tmp_path_factory.mktemp("together"))
    return [results[0], results[1]]


def test_a_healthy_job_follows_its_hint(ranks: Ranks) -> None:
    assert [rank["healthy"]["epoch"] for rank in ranks] == [1, 1]
    assert ranks[0]["healthy"]["said"] == ""


def test_processes_that_are_started_again_follow_their_hint(ranks: Ranks) -> None:
    """The marks of those before them are still in the store."""
    assert [rank["restarted"]["epoch"] for rank in ranks] == [1, 1]
    assert ranks[0]["restarted"]["said"] == ""


@pytest.mark.parametrize("what", KEEPS_NATIVE)
def test_all_ranks_stay_native_where_one_is_not_like_the_others(ranks: Ranks, what: str) -> None:
    found = [rank[what] for rank in ranks]
    assert [one["epoch"] for one in found] == [0, 0]
    expected = [rank["observers"]["none"]["after_60"] for rank in ranks]
    assert [one["loss"] for one in found] == expected
    lines = found[0]["said"].splitlines()
    assert len(lines) == bool(KEEPS_NATIVE[what]), lines
    assert KEEPS_NATIVE[what] in found[0]["said"]


def test_a_plan_in_force_stays_on_all_ranks_when_agreement_breaks_on_one(ranks: Ranks) -> None:
    found = [rank["breaks_later"] for rank in ranks]
    assert [one["epoch"] for one in found] == [1, 1]
    assert len(found[0]["said"].splitlines()) == 1
    assert "the plan in force stays" in found[0]["said"]


SILENT = {"none", "note", "hint file", "mark starts"}
"""Nothing needs them in these steps, or it is said later."""


def test_no_observer_of_ours_raises_into_training(ranks: Ranks) -> None:
    for rank in ranks:
        observers = rank["observers"]
        assert len(observers) > 15
        assert {one["loss"] for one in observers.values()} == {observers["none"]["loss"]}
    for name, one in ranks[0]["observers"].items():
        lines = [line for line in one["said"] if "no plan is followed" not in line]
        assert len(lines) == 1 or name in SILENT or name == "all", (name, lines)
        assert len(set(one["said"])) == len(one["said"])
    assert ranks[0]["observers"]["none"]["said"] == []


def test_files_and_threads_end_with_their_modules(ranks: Ranks) -> None:
    for rank in ranks:
        found = rank["many_modules"]
        assert found["before"] == found["after"] == found["planned"]
        assert found["epochs"] == [1] * 5
