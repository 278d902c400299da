"""The answer to ``GET /endpoints``, which ``trainmesh endpoints`` shows."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["EndpointView", "ModelView", "Overview", "WorkerView"]


class EndpointView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One endpoint of one model. Ages are seconds; None where nothing was measured."""

    name: str
    url: str
    state: str
    """healthy, slow start, backoff, ejected (by a worker), excluded (by the control process)"""
    reason: str = ""
    node: str = ""
    zone: str = ""
    runtime: str = ""
    standby: bool = False
    inflight: int = 0
    inflight_tokens: int = 0
    others_inflight: int = 0
    """From other routers."""
    queued: int | None = None
    running: int | None = None
    kv_use: float | None = None
    report_age_s: float | None = None
    rtt_s: float | None = None
    rtt_age_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    derate: float = 1.0
    derate_reason: str = ""
    expected_ttft_s: float | None = None
    """Of a prompt of its mean length, were it idle."""
    mean_ttft_s: float | None = None
    """Over all answers since the router started."""
    attempts: int = 0
    faults: int = 0
    backpressure: int = 0
    share: float = 0.0
    """Part of the model's attempts."""


class ModelView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model."""

    name: str
    policy: str
    endpoints: tuple[EndpointView, ...]
    requests: int = 0
    inflight: int = 0
    queued: int = 0
    demand: float = 0.0
    shadow: str = ""
    shadow_compared: int = 0
    shadow_same: int = 0
    shadow_wins: int = 0
    shadow_losses: int = 0
    arm_requests: int = 0
    arm_mean_ttft_s: float | None = None
    base_requests: int = 0
    base_mean_ttft_s: float | None = None


class WorkerView(Struct, frozen=True, kw_only=True):
    """One worker process."""

    index: int
    pid: int
    age_s: float
    """Since its last tick."""
    snapshot: int
    draining: bool
    connections: int
    streams: int
    loop_lag_s: float


class Overview(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that ``trainmesh endpoints`` shows of one router."""

    router: str
    pid: int
    listen: str
    snapshot: int
    snapshot_age_s: float
    models: tuple[ModelView, ...]
    workers: tuple[WorkerView, ...]
    routers: tuple[str, ...] = ()
    store: str = ""
