"""The counters of the counters file, and the place of each in a worker's row.

A *cell* is eight bytes: a whole number, or a float where the field says so. Cells come in groups:
one for the worker itself, and one for each model, endpoint and tenant. A group's fields hold
offsets into the row, so the hot path is ``cells[group.requests] += 1``.

The layout is a pure function of the configuration and is stored in the counters file, so a reader
needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, TypeVar, get_type_hints

from msgspec import Struct

from trainmesh.serving.config.types import Config
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.identity.access import ANONYMOUS
from trainmesh.serving.observe.durations import BOUNDS_S, SharedHistogram

__all__ = [
    "BOUNDS_S",
    "OTHER",
    "STATES",
    "STATUSES",
    "Cells",
    "EndpointCells",
    "SharedHistogram",
    "CellLayout",
    "ModelCells",
    "Names",
    "TenantCells",
    "WorkerCells",
    "is_gauge",
    "is_real",
    "names_of",
    "state_index",
    "status_index",
]

OTHER = "other"
"""The tenant that all names which serve.yaml doesn't list are counted under."""

STATUSES: tuple[int, ...] = (
    *(200, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 426, 429, 431),
    *(499, 500, 501, 502, 503, 504, 505, 0),
)
"""Statuses that are counted one by one; 0 stands for all others. 499: the client went away."""

STATES = (HealthState.HEALTHY, HealthState.SLOW_START, HealthState.BACKOFF, HealthState.EJECTED)
"""What EndpointCells.state counts from 0, the worst last."""


class CellKind(NamedTuple):
    """A gauge says what is now, the rest only grows; ``real``: the cell is a float."""

    gauge: bool
    real: bool


Count = Annotated[int, CellKind(gauge=False, real=False)]
Total = Annotated[int, CellKind(gauge=False, real=True)]
Gauge = Annotated[int, CellKind(gauge=True, real=False)]
Level = Annotated[int, CellKind(gauge=True, real=True)]


class WorkerCells(NamedTuple):
    """One worker process."""

    pid: Gauge
    started_unix_s: Level
    alive_at_s: Level
    """Monotonic time of its last tick."""
    snapshot: Gauge
    """Version of the snapshot it decides with."""
    draining: Gauge
    connections: Gauge
    streams: Gauge
    """Answers that are being streamed now."""
    buffered_bytes: Gauge
    loop_lag_s: Level
    """How late its last tick was."""
    accepted: Count
    refused_connections: Count
    bad_requests: Count
    """Requests whose framing was refused."""
    decisions: Count
    decision_s: Total
    slow_decisions: Count
    """Over the time budget, so the fallback policy took over."""
    ledger_records: Count
    ledger_dropped: Count
    log_dropped: Count


class ModelCells(NamedTuple):
    """One model at one worker."""

    inflight: Gauge
    queued: Gauge
    requests: Count
    queued_total: Count
    refused: Count
    """429 by admission, before any endpoint was asked."""
    unroutable: Count
    """503: no endpoint could take it."""
    retries: Count
    retries_denied: Count
    """The retry budget was spent."""
    hedges: Count
    hedges_denied: Count
    hedge_wins: Count
    hedge_tokens: Count
    """Tokens sent a second time by hedges."""
    broken_streams: Count
    """Ended in an error event."""
    shadow_compared: Count
    shadow_same: Count
    """The shadow policy would have gone to the same endpoint."""
    shadow_wins: Count
    """It expected, or in an A/B test had, an earlier first byte."""
    shadow_losses: Count
    base_requests: Count
    """Answered requests that the model's own policy decided, while a shadow is set."""
    base_ttft_s: Total
    arm_requests: Count
    """Answered requests that the shadow policy decided (A/B test)."""
    arm_ttft_s: Total


class EndpointCells(NamedTuple):
    """One endpoint of one model at one worker."""

    inflight: Gauge
    inflight_tokens: Gauge
    waiting_tokens: Gauge
    connections: Gauge
    state: Gauge
    """Place in STATES."""
    attempts: Count
    ok: Count
    client_error: Count
    backpressure: Count
    cancelled: Count
    connect: Count
    reset: Count
    status: Count
    timeout: Count
    stream: Count
    lone_error: Count
    silent: Count
    closed: Count
    retries: Count
    hedges: Count
    hedge_wins: Count
    trials: Count
    ejections: Count
    sent_bytes: Count
    received_bytes: Count
    prompt_tokens: Count
    output_tokens: Count
    ttft_count: Count
    ttft_s: Total
    base_s: Level
    """Estimated TTFT of an empty prompt."""
    s_per_token: Level

    def outcome(self, outcome: AttemptOutcome) -> int:
        """The cell that counts attempts which ended so."""
        return self[_OUTCOME_PLACES[outcome]]


_OUTCOME_PLACES = {each: EndpointCells._fields.index(each.value) for each in AttemptOutcome}
"""Where in EndpointCells attempts are counted that ended so."""


