"""``trainmesh why``: every attempt, every candidate's terms, in words and as JSON."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.serving.observe.records import START_UNIX_S, entry, facts, pool, serve, write
from trainmesh.launcher.cli import main
from trainmesh.serving.config.types import ShadowConfig
from trainmesh.serving.control.rundir import ServeRun
from trainmesh.serving.decide.decision_record import decision_of
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome
from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.serving.ledger.explain import attempts_of, terms_of, words
from trainmesh.serving.ledger.reader import entries, read_lines


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("COLUMNS", "400")


def test_terms_add_up_to_what_the_policies_compare() -> None:
    for each in serve(pool(), 200):
        terms = terms_of(each.decision)
        assert {each.endpoint for each in terms} == {"h1", "h2", "h4"}
        for one in terms:
            parts = one.rtt_s + one.transfer_s + one.waiting_s + one.own_s
            assert math.isclose(parts, one.total_s, rel_tol=1e-9)
            assert min(one.transfer_s, one.waiting_s, one.own_s) >= 0
            assert (one.transfer_s > 0) == (one.endpoint == "h2"), "the only slow link"
            assert (one.waiting_s > 0) == (one.inflight > 0)
        assert [each.total_s for each in terms] == sorted(each.total_s for each in terms)
        assert sum(each.chosen for each in terms) == 1


def story() -> list[LedgerEntry]:
    """A first attempt that can't connect, then a retry that answers; as written, newest first."""
    made = pool("mesh", shadow=ShadowConfig(policy="least_requests"))
    asked = facts("r1")
    choice = made.choose(asked, 0.0)
    first = decision_of(choice, asked, AttemptKind.FIRST, unix_s=START_UNIX_S, snapshot=41)
    assert choice.endpoint is not None
    attempt = made.begin(choice.endpoint, asked, AttemptKind.FIRST, 0.0)
    made.end(attempt, AttemptOutcome.CONNECT, 0.002)
    again = made.choose(asked, 0.002, tried=(choice.endpoint,))
    retry = decision_of(again, asked, AttemptKind.RETRY, unix_s=START_UNIX_S + 0.002, snapshot=41)
    return [
        entry(retry, AttemptOutcome.OK, status=200, ttft_s=0.02, duration_s=0.498),
        entry(first, AttemptOutcome.CONNECT, duration_s=0.002, error="connection refused"),
    ]


def test_the_story_in_words() -> None:
    lines = words(attempts_of(story()))
    text = "\n".join(lines)
    assert lines[0] == (
        "request r1: model m, tenant gold, about 400 prompt tokens, streamed; 2 attempts"
    )
    assert lines[1].startswith("1. 2026-11-21 17:00:00.000 UTC, first attempt: went to h1 by")
    assert "expected to the first byte" in lines[1]
    assert "less than the next best, h2 (snapshot 41)" in lines[1]
    assert "   left out: h3: endpoint quarantined by admin:alice: fan is dead" in lines
    assert "   shadow policy least_requests would have taken" in text
    assert "   failed to connect after 2.00 ms: connection refused" in lines
    assert "2. 2026-11-21 17:00:00.002 UTC, retry: went to h2 by policy" in text
    assert "   left out: h1: " in text, "the endpoint that has just failed"
    assert "   answered with status 200 after 498 ms, first byte after 20.0 ms" in lines


def test_a_choice_that_is_not_the_fastest_says_so() -> None:
    stays = [
        "\n".join(words(attempts_of([each])))
        for each in serve(pool("round_robin"), 10)
        if each.decision.chosen == "h4"
    ]
    assert "the policy has other reasons (session" in stays[0]


def test_a_request_that_nobody_could_take() -> None:
    choice = pool().choose(facts("r1"), 0.0, allowed=frozenset())
    decision = decision_of(choice, facts("r1"), AttemptKind.FIRST, unix_s=START_UNIX_S)
    lines = words(attempts_of([LedgerEntry(decision=decision)]))
    assert lines[1].endswith("first attempt: no endpoint could take it")
    assert choice.reason
    assert f"   {choice.reason}" in lines


def test_entries_survive_the_ledger(tmp_path: Path) -> None:
    recorded = serve(pool(), 50)
    write(tmp_path / "ledger", recorded)
    back = list(entries(read_lines(tmp_path / "ledger")))
    assert [msgspec.json.encode(each) for each in back] == [
        msgspec.json.encode(each) for each in recorded
    ]
    assert list(entries([b"{", b"[]", b"\xff", b'{"type":"other"}'])) == []


def run(*argv: str) -> int:
    return main(list(argv))


def test_the_command_finds_the_ledger_of_a_running_router(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "somewhere", story())
    router = ServeRun.create("front")
    info = router.info()
    assert info is not None
    router.publish(msgspec.structs.replace(info, ledger=str(tmp_path / "somewhere")))
    assert run("why", "r1") == 0
    text = capsys.readouterr().out
    assert "went to h1 by policy" in text
    assert "expected time to the first byte, attempt 2" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("h")]
    assert rows[0][:2] == ["h1", "*"], "the chosen one is marked and first"
    assert run("why", "r1", "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [each["entry"]["outcome"] for each in answer["attempts"]] == ["connect", "ok"]
    assert answer["attempts"][0]["candidates"][0]["endpoint"] == "h1"


def test_the_command_finds_a_ledger_that_was_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "state" / "trainmesh" / "serve" / "127.0.0.1-8080" / "ledger", story())
    assert run("why", "r1") == 0
    assert "went to h1" in capsys.readouterr().out


def test_an_unknown_request_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "ledger", story())
    assert run("why", "r9", "--ledger", str(tmp_path / "ledger")) == 1
    error = capsys.readouterr().err
    assert error.startswith("trainmesh: error: no decision on request 'r9' is in ")
    assert error.count("\n") == 1
    assert run("why", "r9") == 1
    assert "any ledger of this user" in capsys.readouterr().err
