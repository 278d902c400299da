"""``trainmesh trace`` on files."""

import json
from pathlib import Path

import pytest

from trainmesh.launcher.cli import main

RACKS = """
version: 1
nodes:
  g0: {kind: rank}
  g1: {kind: rank}
  a: {kind: switch}
  b: {kind: switch}
links:
- {src: g0, dst: a, bandwidth_GBps: 10, alpha_us: 5, class: infiniband}
- {src: g1, dst: b, bandwidth_GBps: 10, alpha_us: 5, class: infiniband}
- {src: a, dst: b, bandwidth_GBps: 2, alpha_us: 20, class: wan, duplex: false, source: measured}
- {src: b, dst: a, bandwidth_GBps: 1, alpha_us: 30, class: wan, duplex: false}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TRAINMESH_ETCD", raising=False)
    path = tmp_path / "racks.yaml"
    path.write_text(RACKS)
    return str(path)


def test_both_directions_hop_by_hop(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "0", "1", "--file", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rank 0 -> rank 1: 3 hops, alpha 30.0 us, at most 2.00 GB/s (a->b)"
    assert lines[5] == "rank 1 -> rank 0: 3 hops, alpha 40.0 us, at most 1.00 GB/s (b->a)"
    assert lines[3].split() == ["a", "b", "wan", "2.00", "GB/s", "20.0", "us", "measured"]
    assert lines[8].split() == ["b", "a", "wan", "1.00", "GB/s", "30.0", "us", "declared"]
    assert len(lines) == 10


def test_json(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "1", "0", "--file", file, "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert (trace["src"], trace["dst"], trace["measured"]) == (1, 0, None)
    way = trace["forward"]
    assert way["narrowest"] == "b->a"
    assert way["cost"] == {"alpha_s": pytest.approx(40e-6), "bandwidth_bytes_per_s": 1e9}
    assert [(hop["src"], hop["dst"]) for hop in way["hops"]] == [
        ("g1", "b"),
        ("b", "a"),
        ("a", "g0"),
    ]
    assert way["hops"][0] == {
        "src": "g1",
        "dst": "b",
        "link_class": "infiniband",
        "cost": {"alpha_s": pytest.approx(5e-6), "bandwidth_bytes_per_s": 1e10},
        "source": "declared",
    }


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["0", "0"], 2, "rank 0 twice"),
        (["0", "7"], 2, "no rank 7 in the graph; known: 0..1"),
        (["0", "1", "job"], 2, "give a job or --file, not both"),
    ],
)
def test_bad_ranks_are_one_line(
    file: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, words: str
) -> None:
    assert main(["trace", *argv, "--file", file]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("word", ["x", "1.5", "", "99999999999"])
def test_what_is_no_rank_is_a_usage_error(capsys: pytest.CaptureFixture[str], word: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["trace", "0", word])
    assert end.value.code == 2
    assert "is not a rank" in capsys.readouterr().err


def test_a_missing_file_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "0", "1", "--file", "/nowhere.yaml"]) == 2
    assert "/nowhere.yaml: No such file" in capsys.readouterr().err
