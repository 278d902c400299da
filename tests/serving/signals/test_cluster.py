"""What the store's values mean, and when they stop meaning it."""

from collections.abc import Mapping

import pytest

from tests.serving.signals.builds import config
from tests.serving.signals.test_graph import HOSTS, fabric
from trainmesh.serving.cluster.cluster import TRAINING_S, Cluster
from trainmesh.serving.cluster.peers import MAX_ROUTERS, RouterState, router_prefix
from trainmesh.serving.cluster.store_cache import Copy
from trainmesh.serving.cluster.traffic import native_plan
from trainmesh.serving.cluster.verdicts import SubjectKind, Verdict, key_of
from trainmesh.store.base import job_prefix
from trainmesh.topology.document import dump
from trainmesh.types import JobStatus, Plan
from trainmesh.wire import encode

CONFIG = config(
    [{"url": "http://h:1", "node": "h3"}, {"url": "http://h:2", "node": "elsewhere"}],
    topology={"job": "j", "node": "h0", "traffic_class": "equal"},
)
GRAPH = Copy(encode(dump(fabric())), 0.0)


class Told:
    """A cluster, and what it was told to say."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cluster = Cluster(CONFIG, "own", self.lines.append)

    def read(self, copies: Mapping[str, Copy]) -> bool:
        return self.cluster.read(
            lambda prefix: {k: copy for k, copy in copies.items() if k.startswith(prefix)}
        )


def status(at_s: float, plan: Plan | None) -> Copy:
    return Copy(encode(JobStatus(job="j", updated_unix_s=at_s, plan=plan)), at_s)


@pytest.mark.parametrize("plan", [None, native_plan(HOSTS)])
def test_a_job_uses_its_links_while_it_says_so(plan: Plan | None) -> None:
    told = Told()
    assert told.cluster.ways(0.0, 0.0) == {}
    told.read({f"{job_prefix('j')}graph": GRAPH, f"{job_prefix('j')}status": status(100.0, plan)})
    for now_s, bandwidth in ((100.0, 5e8), (100.0 + TRAINING_S, 5e8), (100.1 + TRAINING_S, 1e9)):
        ways = told.cluster.ways(now_s, 0.0)
        assert {node: way.bandwidth_bytes_per_s for node, way in ways.items()} == {"h3": bandwidth}
    told.read({f"{job_prefix('j')}graph": GRAPH, f"{job_prefix('j')}status": status(200.0, plan)})
    assert told.cluster.ways(200.0, 0.0)["h3"].bandwidth_bytes_per_s == 5e8


def test_a_verdict_ends_by_itself() -> None:
    told = Told()
    verdict = Verdict(
        kind=SubjectKind.LINK,
        subject="h3<->leaf1",
        reason="",
        owner="admin:eve",
        since_unix_s=1.0,
        until_unix_s=50.0,
    )
    key = key_of(verdict.kind, verdict.subject)
    assert told.read({f"{job_prefix('j')}graph": GRAPH, key: Copy(encode(verdict), 0.0)})
    assert "in quarantine" in told.cluster.ways(0.0, 49.0)["h3"].blocked
    assert told.cluster.ways(0.0, 50.0)["h3"].blocked == ""


def test_only_what_moves_endpoints_is_urgent_and_complaints_are_said_once() -> None:
    told = Told()
    prefix = router_prefix("default")
    copies = {
        f"{prefix}r1": Copy(encode(RouterState(name="r1", sequence=1)), 1.0),
        f"{prefix}own": Copy(encode(RouterState(name="own", sequence=1)), 1.0),
        f"{prefix}bad\x1b": Copy(b"{", 1.0),
    }
    assert not told.read(copies)
    assert [one.state.name for one in told.cluster.heard] == ["r1"]
    [line] = told.lines
    assert line.startswith(f"ignored: {prefix}bad?")
    copies[f"{prefix}r1"] = Copy(encode(RouterState(name="r1", sequence=2)), 2.0)
    told.read(copies)
    assert [(one.state.sequence, one.at_s) for one in told.cluster.heard] == [(2, 2.0)]
    assert told.read({**copies, "/trainmesh/quarantine/node/x": Copy(b"broken", 1.0)})
    assert len(told.lines) == 2
    assert told.read({}) is True  # the broken verdict is gone, too
    assert told.cluster.heard == []


def test_so_many_routers_are_listened_to_and_no_more() -> None:
    told = Told()
    prefix = router_prefix("default")
    told.read(
        {
            f"{prefix}r{n}": Copy(encode(RouterState(name=f"r{n}", sequence=1)), 1.0)
            for n in range(MAX_ROUTERS + 5)
        }
    )
    assert len(told.cluster.heard) == MAX_ROUTERS


def test_a_graph_that_makes_no_sense_leaves_the_last_one() -> None:
    told = Told()
    told.read({f"{job_prefix('j')}graph": GRAPH})
    bad = {f"{job_prefix('j')}graph": Copy(b"\xff{", 1.0), f"{job_prefix('j')}status": GRAPH}
    told.read(bad)
    assert len(told.lines) == 2
    assert "h3" in told.cluster.ways(0.0, 0.0)
