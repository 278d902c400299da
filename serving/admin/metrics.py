"""``GET /metrics``: the counters file and the snapshot in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from trainmesh.serving.admin.metric_names import (
    ENDPOINT,
    HISTOGRAMS,
    MODEL,
    PREFIX,
    SIGNALS,
    SPECIAL,
    TENANT,
    WORKER,
)
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.observe.cells import (
    BOUNDS_S,
    STATUSES,
    Cells,
    EndpointCells,
    ModelCells,
    SharedHistogram,
    TenantCells,
    WorkerCells,
    is_gauge,
    is_real,
)
from trainmesh.serving.observe.shared_counters import SharedCounters

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (*(f"{bound:.4g}" for bound in BOUNDS_S), "+Inf")


class Metrics(Collector):
    """Reads the newest counters file and snapshot whenever it is asked."""

    def __init__(
        self, counters: Callable[[], SharedCounters], snapshot: Callable[[], Snapshot | None]
    ) -> None:
        self._counters = counters
        self._snapshot = snapshot
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: without it, registering would collect before the router runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        counters = self._counters()
        layout = counters.layout
        yield from _workers(counters)
        yield from _group(counters, ModelCells, MODEL, ("model",), _keyed(layout.models))
        yield from _group(
            counters, EndpointCells, ENDPOINT, ("model", "endpoint"), layout.endpoints.items()
        )
        yield from _group(counters, TenantCells, TENANT, ("tenant",), _keyed(layout.tenants))
        yield from _special(counters)
        yield from _histograms(counters)
        snapshot = self._snapshot()
        if snapshot is not None:
            yield from _signals(snapshot)


def _family(
    name: str, text: str, labels: Sequence[str], *, gauge: bool
) -> GaugeMetricFamily | CounterMetricFamily:
    family = GaugeMetricFamily if gauge else CounterMetricFamily
    return family(PREFIX + name, text, labels=labels)


def _keyed(groups: Mapping[str, Cells]) -> list[tuple[tuple[str, ...], Cells]]:
    return [((name,), cells) for name, cells in groups.items()]


def _group(
    counters: SharedCounters,
    group: type[Cells],
    table: dict[str, tuple[str, str]],
    labels: Sequence[str],
    keyed: Iterable[tuple[tuple[str, ...], Cells]],
) -> Iterator[Metric]:
    items = list(keyed)
    for field, (name, text) in table.items():
        family = _family(name, text, labels, gauge=is_gauge(group, field))
        total = counters.total_real if is_real(group, field) else counters.total
        for key, cells in items:
            family.add_metric(key, total(getattr(cells, field)))
        yield family


def _workers(counters: SharedCounters) -> Iterator[Metric]:
    for field, (name, text) in WORKER.items():
        family = _family(name, text, ("worker",), gauge=is_gauge(WorkerCells, field))
        offset = getattr(counters.layout.worker, field)
        real = is_real(WorkerCells, field)
        for index, row in enumerate(counters.rows):
            family.add_metric((str(index),), row.reals[offset] if real else row.cells[offset])
        yield family


def _special(counters: SharedCounters) -> Iterator[Metric]:
    layout = counters.layout
    requests, responses, results, states = (
        _family(name, text, labels.split(", "), gauge=kind == "gauge")
        for name, (kind, labels, text) in SPECIAL.items()
    )
    for place, status in enumerate(STATUSES):
        for model, start in layout.model_statuses.items():
            _add_seen(requests, (model, str(status)), counters.total(start + place))
        for index, row in enumerate(counters.rows):
            _add_seen(responses, (str(index), str(status)), row.cells[layout.statuses + place])
    for key, cells in layout.endpoints.items():
        for outcome in AttemptOutcome:
            results.add_metric((*key, outcome.value), counters.total(cells.outcome(outcome)))
        for index, row in enumerate(counters.rows):
            states.add_metric((*key, str(index)), row.cells[cells.state])
    yield from (requests, responses, results, states)


def _add_seen(
    family: GaugeMetricFamily | CounterMetricFamily, labels: Sequence[str], value: int
) -> None:
    """Statuses that were never sent are left out: there are many of them."""
    if value:
        family.add_metric(labels, value)


def _histograms(counters: SharedCounters) -> Iterator[Metric]:
    for kind, (name, text) in HISTOGRAMS.items():
        family = HistogramMetricFamily(PREFIX + name, text, labels=("model",))
        for model in counters.layout.models:
            histogram = counters.layout.histograms[model, kind]
            family.add_metric((model,), _buckets(counters, histogram), _sum(counters, histogram))
        yield family


def _buckets(counters: SharedCounters, histogram: SharedHistogram) -> list[tuple[str, float]]:
    counts = (counters.total(histogram.offset + place) for place in range(len(BUCKETS)))
    return list(zip(BUCKETS, accumulate(counts), strict=True))


def _sum(counters: SharedCounters, histogram: SharedHistogram) -> float:
    return counters.total_real(histogram.sum_offset)


def _signals(snapshot: Snapshot) -> Iterator[Metric]:
    for field, (name, text) in SIGNALS.items():
        family = _family(name, text, ("model", "endpoint"), gauge=True)
        for model, signals in snapshot.signals.items():
            for signal in signals:
                value = not signal.excluded if field == "up" else getattr(signal, field)
                family.add_metric((model, signal.name), float(value))
        yield family
