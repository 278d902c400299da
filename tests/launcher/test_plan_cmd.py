"""``trainmesh plan``: the contract that others script against, and what happens on misuse."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.topology.graphs import hgx, racks
from trainmesh.errors import ConfigError
from trainmesh.launcher.cli import main
from trainmesh.topology.document import dump, load_file
from trainmesh.topology.nccl.job import from_graph
from trainmesh.topology.nccl.tables import Generation

ROOT = Path(__file__).parent.parent.parent
STAR = """
version: 1
nodes:
  g0: {kind: rank}
  g1: {kind: rank}
  g2: {kind: rank}
  g3: {kind: rank}
  sw: {kind: switch}
links:
  - {src: g0, dst: sw, bandwidth_GBps: 100, alpha_us: 5}
  - {src: g1, dst: sw, bandwidth_GBps: 100, alpha_us: 5}
  - {src: g2, dst: sw, bandwidth_GBps: 100, alpha_us: 5}
  - {src: g3, dst: sw, bandwidth_GBps: 50, alpha_us: 5}
"""


@pytest.fixture
def star(tmp_path: Path) -> str:
    path = tmp_path / "star.yaml"
    path.write_text(STAR)
    return str(path)


@pytest.fixture
def two_racks(tmp_path: Path) -> str:
    path = tmp_path / "racks.json"
    path.write_text(json.dumps(dump(racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=10))))
    return str(path)


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(["plan", "--json", *args]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("collective", "algbw", "ranks_in_cut"),
    [("allreduce", 50.0, 3), ("allgather", 200 / 3, 3), ("reduce_scatter", 200 / 3, 1)],
)
def test_the_contract(
    star: str,
    capsys: pytest.CaptureFixture[str],
    collective: str,
    algbw: float,
    ranks_in_cut: int,
) -> None:
    found = planned(capsys, "--graph", star, "--collective", collective, "--bytes", "100MB")
    assert {"collective", "bytes", "bound", "plans", "chosen", "explain"} <= found.keys()
    assert (found["collective"], found["bytes"]) == (collective, 100_000_000)
    bound = found["bound"]
    assert bound["algbw_GBps"] == pytest.approx(algbw, rel=1e-6)
    assert bound["time_s"] == pytest.approx(0.1 / algbw, rel=1e-6)
    assert bound["kind"] == "cut"
    assert sum(node.startswith("g") for node in bound["cut"]) in (ranks_in_cut, 4 - ranks_in_cut)
    assert (bound["exact"], bound["slack_at_most"]) == (True, 0.0)
    for plan in found["plans"]:
        assert plan["valid"] is True
        assert 0 < plan["efficiency"] <= 1
        assert plan["efficiency"] == pytest.approx(bound["time_s"] / plan["time_s"])
        assert plan["algbw_GBps"] == pytest.approx(0.1 / plan["time_s"])
        assert plan["reason"]
    times = [plan["time_s"] for plan in found["plans"]]
    assert all(a <= b * (1 + 1e-6) for a, b in pairwise(times))
    assert found["chosen"] in {plan["algorithm"] for plan in found["plans"]}
    assert "Chosen: " + found["chosen"] in found["explain"]


def test_all_reduce_of_100_mb_by_default(star: str, capsys: pytest.CaptureFixture[str]) -> None:
    by_default = planned(capsys, "--graph", star)
    asked = planned(capsys, "--graph", star, "--collective", "allreduce", "--bytes", "100MB")
    assert by_default == asked
    assert planned(capsys, "--graph", star, "--bytes", "1MiB")["bytes"] == 2**20


def test_crossovers_and_what_nccl_would_pick(
    two_racks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(Path(two_racks).read_text())
    for link in document["links"]:
        link["alpha_us"] = 5
    Path(two_racks).write_text(json.dumps(document))
    found = planned(capsys, "--graph", two_racks, "--nccl", "hopper")
    assert found["crossovers"][0]["before"] == "tree"
    sizes = [change["bytes"] for change in found["crossovers"]]
    assert sizes == sorted(sizes)
    assert found["crossovers"][-1]["after"] in ("hierarchical", "forest")
    assert found["nccl"]["protocol"] in ("LL", "LL128", "Simple")
    assert "NCCL would pick" in found["explain"]
    assert found["nccl"]["hosts"] == 2
    assert "nccl" not in planned(capsys, "--graph", two_racks)


def test_one_algorithm_can_be_asked_for(star: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("native", "ring", "tree", "sharded", "forest"):
        found = planned(capsys, "--graph", star, "--algorithm", name)
        assert found["chosen"] == name
        assert "asked for" in found["explain"]
    for name, words in (
        ("magic", "unknown algorithm 'magic'; known are native, ring"),
        ("sharded", "sharded was asked for and can't run here: it is for allreduce only, not for"),
        ("hierarchical", "can't run here: the links divide the 4 ranks into no equal islands"),
    ):
        args = ["plan", "--graph", star, "--algorithm", name, "--collective", "allgather"]
        assert main(args) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert words in captured.err
        assert captured.err.count("\n") == 1


def test_nccls_model_says_nothing_of_amd_gpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was calibrated on NVIDIA's; RCCL has tables of its own."""
    graph = tmp_path / "mi300x.yaml"
    graph.write_text(STAR.replace("GBps: 100", "GBps: 100, class: xgmi"))
    assert main(["plan", "--graph", str(graph), "--nccl", "hopper"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trainmesh: error: --nccl hopper: NCCL's model knows NVIDIA's")
    assert captured.err.count("\n") == 1
    found = planned(capsys, "--graph", str(graph))
    assert "No comparison: NCCL's model knows NVIDIA's GPUs only" in found["explain"]
    assert "--nccl" not in found["explain"]
    with pytest.raises(ConfigError, match="where RCCL decides"):
        from_graph(load_file(graph), [tuple(range(4))], Generation.HOPPER)


@pytest.mark.slow
def test_no_gain_over_a_native_that_is_not_the_backends_own(
    tmp_path: Path, star: str, two_racks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On GPUs native would be NCCL, which never runs one ring in rank order: interleaved over two
    hosts that ring is many times as slow as what NCCL's own model expects of it."""
    gpus = tmp_path / "gpus.json"
    document: dict[str, Any] = dump(hgx(2))
    for place in range(16):
        document["nodes"][f"g{place}"]["rank"] = 2 * (place % 8) + place // 8
    gpus.write_text(json.dumps(document))
    slow = STAR.replace("GBps: 100", "GBps: 1").replace("GBps: 50", "GBps: 0.5")
    (tmp_path / "slow.yaml").write_text(slow)
    for graph, collective, is_ring in (
        (str(tmp_path / "slow.yaml"), "allreduce", True),
        (str(tmp_path / "slow.yaml"), "reduce_scatter", False),
        (two_racks, "allreduce", True),
        (star, "allreduce", False),
        (str(gpus), "allreduce", False),
    ):
        found = planned(capsys, "--graph", graph, "--collective", collective)
        assert found["native_is_ring"] is is_ring
        told = [found["explain"], *(plan["reason"] for plan in found["plans"])]
        others = [plan for plan in found["plans"] if plan["algorithm"] != "native"]
        assert others
        assert any("as fast as native" in text for text in told) is is_ring
        assert any("No gain over the backend's own" in text for text in told) is not is_ring
        if not is_ring:
            assert "native:" not in found["explain"]
            assert "faster than native" not in found["explain"]
            assert all("native" not in change.values() for change in found["crossovers"])
    found = planned(capsys, "--graph", str(gpus), "--nccl", "hopper")
    [native] = [plan for plan in found["plans"] if plan["algorithm"] == "native"]
    assert native["time_s"] > 3 * found["nccl"]["time_s"]
    assert "the links alone would let forest take" in found["explain"]
    assert "as fast" not in found["explain"]


def test_in_words(two_racks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--graph", two_racks, "--bytes", "1GB"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["*"].split()[1] == "hierarchical"
    assert "100.0%" in rows["bound"]
    for words in ("No all-reduce of 1.00 GB can take less than 100 ms", "What would help most"):
        assert words in out


def test_the_picture_has_the_cut_and_is_written_whole_or_not_at_all(
    two_racks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "racks.svg"
    assert main(["plan", "--graph", two_racks, "--draw", str(drawing)]) == 0
    root = ElementTree.fromstring(drawing.read_text())
    shaded = [e for e in root.iter() if "cut" in (e.get("class") or "").split()]
    assert len(shaded) in (5, 6)
    capsys.readouterr()
    assert main(["plan", "--graph", two_racks, "--draw", str(tmp_path / "no" / "x.svg")]) != 0
    assert "--draw" in capsys.readouterr().err
    assert main(["plan", "--graph", str(tmp_path / "gone"), "--draw", str(drawing)]) != 0
    assert ElementTree.fromstring(drawing.read_text()).tag == root.tag


def test_one_rank_needs_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("version: 1\nnodes: {g: {kind: rank}}\nlinks: []\n")
    found = planned(capsys, "--graph", str(path))
    assert found["bound"] | {"algbw_GBps": None, "time_s": 0.0, "kind": "none"} == found["bound"]
    assert found["chosen"] == "native"
    assert main(["plan", "--graph", str(path)]) == 0


BAD = [
    (STAR.replace("50, alpha", "-50, alpha"), ":13: link g3->sw: bandwidth_GBps must be"),
    (STAR.replace("50, alpha", ".nan, alpha"), ":13: link g3->sw: bandwidth_GBps must be"),
    (STAR.replace("50, alpha", "0, alpha"), ":13: link g3->sw: bandwidth_GBps must be"),
    (STAR.replace("src: g3", "src: g9"), ":13: link g9->sw: there is no node 'g9'"),
    (STAR.replace("src: g3", "src: g2"), ":13: link g2->sw is there twice"),
    (STAR.replace("  - {src: g3", "#"), "'g3'"),
    ("version: 1\nnodes: {a: {kind: switch}, b: {kind: switch}}\nlinks: []\n", "rank"),
    ("", "empty"),
    ("\x00\x01", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_graph_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["plan", "--graph", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert str(path) in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "g.json",
            '{"version": 1,\n "nodes": {"a": {"kind": "rank"}\n',
            ":3: not valid JSON: expecting",
        ),
        ("g.JSON", "nodes: [", ":1: not valid JSON: expecting value"),
        ("g.json", "[" * 40, "nested more than 16 deep"),
        ("g.yaml", '{"version": 1,\n "nodes": {"a": {"kind": "rank"}\n', "not valid YAML"),
    ],
)
def test_a_broken_file_is_called_what_its_name_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["plan", "--graph", str(tmp_path / name)]) == 2
    assert words in capsys.readouterr().err


QUARANTINED = """version: 1
nodes: {a: {kind: rank}, b: {kind: rank}}
links:
  - {src: a, dst: b, bandwidth_GBps: 10, duplex: false}
  - {src: b, dst: a, bandwidth_GBps: 10, duplex: false, health: quarantined}
"""


@pytest.mark.parametrize("command", ["plan --graph", "topology validate", "launch --topology"])
def test_links_in_quarantine_that_ranks_need_have_a_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, script = tmp_path / "g.yaml", tmp_path / "s.py"
    path.write_text(QUARANTINED)
    script.touch()
    more = ["--dry-run", "--nproc-per-node", "2", str(script)] if "launch" in command else []
    assert main([*command.split(), str(path), *more]) == 2
    assert capsys.readouterr().err == (
        f"trainmesh: error: {path}:5: without the links in quarantine: no path from b to a: the "
        "graph is disconnected\n"
    )


def test_what_is_in_quarantine_is_shown_and_limits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(QUARANTINED)
    assert main(["topology", "show", "--file", str(path)]) == 0
    *_, there, back, last = capsys.readouterr().out.splitlines()
    assert (there.split()[-1], back.split()[-2:]) == ("declared", ["declared,", "quarantined"])
    assert last.startswith("nothing can be planned without the links in quarantine")
    path.write_text(
        """version: 1
nodes: {a: {kind: rank}, b: {kind: rank}, s: {kind: switch}}
links:
  - {src: a, dst: b, bandwidth_GBps: 1}
  - {src: a, dst: s, bandwidth_GBps: 90, health: quarantined}
  - {src: s, dst: b, bandwidth_GBps: 90, health: quarantined}
"""
    )
    assert main(["topology", "validate", str(path)]) == 0
    # 25 MiB over 1 GB/s: what is in quarantine helps nobody.
    assert "can take less than 26.2 ms" in capsys.readouterr().out


def test_one_rank_has_no_islands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("version: 1\nnodes: {a: {kind: rank}}\n")
    assert main(["plan", "--graph", str(path), "--algorithm", "hierarchical"]) == 2
    assert "one rank has nobody to share an island with" in capsys.readouterr().err


def test_a_million_links_end_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    link = "  - {src: a, dst: b, bandwidth_GBps: 1}\n"
    path.write_text(
        "version: 1\nnodes: {a: {kind: rank}, b: {kind: rank}}\nlinks:\n" + link * 10**6
    )
    done = subprocess.run(
        [sys.executable, "-m", "trainmesh", "plan", "--graph", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "more than 500000" in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--bytes", "0"),
        ("--bytes", "many"),
        ("--collective", "broadcast"),
        ("--max-trees", "0"),
        ("--nccl", "riva"),
    ],
)
def test_wrong_flags_are_refused(
    star: str, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--graph", star, flag, value])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert flag in error
    assert error.count("\n") == 1
