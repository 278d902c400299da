"""``trainmesh topology probe``, ``ping`` and ``trace`` against real agents on a real etcd."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import keys, publish, start_agent, wait_for_agents
from tests.launchjob import Place, wait_for
from trainmesh.launcher.cli import main
from trainmesh.probe_types import ProbeRequest
from trainmesh.store.base import job_prefix
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.topology.document import load_file
from trainmesh.topology.graph import Provenance
from trainmesh.wire import decode

pytestmark = pytest.mark.etcd

RANKS = {"n0": [0, 1], "n1": [2], "n2": [3]}
QUICK = ("--bytes", "16MB", "--seconds", "20")
Agents = dict[str, subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TRAINMESH_ETCD", raising=False)


@pytest.fixture
def store(etcd_url: str) -> Iterator[EtcdStore]:
    opened = connect(etcd_url)
    try:
        yield opened
        opened.delete(job_prefix("job"))
    finally:
        opened.close()


@pytest.fixture
def agents(here: Place, etcd_url: str, store: EtcdStore) -> Iterator[Agents]:
    """Three nodes' agents of one job."""
    started = {node: start_agent(here, "job", node, etcd_url) for node in RANKS}
    try:
        wait_for_agents(store, "job", list(RANKS))
        publish(store, "job", RANKS)
        yield started
    finally:
        for process in started.values():
            process.terminate()
            process.communicate(timeout=30)


def measured(store: EtcdStore) -> list[str]:
    """The pairs whose measures are kept."""
    prefix = "/trainmesh/measured/job/"
    return [entry.key.removeprefix(prefix) for entry in store.list(prefix)[0]]


def ports(agents: Agents) -> int:
    """TCP sockets on which the agents listen now."""
    listening = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    held = 0
    for process in agents.values():
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                held += os.readlink(entry).removeprefix("socket:[").rstrip("]") in listening
            except OSError:
                continue
    return held