class TenantCells(NamedTuple):
    """One tenant at one worker."""

    inflight: Gauge
    queued: Gauge
    requests: Count
    refused: Count
    prompt_tokens: Count
    output_tokens: Count


MODEL_HISTOGRAMS = ("ttft", "duration", "gap", "queue_wait")
"""First byte; whole answer; between two pieces of a stream; in the queue."""

Cells = WorkerCells | ModelCells | EndpointCells | TenantCells
Group = TypeVar("Group", WorkerCells, ModelCells, EndpointCells, TenantCells)


def is_gauge(group: type[Cells], field: str) -> bool:
    """Whether the field says what is now (such cells are cleared when their worker dies)."""
    return _KINDS[group.__name__][field].gauge


def is_real(group: type[Cells], field: str) -> bool:
    """Whether the cell holds a float."""
    return _KINDS[group.__name__][field].real


def _kinds_of(group: type[Cells]) -> dict[str, CellKind]:
    hints = get_type_hints(group, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in group._fields}


_KINDS = {
    group.__name__: _kinds_of(group)
    for group in (WorkerCells, ModelCells, EndpointCells, TenantCells)
}
_STATE_INDEX = {state: index for index, state in enumerate(STATES)}


def state_index(state: HealthState) -> int:
    """Place of ``state`` in STATES."""
    return _STATE_INDEX[state]


_STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}


def status_index(status: int) -> int:
    """Place of ``status`` in STATUSES."""
    return _STATUS_INDEX.get(status, len(STATUSES) - 1)


class Names(Struct, frozen=True):
    """What the groups of a counters file are for: all that its layout depends on."""

    models: tuple[tuple[str, tuple[str, ...]], ...]
    """Each model with its endpoints' names."""
    tenants: tuple[str, ...]


def names_of(config: Config) -> Names:
    """The names in ``config``; ``config.load`` has filled in endpoint names."""
    return Names(
        models=tuple(
            (model, tuple(endpoint.name for endpoint in spec.endpoints))
            for model, spec in config.models.items()
        ),
        tenants=tuple(dict.fromkeys((*config.tenants, ANONYMOUS, OTHER))),
    )


class CellLayout:
    """Offsets of all groups within a row."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.num_cells = 0
        self.gauges: list[int] = []
        self.reals: set[int] = set()
        self.worker = self._group(WorkerCells)
        self.statuses = self._take(len(STATUSES))
        self.models: dict[str, ModelCells] = {}
        self.model_statuses: dict[str, int] = {}
        self.endpoints: dict[tuple[str, str], EndpointCells] = {}
        self.histograms: dict[tuple[str, str], SharedHistogram] = {}
        for model, endpoints in names.models:
            self.models[model] = self._group(ModelCells)
            self.model_statuses[model] = self._take(len(STATUSES))
            for histogram in MODEL_HISTOGRAMS:
                self.histograms[model, histogram] = self._histogram()
            for endpoint in endpoints:
                self.endpoints[model, endpoint] = self._group(EndpointCells)
        self.tenants = {tenant: self._group(TenantCells) for tenant in names.tenants}

    def tenant(self, name: str) -> TenantCells:
        """The cells of a tenant, or of all that serve.yaml doesn't name."""
        return self.tenants.get(name) or self.tenants[OTHER]

    def blocks(self) -> Iterator[tuple[tuple[str, ...], Sequence[int]]]:
        """Every block of cells with a key that stays the same over reloads."""
        yield ("worker",), self.worker
        yield ("statuses",), range(self.statuses, self.statuses + len(STATUSES))
        for model, cells in self.models.items():
            yield ("model", model), cells
            start = self.model_statuses[model]
            yield ("statuses", model), range(start, start + len(STATUSES))
        for (model, name), histogram in self.histograms.items():
            yield ("histogram", model, name), _cells_of(histogram)
        for (model, endpoint), endpoint_cells in self.endpoints.items():
            yield ("endpoint", model, endpoint), endpoint_cells
        for tenant, tenant_cells in self.tenants.items():
            yield ("tenant", tenant), tenant_cells

    def _take(self, count: int) -> int:
        offset = self.num_cells
        self.num_cells += count
        return offset

    def _group(self, group: type[Group]) -> Group:
        offset = self._take(len(group._fields))
        for index, kind in enumerate(_KINDS[group.__name__].values(), offset):
            if kind.gauge:
                self.gauges.append(index)
            if kind.real:
                self.reals.add(index)
        return group._make(range(offset, offset + len(group._fields)))

    def _histogram(self) -> SharedHistogram:
        histogram = SharedHistogram(self._take(SharedHistogram.NUM_CELLS))
        self.reals.add(histogram.sum_offset)
        return histogram


def _cells_of(histogram: SharedHistogram) -> range:
    return range(histogram.offset, histogram.offset + SharedHistogram.NUM_CELLS)
