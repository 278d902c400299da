"""``trainmesh replay``: identical with the same policy, a comparison with another."""

import json
from pathlib import Path

import msgspec
import pytest

from tests.serving.observe.records import pool, serve, write
from trainmesh.errors import ConfigError
from trainmesh.launcher.cli import main
from trainmesh.serving.config.types import ShadowConfig
from trainmesh.serving.decide.policies.scorers import BUILT_IN, load_scorers
from trainmesh.serving.ledger.counterfactual import compare
from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.serving.ledger.reader import entries

SCORERS = load_scorers()[0]


def written(recorded: list[LedgerEntry]) -> list[LedgerEntry]:
    """As they come back from a file."""
    return list(entries(msgspec.json.encode(entry) for entry in recorded))


@pytest.mark.parametrize("policy", sorted(BUILT_IN))
def test_the_same_policy_decides_the_same(policy: str) -> None:
    found = compare(written(serve(pool(policy), 300)), SCORERS)
    assert found.identical
    assert found.decisions == 300
    assert found.recorded_mean_s == found.replayed_mean_s
    assert all(each.recorded == each.replayed for each in found.shifts)
    assert compare(written(serve(pool(policy), 300)), SCORERS, policy).identical


def test_both_arms_of_a_test_are_replayed_by_their_own_policies() -> None:
    records = written(serve(pool(shadow=ShadowConfig(policy="round_robin", share=0.5)), 300))
    assert {entry.decision.policy for entry in records} == {"hybrid", "round_robin"}
    assert compare(records, SCORERS).identical


def test_another_policy_shifts_load_and_costs_time() -> None:
    records = written(serve(pool("hybrid"), 300))
    found = compare(records, SCORERS, "round_robin")
    assert not found.identical
    assert 0 < found.same < found.decisions == 300
    assert found.replayed_mean_s > found.recorded_mean_s, "h4 is 70 ms away"
    far = {each.endpoint: each for each in found.shifts}["h4"]
    assert far.replayed > far.recorded
    assert sum(each.replayed for each in found.shifts) == 300
    assert found.examples[0].startswith("r")


def test_only_one_model_is_taken() -> None:
    records = written(serve(pool(), 20))
    assert compare(records, SCORERS, model="other").decisions == 0
    assert compare(records, SCORERS, model="m").decisions == 20


def test_a_policy_that_is_not_installed_is_counted_or_refused() -> None:
    records = [
        LedgerEntry(decision=msgspec.structs.replace(entry.decision, policy="gone"))
        for entry in written(serve(pool(), 20))
    ]
    found = compare(records, SCORERS)
    assert (found.decisions, found.unknown, found.identical) == (0, {"gone": 20}, False)
    with pytest.raises(ConfigError, match="no policy is called 'best'; there are affinity, "):
        compare(records, SCORERS, "best")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = str(tmp_path / "ledger")
    write(tmp_path / "ledger", serve(pool(), 300))
    assert main(["replay", ledger, "--check"]) == 0
    assert capsys.readouterr().out == (
        "300 decisions taken again each by its own policy: 300 the same (100.0 %)\n"
    )
    assert main(["replay", ledger, "--policy", "round_robin"]) == 0
    text = capsys.readouterr().out
    assert "300 decisions taken again by round_robin: " in text
    assert "later on average" in text
    assert main(["replay", ledger, "--policy", "round_robin", "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["policy"] == "round_robin"
    assert main(["replay", ledger, "--model", "other"]) == 0
    assert capsys.readouterr().out == "no decision to take again\n"
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith("none: No such file or directory\n")
    assert main(["replay", ledger, "--policy", "x"]) == 2
    assert capsys.readouterr().err.startswith("trainmesh: error: no policy is called 'x'")
