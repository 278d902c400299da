"""Builds the answer to ``GET /endpoints`` from the router's state; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainmesh.serving.admin.views import EndpointView, ModelView, Overview, WorkerView
from trainmesh.serving.config.types import Config, EndpointConfig
from trainmesh.serving.control.rundir import RouterInfo, WorkerWords
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.decide.types import EndpointSignal
from trainmesh.serving.observe.cells import STATES, EndpointCells
from trainmesh.serving.observe.shared_counters import SharedCounters

__all__ = ["overview"]

FAULTS = ("connect", "reset", "status", "timeout", "stream", "lone_error")


def overview(
    info: RouterInfo,
    config: Config,
    snapshot: Snapshot,
    counters: SharedCounters,
    words: Sequence[WorkerWords],
    now_s: float,
) -> Overview:
    """Put it together; ``now_s`` is monotonic."""
    return Overview(
        router=info.name,
        pid=info.pid,
        listen=info.listen,
        snapshot=snapshot.version,
        snapshot_age_s=max(0.0, now_s - snapshot.taken_at_s),
        models=tuple(
            _model(name, config, snapshot, counters, words, now_s) for name in config.models
        ),
        workers=_workers(counters, now_s),
        routers=snapshot.routers,
        store=snapshot.store,
    )


def _workers(counters: SharedCounters, now_s: float) -> tuple[WorkerView, ...]:
    cells = counters.layout.worker
    return tuple(
        WorkerView(
            index=index,
            pid=row.cells[cells.pid],
            age_s=max(0.0, now_s - row.reals[cells.alive_at_s]),
            snapshot=row.cells[cells.snapshot],
            draining=bool(row.cells[cells.draining]),
            connections=row.cells[cells.connections],
            streams=row.cells[cells.streams],
            loop_lag_s=row.reals[cells.loop_lag_s],
        )
        for index, row in enumerate(counters.rows)
        if row.cells[cells.pid]
    )


def _model(
    name: str,
    config: Config,
    snapshot: Snapshot,
    counters: SharedCounters,
    words: Sequence[WorkerWords],
    now_s: float,
) -> ModelView:
    spec = config.models[name]
    cells = counters.layout.models[name]
    attempts = {
        endpoint.name: counters.total(counters.layout.endpoints[name, endpoint.name].attempts)
        for endpoint in spec.endpoints
    }
    everything = sum(attempts.values())
    signals = {signal.name: signal for signal in snapshot.signals.get(name, ())}
    excluded = [each.excluded.get(name, {}) for each in words]
    return ModelView(
        name=name,
        policy=spec.policy,
        endpoints=tuple(
            _endpoint(
                endpoint,
                signals.get(endpoint.name, EndpointSignal(name=endpoint.name)),
                counters,
                counters.layout.endpoints[name, endpoint.name],
                _first(excluded, endpoint.name),
                snapshot.derates.get(endpoint.url, ""),
                attempts[endpoint.name] / everything if everything else 0.0,
                now_s,
            )
            for endpoint in spec.endpoints
        ),
        requests=counters.total(cells.requests),
        inflight=counters.total(cells.inflight),
        queued=counters.total(cells.queued),
        demand=snapshot.demand.get(name, 0.0),
        shadow=spec.shadow.policy if spec.shadow else "",
        shadow_compared=counters.total(cells.shadow_compared),
        shadow_same=counters.total(cells.shadow_same),
        shadow_wins=counters.total(cells.shadow_wins),
        shadow_losses=counters.total(cells.shadow_losses),
        arm_requests=counters.total(cells.arm_requests),
        arm_mean_ttft_s=_mean(counters, cells.arm_ttft_s, cells.arm_requests),
        base_requests=counters.total(cells.base_requests),
        base_mean_ttft_s=_mean(counters, cells.base_ttft_s, cells.base_requests),
    )


def _endpoint(
    endpoint: EndpointConfig,
    signal: EndpointSignal,
    counters: SharedCounters,
    cells: EndpointCells,
    workers_reason: str,
    derate_reason: str,
    share: float,
    now_s: float,
) -> EndpointView:
    worst = max(row.cells[cells.state] for row in counters.rows)
    reported = bool(signal.reported_at_s)
    return EndpointView(
        name=endpoint.name,
        url=endpoint.url,
        state="excluded" if signal.excluded else STATES[worst].value,
        reason=signal.excluded or workers_reason,
        node=endpoint.node,
        zone=endpoint.zone,
        runtime=endpoint.runtime.value,
        standby=endpoint.standby,
        inflight=counters.total(cells.inflight),
        inflight_tokens=counters.total(cells.inflight_tokens),
        others_inflight=signal.others_inflight,
        queued=signal.queued if reported else None,
        running=signal.running if reported else None,
        kv_use=signal.kv_use if reported else None,
        report_age_s=now_s - signal.reported_at_s if reported else None,
        rtt_s=signal.rtt_s or None,
        rtt_age_s=now_s - signal.rtt_at_s if signal.rtt_at_s else None,
        bandwidth_bytes_per_s=signal.bandwidth_bytes_per_s or None,
        derate=signal.derate,
        derate_reason=derate_reason,
        expected_ttft_s=_expected_s(counters, cells),
        mean_ttft_s=_mean(counters, cells.ttft_s, cells.ttft_count),
        attempts=counters.total(cells.attempts),
        faults=sum(counters.total(getattr(cells, fault)) for fault in FAULTS),
        backpressure=counters.total(cells.backpressure),
        share=share,
    )


def _first(excluded: Sequence[Mapping[str, str]], endpoint: str) -> str:
    return next((each[endpoint] for each in excluded if each.get(endpoint)), "")


def _mean(counters: SharedCounters, total: int, count: int) -> float | None:
    number = counters.total(count)
    return counters.total_real(total) / number if number else None


def _expected_s(counters: SharedCounters, cells: EndpointCells) -> float | None:
    """What ``decide.cost`` expects of an idle endpoint, without the network."""
    attempts = counters.total(cells.attempts)
    if not attempts:
        return None
    prompt_tokens = counters.total(cells.prompt_tokens) / attempts
    base_s, s_per_token = (_average(counters, each) for each in (cells.base_s, cells.s_per_token))
    return base_s + s_per_token * (prompt_tokens + 1)


def _average(counters: SharedCounters, offset: int) -> float:
    """Over the workers that have an estimate; 0 if none has."""
    known = [row.reals[offset] for row in counters.rows if row.reals[offset]]
    return sum(known) / len(known) if known else 0.0
