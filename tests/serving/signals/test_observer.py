"""Everything together: real endpoints, real etcd, two routers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.serving.signals.builds import Server, config, serving, until
from tests.serving.signals.test_graph import HOSTS, fabric
from trainmesh.errors import GraphError
from trainmesh.serving.cluster.cordons import CordonState
from trainmesh.serving.cluster.peers import Load
from trainmesh.serving.cluster.traffic import native_plan
from trainmesh.serving.cluster.verdicts import SubjectKind, Verdict, judge
from trainmesh.serving.config.types import Config
from trainmesh.serving.control.observer import Local, Observer
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.decide.types import EndpointSignal
from trainmesh.store.base import job_prefix
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.topology.document import dump
from trainmesh.types import JobStatus
from trainmesh.wire import encode

FAST = {"probe_interval_s": 0.1, "scrape_interval_s": 0.1}


def healthy() -> Server:
    server = Server()
    server.answers = {"/health": (200, "ok"), "/metrics": (200, "tgi_queue_size 7\n")}
    return server


def nothing() -> None:
    pass


@asynccontextmanager
async def observing(
    fields: Config, lines: list[str], local: Local | None = None
) -> AsyncIterator[Observer]:
    observer = Observer(fields, on_change=nothing, log=lines.append, local=lambda: local or Local())
    await observer.start()
    try:
        yield observer
    finally:
        await observer.close()


def now(observer: Observer) -> Snapshot:
    return observer.snapshot(time.monotonic())


def first(observer: Observer) -> EndpointSignal:
    return now(observer).signals["m"][0]


@pytest.mark.starts
def test_without_etcd_and_graph() -> None:
    async def run() -> None:
        lines: list[str] = []
        async with serving(healthy()) as server, serving(healthy()) as other:
            fields = config(
                [
                    {"url": server.url, "runtime": "tgi", "name": "a"},
                    {"url": other.url, "runtime": "tgi", "name": "b"},
                ],
                telemetry=FAST,
            )
            async with observing(fields, lines) as observer:
                assert first(observer) == EndpointSignal(name="a", unready="not asked yet")
                await until(lambda: first(observer).queued == 7, "its own metrics")
                await until(lambda: first(observer).rtt_s > 0, "a round trip")
                snapshot = now(observer)
                assert (snapshot.store, snapshot.routers) == ("", ())
                observer.cordon("a", CordonState.DRAIN, "admin:eve")
                assert first(observer).excluded == "draining by admin:eve"
                observer.cordon("a", CordonState.OPEN, "admin:eve")
                assert first(observer).excluded == ""
                server.answers["/health"] = (503, "")
                await until(lambda: first(observer).excluded, "it is down")
                server.answers["/health"] = (200, "")
                took_s = await until(lambda: not first(observer).excluded, "it is back")
                assert took_s < 3.0
        assert lines == []

    asyncio.run(run())


def test_nothing_is_left_running() -> None:
    async def run() -> None:
        fields = config([{"url": "http://127.0.0.1:1"}], routers={"etcd": "http://127.0.0.1:1"})
        lines: list[str] = []
        async with observing(fields, lines) as observer:
            await until(lambda: any("store: etcd at" in line for line in lines), "it is said")
            assert "etcd" in now(observer).store
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


@pytest.mark.starts
def test_a_new_config_is_taken_over_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(healthy()) as one, serving(healthy()) as other:
            fields = config([{"url": one.url, "runtime": "tgi", "name": "a"}], telemetry=FAST)
            async with observing(fields, []) as observer:
                await until(lambda: first(observer).rtt_s > 0, "a round trip")
                known_s = first(observer).rtt_at_s
                bad = config([{"url": other.url}], topology={"file": str(tmp_path / "none.yaml")})
                with pytest.raises(GraphError):
                    await observer.update(bad)
                assert [s.name for s in now(observer).signals["m"]] == ["a"]
                await observer.update(
                    config(
                        [
                            {"url": one.url, "runtime": "tgi", "name": "a"},
                            {"url": other.url, "runtime": "tgi", "name": "b"},
                        ],
                        telemetry=FAST,
                    )
                )
                assert first(observer).rtt_at_s >= known_s > 0  # what is known stays
                await until(lambda: now(observer).signals["m"][1].rtt_s > 0, "the new one's")

    asyncio.run(run())


def test_a_topology_file_says_where_endpoints_are(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "graph.json"
        path.write_bytes(encode(dump(fabric())))
        topology = {"file": str(path), "node": "h0"}
        fields = config([{"url": "http://127.0.0.1:1", "node": "h3"}], topology=topology)
        async with observing(fields, []) as observer:
            found = first(observer)
            assert found.rtt_s == pytest.approx(800e-6)
            assert found.bandwidth_bytes_per_s == 1e9
            assert found.rtt_at_s == 0.0  # declared, not measured

    asyncio.run(run())


def put_job(store: EtcdStore, job: str) -> None:
    prefix = job_prefix(job)
    store.put(f"{prefix}graph", encode(dump(fabric())))
    status = JobStatus(job=job, updated_unix_s=0.0, plan=native_plan(HOSTS))
    store.put(f"{prefix}status", encode(status))


@pytest.mark.etcd
def test_a_training_jobs_graph_verdicts_and_traffic(etcd_url: str) -> None:
    async def run() -> None:
        store = connect(etcd_url)
        lines: list[str] = []
        fields = config(
            [{"url": "http://127.0.0.1:1", "name": "a", "node": "h3"}],
            topology={"job": "train-observer", "node": "h0", "traffic_class": "yield"},
            routers={"etcd": etcd_url, "group": "graph"},
        )
        try:
            async with observing(fields, lines) as observer:
                put_job(store, "train-observer")
                await until(lambda: first(observer).bandwidth_bytes_per_s == 1e8, "it yields")
                assert first(observer).rtt_s == pytest.approx(800e-6)
                verdict = Verdict(
                    kind=SubjectKind.LINK,
                    subject="h3<->leaf1",
                    reason="flaps",
                    owner="admin:eve",
                    since_unix_s=time.time(),
                )
                judge(store, verdict)
                await until(lambda: first(observer).excluded, "it is blocked")
                assert first(observer).excluded == (
                    "link leaf1->h3 in quarantine: flaps (admin:eve), on the way"
                )
                store.put("/trainmesh/quarantine/node/x", b"broken")
                await until(lambda: any("node/x" in line for line in lines), "it is said")
                released = Verdict(
                    kind=SubjectKind.LINK,
                    subject="h3<->leaf1",
                    reason="",
                    owner="admin:eve",
                    since_unix_s=time.time(),
                    released=True,
                )
                judge(store, released)
                await until(lambda: not first(observer).excluded, "it is free")
                store.delete(job_prefix("train-observer"))
                await until(lambda: first(observer).bandwidth_bytes_per_s == 1e9, "the job is over")
                await observer.update(replace(fields, audit="elsewhere"))
                assert first(observer).bandwidth_bytes_per_s == 1e9  # its graph is still known
        finally:
            store.delete("/trainmesh/quarantine/")
            store.close()

    asyncio.run(run())


def test_a_job_whose_etcd_is_nowhere_is_said_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        lines: list[str] = []
        fields = config([{"url": "http://127.0.0.1:1"}], topology={"job": "gone", "node": "h0"})
        async with observing(fields, lines):
            await until(lambda: lines, "it is said")
        assert lines[0] == "store: job gone does not run on this machine; set routers.etcd"

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    asyncio.run(run())


@pytest.mark.etcd
def test_two_routers_share_loads_cordons_and_distances(etcd_url: str) -> None:
    async def run() -> None:
        lines: list[str] = []
        async with serving(healthy()) as server:
            url = server.url

            def fields(name: str) -> Config:
                return config(
                    [{"url": url, "runtime": "tgi", "name": "a"}],
                    telemetry=FAST,
                    routers={"etcd": etcd_url, "group": "pair", "name": name},
                )

            local = Local(loads={url: Load(5, 600)}, demand={"m": 3.0})
            async with observing(fields("r1"), lines) as one:
                async with observing(fields("r2"), lines, local):
                    await until(lambda: now(one).routers == ("r2",), "they know each other")
                    await until(lambda: first(one).others_inflight == 5, "its load")
                    assert first(one).others_tokens == 600
                    assert 0 < now(one).demand["m"] <= 3.0
                await until(lambda: now(one).routers == (), "the other one has left")
                assert first(one).others_inflight == 0
                one.cordon("a", CordonState.CORDON, "admin:eve")
                async with observing(fields("r3"), lines) as three:
                    await until(lambda: first(three).excluded == "cordoned by admin:eve", "told")
                    three.cordon("a", CordonState.OPEN, "admin:bob")
                    await until(lambda: not first(one).excluded, "it is taken back")
        assert all(line == "store: answers" for line in lines)

    asyncio.run(run())