def test_probe_measures_every_pair_and_leaves_nothing(
    agents: Agents, store: EtcdStore, etcd_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ports(agents) == 0
    assert main(["topology", "probe", "--etcd", etcd_url, *QUICK, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "shares the network with the probe" in err
    assert "trainmesh: round 3 of 3: " in err
    report = json.loads(out)
    assert (report["job"], report["num_rounds"], report["output"]) == ("job", 3, "")
    assert [node["host"] for node in report["nodes"]] == ["127.0.0.1"] * 3
    pairs = [(pair["measure"]["src"], pair["measure"]["dst"]) for pair in report["pairs"]]
    assert sorted(pairs) == [("n0", "n1"), ("n0", "n2"), ("n1", "n2")]
    for pair in report["pairs"]:
        measure = pair["measure"]
        assert measure["problem"] == ""
        assert 0 < measure["nbytes"] <= 16_000_000
        assert measure["round_trips"]["received"] == 100
        for way in ("forward", "backward"):
            cost = measure[way]["cost"]["bandwidth_bytes_per_s"]
            low, high = (measure[way][f"bandwidth_{end}_bytes_per_s"] for end in ("low", "high"))
            assert 0 < low <= cost <= high
        assert pair["graph_forward"]["bandwidth_bytes_per_s"] == 1.25e9
    wait_for(lambda: keys(store, "job", "probe/") == [])
    assert measured(store) == ["n0/n1", "n0/n2", "n1/n2"]
    wait_for(lambda: ports(agents) == 0)


def test_output_is_the_graph_with_what_was_measured(
    agents: Agents, etcd_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "measured.json"
    path.write_text("old")
    argv = ["topology", "probe", "job", "--etcd", etcd_url, *QUICK, "--output", str(path)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert f"wrote {path}" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert sum(row[:2] == ["n0", "n1"] for row in rows) == 1
    assert sum(row[:2] == ["n2", "n0"] for row in rows) == 1
    graph = load_file(path)
    assert graph.version == 2
    for link in graph.links:
        measured = link.link_class == "ethernet"
        assert (link.provenance is Provenance.MEASURED) == measured
    assert main(["trace", "0", "3", "--file", str(path), "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    sources = [hop["source"] for hop in trace["forward"]["hops"]]
    assert sources == ["assumed", "measured", "measured", "assumed"]


def test_trace_of_a_job_shows_what_a_probe_has_measured(
    agents: Agents, etcd_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "3", "0", "--etcd", etcd_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"] is None
    assert main(["topology", "probe", "--etcd", etcd_url, *QUICK]) == 0
    capsys.readouterr()
    assert main(["trace", "3", "0", "--etcd", etcd_url, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert (measured["src"], measured["dst"]) == ("n0", "n2")
    assert main(["trace", "3", "0", "--etcd", etcd_url]) == 0
    shown = capsys.readouterr().out
    assert "rank 3 -> rank 0: 4 hops, alpha 300 us, at most 1.25 GB/s (n2->core switch)" in shown
    assert "probed between their nodes at " in shown
    assert ": round trip " in shown
    assert "  n2 -> n0: " in shown
    assert main(["trace", "0", "1", "--etcd", etcd_url]) == 0
    assert "between their nodes" not in capsys.readouterr().out


def test_ping(agents: Agents, etcd_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", "n1", "--etcd", etcd_url, "--count", "3"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "ping n1 (127.0.0.1, lo) from n0, job job"
    assert [line.split(" time=")[0] for line in lines[:3]] == [
        f"from n1: seq={number}" for number in (1, 2, 3)
    ]
    assert lines[3] == "3 sent, 3 received, 0 % lost"
    assert lines[4].startswith("rtt min/avg/max ")
    assert main(["ping", "n0", "job", "--etcd", etcd_url, "--count", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["src"], told["dst"], len(told["rtt_s"])) == ("n1", "n0", 1)
    assert told["round_trips"]["received"] == 1


def test_ping_of_an_unknown_node_names_the_known_ones(
    agents: Agents, etcd_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ping", "n9", "--etcd", etcd_url]) == 1
    error = capsys.readouterr().err
    assert error == (
        "trainmesh: error: job job has no node 'n9' with an agent; known: n0, n1, n2\n"
    )


def test_an_agent_that_hangs_costs_its_pairs_only(
    agents: Agents, etcd_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agents["n2"].send_signal(signal.SIGSTOP)
    try:
        assert main(["topology", "probe", "--etcd", etcd_url, *QUICK, "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        problems = {pair["measure"]["dst"]: pair["measure"]["problem"] for pair in report["pairs"]}
        assert problems == {"n1": "", "n2": "n2: the agent does not answer in 5 s"}
        assert main(["ping", "n2", "--etcd", etcd_url]) == 1
        assert "n2: the agent does not answer in 5 s" in capsys.readouterr().err
    finally:
        agents["n2"].send_signal(signal.SIGCONT)


def probe(here: Place, etcd_url: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainmesh", "topology", "probe", "--etcd", etcd_url]
    return here.start(*command, *flags)


@pytest.mark.parametrize(
    ("victim", "words"), [("n0", "n0: the agent did not answer"), ("n1", "n0 could not measure n1")]
)
def test_an_agent_killed_in_the_middle_is_named_in_time(
    here: Place, etcd_url: str, store: EtcdStore, victim: str, words: str
) -> None:
    """A peer's side and a measuring side; the pair is slow, so the middle is long."""
    nodes = ["n0", "n1"]
    agents = {node: start_agent(here, "job", node, etcd_url) for node in nodes}
    try:
        wait_for_agents(store, "job", nodes)
        publish(store, "job", {"n0": [0], "n1": [1]})
        begin_s = time.monotonic()
        process = probe(here, etcd_url, "--bytes", "16GB", "--seconds", "8", "--json")
        wait_for(lambda: turn(store) == 1)
        agents[victim].kill()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - begin_s < 45, err
        assert process.returncode == 1, err
        [pair] = json.loads(out)["pairs"]
        assert words in pair["measure"]["problem"]
        assert (pair["measure"]["src"], pair["measure"]["dst"]) == ("n0", "n1")
    finally:
        for agent in agents.values():
            agent.terminate()
            agent.communicate(timeout=30)


def turn(store: EtcdStore) -> int:
    entry = store.get(f"{job_prefix('job')}probe/request")
    return decode(entry.value, ProbeRequest, what="request").turn if entry is not None else -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_key_and_no_port_stay(
    here: Place, agents: Agents, etcd_url: str, store: EtcdStore, number: int
) -> None:
    process = probe(here, etcd_url, "--bytes", "16GB", "--seconds", "600")
    wait_for(lambda: turn(store) == 1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -number, err
    assert "Traceback" not in err
    wait_for(lambda: keys(store, "job", "probe/") == [])
    wait_for(lambda: ports(agents) == 0)
    assert main(["ping", "n1", "--etcd", etcd_url, "--count", "1"]) == 0


def test_one_probe_at_a_time(
    here: Place, agents: Agents, etcd_url: str, store: EtcdStore, capsys: pytest.CaptureFixture[str]
) -> None:
    process = probe(here, etcd_url, "--bytes", "16GB", "--seconds", "600")
    wait_for(lambda: turn(store) == 1)
    assert main(["ping", "n1", "--etcd", etcd_url]) == 1
    error = capsys.readouterr().err
    owner = f"process {process.pid} on {socket.gethostname()}"
    assert error == (
        f"trainmesh: error: {owner} probes this job now; try again when it has ended\n"
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_one_node_has_nothing_to_measure(
    here: Place, etcd_url: str, store: EtcdStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = start_agent(here, "job", "n0", etcd_url)
    try:
        wait_for_agents(store, "job", ["n0"])
        publish(store, "job", {"n0": [0, 1]})
        assert main(["topology", "probe", "--etcd", etcd_url]) == 0
        assert capsys.readouterr().out == (
            "job job has 1 node with an agent: there is no link between nodes to measure\n"
        )
        assert main(["topology", "probe", "--etcd", etcd_url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["pairs"] == []
        path = tmp_path / "x.json"
        assert main(["topology", "probe", "--etcd", etcd_url, "--output", str(path)]) == 1
        assert "was not written" in capsys.readouterr().err
        assert not path.exists()
        assert main(["ping", "n0", "--etcd", etcd_url]) == 1
        assert "n0 is the only node of job job" in capsys.readouterr().err
    finally:
        agent.terminate()
        agent.communicate(timeout=30)


def test_an_output_that_cannot_be_written_is_said_before_anything_is_measured(
    agents: Agents, etcd_url: str, store: EtcdStore, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["topology", "probe", "--etcd", etcd_url, *QUICK, "--output"]
    assert main([*argv, "/nowhere/x.json"]) == 2
    assert "--output /nowhere/x.json: No such file or directory" in capsys.readouterr().err
    store.delete(f"{job_prefix('job')}graph")
    assert main([*argv, "x.json"]) == 1
    assert "job job has no link graph" in capsys.readouterr().err
    assert measured(store) == []


def test_too_little_time_for_the_rounds_is_said(
    agents: Agents, etcd_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", "probe", "--etcd", etcd_url, "--seconds", "0.2"]) == 2
    error = capsys.readouterr().err
    assert "--seconds 0.2 is too short for 3 rounds; give at least 0.3" in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["topology", "probe", "--bytes", "lots"], "argument --bytes: 'lots' is not a size"),
        (["topology", "probe", "--bytes", "1kB"], "is not a size from 205 kB to 17.2 GB"),
        (["topology", "probe", "--bytes", "1TB"], "is not a size from 205 kB to 17.2 GB"),
        (["topology", "probe", "--seconds", "0"], "argument --seconds: '0'"),
        (["topology", "probe", "--seconds", "nan"], "argument --seconds: 'nan'"),
        (["topology", "probe", "--seconds", "x"], "argument --seconds: 'x'"),
        (["ping", "n0", "--count", "0"], "argument --count: '0'"),
        (["ping", "n0", "--count", "1.5"], "argument --count: '1.5'"),
        (["ping"], "node"),
    ],
)
def test_bad_values_are_usage_errors(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
