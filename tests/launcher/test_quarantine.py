"""``trainmesh quarantine`` on a real etcd."""

import json
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.signals.test_graph import fabric
from trainmesh.launcher.cli import main
from trainmesh.launcher.commands.quarantine import duration_s
from trainmesh.serving.cluster.peers import PeerEndpoint, RouterState, router_prefix
from trainmesh.serving.cluster.verdicts import QUARANTINE
from trainmesh.serving.control.rundir import RouterInfo, ServeRun
from trainmesh.store.base import job_prefix
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.topology.document import dump
from trainmesh.wire import encode

pytestmark = pytest.mark.etcd


@pytest.fixture
def store(etcd_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EtcdStore]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINMESH_ETCD", etcd_url)
    opened = connect(etcd_url)
    yield opened
    for prefix in (QUARANTINE, job_prefix("train-quarantine"), router_prefix("quarantine")):
        opened.delete(prefix)
    opened.close()


def routers(store: EtcdStore, *places: PeerEndpoint) -> None:
    state = RouterState(name="r1", sequence=1, places=places)
    store.put(f"{router_prefix('quarantine')}r1", encode(state))


def quarantine(*words: str) -> int:
    return main(["quarantine", *words])


def test_add_list_and_release(store: EtcdStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert quarantine("list") == 0
    assert capsys.readouterr().out == "nothing is in quarantine\n"
    assert quarantine("add", "link", "h3<->leaf1", "--reason", "flaps") == 0
    assert capsys.readouterr().out == "link h3<->leaf1: in quarantine\n"
    assert quarantine("list") == 0
    shown = capsys.readouterr().out
    assert "link  h3<->leaf1  in quarantine  flaps" in " ".join(shown.splitlines()[1:])
    assert "admin:" in shown
    assert quarantine("release", "link", "h3<->leaf1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["released"] is True
    assert quarantine("list", "--json") == 0
    assert capsys.readouterr().out == "[]\n"
    assert quarantine("list", "--all") == 0
    assert "released" in capsys.readouterr().out


def test_a_word_with_an_end(store: EtcdStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert quarantine("add", "node", "h1", "--until", "2h", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["until_unix_s"] == pytest.approx(time.time() + 7200, abs=60)
    assert quarantine("add", "node", "h2", "--until", "1s") == 0
    deadline_s = time.monotonic() + 20
    while True:
        capsys.readouterr()
        assert quarantine("list", "--json") == 0
        held = [one["subject"] for one in json.loads(capsys.readouterr().out)]
        if held == ["h1"]:
            break
        assert time.monotonic() < deadline_s


def test_names_that_nobody_knows_are_refused(
    store: EtcdStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(f"{job_prefix('train-quarantine')}graph", encode(dump(fabric())))
    store.put(f"{job_prefix('train-quarantine')}reports/graph", b"not a graph")
    assert quarantine("add", "link", "h3->leaf2") == 1
    assert capsys.readouterr().err == (
        "trainmesh: error: no job or router knows link 'h3->leaf2'; is 'h3->leaf1' meant?; "
        "--force takes it all the same\n"
    )
    assert quarantine("add", "link", "h3->leaf2", "--force") == 0
    assert quarantine("add", "link", "h3->leaf1") == 0
    assert quarantine("add", "node", "spine0") == 0
    assert quarantine("add", "endpoint", "h3:8000") == 0  # no router has said anything
    capsys.readouterr()
    assert quarantine("release", "node", "spine1") == 1
    assert "node 'spine1' is not in quarantine; is 'spine0' meant?" in capsys.readouterr().err


def test_the_last_endpoint_of_a_model_stays(
    store: EtcdStore, capsys: pytest.CaptureFixture[str]
) -> None:
    routers(
        store,
        PeerEndpoint("m", "a", "h1", True),
        PeerEndpoint("m", "b", "h1", True),
        PeerEndpoint("m", "c", "h2", False),
        PeerEndpoint("n", "c", "h2", True),
    )
    assert quarantine("add", "endpoint", "a") == 0
    assert quarantine("add", "endpoint", "b") == 1  # though its router still calls a open
    capsys.readouterr()
    assert quarantine("add", "node", "h1") == 1
    assert capsys.readouterr().err == (
        "trainmesh: error: without node h1 no endpoint would be left for model m; "
        "--force takes it all the same\n"
    )
    assert quarantine("add", "endpoint", "c") == 1
    assert "model n" in capsys.readouterr().err
    assert quarantine("add", "endpoint", "c", "--force") == 0


def test_which_etcd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TRAINMESH_ETCD", raising=False)
    assert quarantine("list") == 2
    assert capsys.readouterr().err == (
        "trainmesh: error: quarantine is kept in an etcd that a cluster shares: no job or router "
        "that has one runs here; pass --etcd URL or set TRAINMESH_ETCD\n"
    )
    alone = ServeRun.create("front")
    assert quarantine("add", "endpoint", "a") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "router front runs without one, so trainmesh endpoints cordon NAME takes" in said
    alone.publish(RouterInfo(name="front", pid=os.getpid(), etcd="http://127.0.0.1:1"))
    assert quarantine("list") == 1
    assert capsys.readouterr().err == (
        "trainmesh: error: etcd at 127.0.0.1:1: nothing listens on this port; start etcd 3.4 or "
        "newer there (routers.etcd of router front); --etcd URL asks another\n"
    )
    other = ServeRun.create("back")
    other.publish(RouterInfo(name="back", pid=os.getpid(), etcd="http://127.0.0.1:2"))
    assert quarantine("list") == 2
    assert "jobs and routers here use http://127.0.0.1:1, http://127.0.0.1:2" in (
        capsys.readouterr().err
    )
    other.remove()
    alone.remove()
    assert quarantine("list", "--etcd", "http://127.0.0.1:1") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("add", "link"),
        ("add", "switch", "x"),
        ("add", "node", ""),
        ("add", "node", "x\n"),
        ("add", "node", "x" * 301),
        ("add", "node", "x", "--until", "soon"),
        ("drop", "node", "x"),
    ],
)
def test_bad_words_are_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        quarantine(*words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("3d", 259_200)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1h", "1.5h", "2 h", "99999999d", "1w", "\u0663h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a duration such as"):
        duration_s(text)
