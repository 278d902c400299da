"""/metrics and /endpoints say what counters and snapshot say; every metric is documented."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.observe.desk import Desk
from trainmesh.serving.admin import metric_names
from trainmesh.serving.admin.metrics import Metrics
from trainmesh.serving.admin.overview import overview
from trainmesh.serving.admin.views import EndpointView, ModelView, Overview
from trainmesh.serving.cluster.cordons import Cordon, CordonState
from trainmesh.serving.control.rundir import WorkerWords
from trainmesh.serving.control.snapshot import Observations
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.observe.cells import (
    BOUNDS_S,
    STATES,
    EndpointCells,
    ModelCells,
    TenantCells,
    WorkerCells,
    names_of,
    state_index,
    status_index,
)
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.signals.probe_state import ProbeState

ROOT = Path(__file__).parents[3]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def samples(desk: Desk) -> dict[str, float]:
    """Sample as Prometheus writes it, with sorted labels -> value."""
    page = Metrics(lambda: desk.counters, lambda: desk.snapshot).page().decode()
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            key = f"{sample.name.removeprefix(metric_names.PREFIX)}{{{labels}}}"
            assert key not in found, "twice"
            found[key] = sample.value
    return found


def test_counters_add_up_over_workers(desk: Desk) -> None:
    layout = desk.counters.layout
    for worker, row in enumerate(desk.counters.rows):
        row.cells[layout.endpoints["m", "h1"].stream] = worker + 1
        row.cells[layout.endpoints["m", "h1"].state] = state_index(HealthState.EJECTED) * worker
        row.cells[layout.models["m"].hedges] = 10
        row.cells[layout.tenant("x").refused] = 2
        row.cells[layout.statuses + status_index(431)] = 1
        row.cells[layout.model_statuses["m"] + status_index(418)] = 4
        row.reals[layout.worker.loop_lag_s] = 0.5
        row.reals[layout.endpoints["m", "h1"].ttft_s] = 0.25
    found = samples(desk)
    assert found["endpoint_results_total{endpoint=h1,model=m,outcome=stream}"] == 3
    assert found["endpoint_results_total{endpoint=h1,model=m,outcome=ok}"] == 0
    assert found["endpoint_state{endpoint=h1,model=m,worker=0}"] == 0
    assert found["endpoint_state{endpoint=h1,model=m,worker=1}"] == 3
    assert found["endpoint_first_byte_seconds_total{endpoint=h1,model=m}"] == 0.5
    assert found["hedges_total{model=m}"] == 20
    assert found["tenant_refused_total{tenant=other}"] == 4
    assert found["responses_total{code=431,worker=1}"] == 1
    assert found["requests_total{code=0,model=m}"] == 8
    assert found["loop_lag_seconds{worker=1}"] == 0.5
    assert not [name for name in found if "code=404" in name], "never sent"


def test_histograms_are_cumulative(desk: Desk) -> None:
    histogram = desk.counters.layout.histograms["m", "ttft"]
    for row, seconds in zip(desk.counters.rows, (0.01, 0.5), strict=True):
        histogram.observe(row.cells, row.reals, seconds)
    desk.counters.rows[0].cells[histogram.offset + len(BOUNDS_S)] += 1  # above all bounds
    found = samples(desk)
    name = "time_to_first_token_seconds"
    buckets = [value for key, value in found.items() if key.startswith(f"{name}_bucket")]
    assert len(buckets) == len(BOUNDS_S) + 1
    assert buckets == sorted(buckets)
    assert found[f"{name}_bucket{{le=0.0005,model=m}}"] == 0
    assert found[f"{name}_bucket{{le=0.512,model=m}}"] == 2
    assert found[f"{name}_bucket{{le=+Inf,model=m}}"] == 3
    assert found[f"{name}_count{{model=m}}"] == 3
    assert found[f"{name}_sum{{model=m}}"] == pytest.approx(0.51)


def test_signals_come_from_the_snapshot(desk: Desk) -> None:
    probe_state = ProbeState(rtts_s=(0.004,), rtt_at_s=1.0)
    cordon = Cordon(state=CordonState.CORDON, by="admin:alice", since_unix_s=1.0)
    desk.look(
        Observations(
            probe_states={"http://127.0.0.1:9001": probe_state}, cordons={"org/h2:1": cordon}
        )
    )
    found = samples(desk)
    assert found["endpoint_rtt_seconds{endpoint=h1,model=m}"] == 0.004
    assert found["endpoint_up{endpoint=h1,model=m}"] == 1
    assert found["endpoint_up{endpoint=org/h2:1,model=m}"] == 0
    desk.snapshot = None
    assert not [name for name in samples(desk) if name.startswith("endpoint_up")]


def test_counters_never_go_back_over_a_reload(desk: Desk, tmp_path: Path) -> None:
    for row in desk.counters.rows:
        row.cells[desk.counters.layout.models["m"].requests] = 50
    before = samples(desk)["requests_started_total{model=m}"]
    desk.counters = SharedCounters.create(
        tmp_path / "board-2", names_of(desk.config), workers=1, generation=2, old=desk.counters
    )
    assert samples(desk)["requests_started_total{model=m}"] == before == 100


def test_registering_reads_nothing() -> None:
    def unready() -> SharedCounters:
        raise AssertionError("too early")

    assert isinstance(Metrics(unready, lambda: None)._registry, CollectorRegistry)


def test_every_cell_is_shown_and_every_metric_documented() -> None:
    not_counts = {"pid", "started_unix_s", "state", "base_s", "s_per_token"}
    for group, table in (
        (WorkerCells, metric_names.WORKER),
        (ModelCells, metric_names.MODEL),
        (EndpointCells, metric_names.ENDPOINT),
        (TenantCells, metric_names.TENANT),
    ):
        outcomes = {"ok", "client_error", "backpressure", "cancelled", "connect", "reset"}
        outcomes |= {"status", "timeout", "stream", "lone_error", "silent", "closed"}
        assert set(group._fields) - set(table) <= not_counts | outcomes, group
        assert set(table) <= set(group._fields)
    documented = (ROOT / "docs" / "serve_operations.md").read_text()
    for name, kind, labels, text in metric_names.catalogue():
        assert f"| `{name}` | {kind} | {labels} | {text} |" in documented
    shown = set(re.findall(r"^\| `(trainmesh_serve_\w+)`", documented, re.M))
    assert shown == {name for name, *_ in metric_names.catalogue()}


def test_the_dashboard_asks_for_metrics_that_are_there() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "trainmesh-serve.json").read_text())
    known = {name for name, *_ in metric_names.catalogue()}
    asked = {
        name.removesuffix("_bucket")
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"trainmesh_serve_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert asked <= known


def test_every_documented_metric_is_on_the_page(desk: Desk) -> None:
    row = desk.counters.row(0)
    for offset in range(len(row.cells)):
        if offset not in desk.counters.layout.reals:
            row.cells[offset] = 1
    row.cells[desk.counters.layout.endpoints["m", "h1"].state] = 0
    found = {key.partition("{")[0] for key in samples(desk)}
    for name, kind, *_ in metric_names.catalogue():
        short = name.removeprefix(metric_names.PREFIX)
        assert (f"{short}_count" if kind == "histogram" else short) in found


def view_of(desk: Desk) -> Overview:
    assert desk.snapshot is not None
    view = overview(
        desk.info, desk.config, desk.snapshot, desk.counters, desk.words(), time.monotonic()
    )
    return msgspec.json.decode(msgspec.json.encode(view), type=Overview)


def first(desk: Desk) -> tuple[ModelView, EndpointView]:
    model = view_of(desk).models[0]
    return model, model.endpoints[0]


def test_the_overview_of_a_fresh_router_says_what_is_unknown(desk: Desk) -> None:
    model, endpoint = first(desk)
    assert (model.name, model.policy, model.shadow) == ("m", "hybrid", "mesh")
    assert (endpoint.state, endpoint.reason, endpoint.node) == ("healthy", "", "n1")
    assert endpoint.rtt_s is endpoint.queued is endpoint.report_age_s is None
    assert endpoint.expected_ttft_s is endpoint.mean_ttft_s is None
    assert endpoint.share == 0
    assert view_of(desk).workers == ()


def test_the_overview_of_a_busy_router(desk: Desk) -> None:
    layout = desk.counters.layout
    h1, h2 = layout.endpoints["m", "h1"], layout.endpoints["m", "org/h2:1"]
    for worker, row in enumerate(desk.counters.rows):
        row.cells[layout.worker.pid] = 100 + worker
        row.reals[layout.worker.alive_at_s] = time.monotonic()
        row.cells[h1.attempts], row.cells[h2.attempts] = 3, 1
        row.cells[h1.connect] = row.cells[h1.stream] = 1
        row.cells[h1.inflight] = 2
        row.cells[h1.ttft_count], row.reals[h1.ttft_s] = 1, 0.1 * (worker + 1)
        row.cells[h1.prompt_tokens], row.reals[h1.s_per_token] = 300, 1e-4
    desk.counters.row(1).cells[h1.state] = STATES.index(HealthState.EJECTED)
    desk.counters.row(1).reals[h1.base_s] = 0.04
    desk.said = [
        WorkerWords(),
        WorkerWords(excluded={"m": {"h1": "ejected: 3 failures in a row"}}),
    ]
    model, endpoint = first(desk)
    assert endpoint.state == "ejected"
    assert endpoint.reason == "ejected: 3 failures in a row"
    assert (endpoint.inflight, endpoint.attempts, endpoint.faults) == (4, 6, 4)
    assert endpoint.share == 0.75
    assert endpoint.mean_ttft_s == pytest.approx(0.15)
    assert endpoint.expected_ttft_s == pytest.approx(0.04 + 101e-4), "of a mean prompt of 100"
    assert [worker.pid for worker in view_of(desk).workers] == [100, 101]
    assert model.endpoints[1].state == "healthy"


def test_what_the_control_process_knows_comes_first(desk: Desk) -> None:
    cordon = Cordon(state=CordonState.DRAIN, by="admin:alice", since_unix_s=1.0)
    desk.look(Observations(cordons={"h1": cordon}))
    desk.said = [WorkerWords(excluded={"m": {"h1": "ejected: 3 failures in a row"}})]
    _, endpoint = first(desk)
    assert (endpoint.state, endpoint.reason) == ("excluded", "draining by admin:alice")
