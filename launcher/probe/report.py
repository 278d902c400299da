"""The outcome of a probe: for scripts as JSON, for people as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from trainmesh.launcher.terminal import Output
from trainmesh.probe_types import CostFit, PairMeasure, ProbeListener, is_ceiling
from trainmesh.types import LinkCost
from trainmesh.units import count, duration, percent, rate

__all__ = ["NodeFacts", "PairReport", "ProbeReport", "node_facts", "show"]

MAX_TEXTS = 10
"""Shown in a terminal; the file has all."""
DIFFERENT = 1.25
"""Ratio of measured and expected bandwidth from which a pair is pointed out."""


class NodeFacts(Struct, frozen=True, kw_only=True):
    """A node's part: over which interface and address, or why not (``problem``)."""

    node: str
    interface: str = ""
    host: str = ""
    problem: str = ""


class PairReport(Struct, frozen=True, kw_only=True):
    """A pair's measure, its round (from 1), and what the graph in force says about it (None
    where the job has none yet, or it doesn't know the nodes)."""

    round: int
    measure: PairMeasure
    graph_forward: LinkCost | None = None
    graph_backward: LinkCost | None = None


class ProbeReport(Struct, frozen=True, kw_only=True):
    """What ``trainmesh topology probe --json`` prints. Seconds and bytes, names end in the
    unit."""

    job: str
    backend: str
    num_rounds: int
    nodes: tuple[NodeFacts, ...]
    pairs: tuple[PairReport, ...] = ()
    output: str = ""
    """The topology document that was written, if any."""


def node_facts(
    nodes: Sequence[str], listeners: Mapping[str, ProbeListener], problems: Mapping[str, str]
) -> tuple[NodeFacts, ...]:
    """A line for each of ``nodes``."""
    return tuple(
        NodeFacts(node=node, interface=listeners[node].interface, host=listeners[node].host)
        if node in listeners
        else NodeFacts(node=node, problem=problems.get(node, ""))
        for node in nodes
    )


def show(report: ProbeReport, output: Output) -> None:
    """Print the pairs, a row for each direction, and what is remarkable about them."""
    rows = [row for pair in report.pairs for row in _rows(pair)]
    head = ["from", "to", "rtt min", "median", "p99", "bandwidth", "+-", "alpha", "+-", "graph"]
    output.table(head, rows, "ttnnnnnnnn")
    problems = [f"not measured: {p.measure.problem}" for p in report.pairs if p.measure.problem]
    differences = [text for pair in report.pairs for text in _differences(pair)]
    for texts in (problems, differences):
        output.text(*texts[:MAX_TEXTS])
        if len(texts) > MAX_TEXTS:
            output.text(f"... and {len(texts) - MAX_TEXTS} more like this")
    measured = [(fit, pair.measure) for pair in report.pairs for _, _, fit, _ in _ways(pair)]
    if any(fit is not None and is_ceiling(fit, measure) for fit, measure in measured):
        output.text(">=: the agents' CPUs set this limit; the link may be faster")
    interfaces = Counter(facts.interface for facts in report.nodes if facts.host)
    over = ", ".join(f"{name} ({count(n, 'node')})" for name, n in sorted(interfaces.items()))
    output.text(f"{count(len(report.pairs), 'pair')} by TCP over {over or 'nothing'}")
    output.text("+-: half of the 95 % interval; graph: what the job's link graph says")


def _rows(pair: PairReport) -> list[list[str]]:
    measure = pair.measure
    trips = measure.round_trips
    times = [duration(s) for s in (trips.min_s, trips.median_s, trips.p99_s)]
    if not trips.received:
        times = ["-"] * 3
    return [
        [
            src,
            dst,
            *times,
            *_fit_cells(fit, measure),
            rate(graph.bandwidth_bytes_per_s) if graph else "-",
        ]
        for src, dst, fit, graph in _ways(pair)
    ]


def _ways(pair: PairReport) -> list[tuple[str, str, CostFit | None, LinkCost | None]]:
    measure = pair.measure
    return [
        (measure.src, measure.dst, measure.forward, pair.graph_forward),
        (measure.dst, measure.src, measure.backward, pair.graph_backward),
    ]


def _fit_cells(fit: CostFit | None, measure: PairMeasure) -> list[str]:
    if fit is None:
        return ["-"] * 4
    bandwidth = fit.cost.bandwidth_bytes_per_s
    width = (fit.bandwidth_high_bytes_per_s - fit.bandwidth_low_bytes_per_s) / 2
    return [
        (">= " if is_ceiling(fit, measure) else "") + rate(bandwidth),
        percent(width / bandwidth),
        duration(fit.cost.alpha_s),
        duration((fit.alpha_high_s - fit.alpha_low_s) / 2),
    ]


def _differences(pair: PairReport) -> list[str]:
    """Directions whose bandwidth is not what the graph in force says."""
    texts = []
    for src, dst, fit, graph in _ways(pair):
        if fit is None or graph is None:
            continue
        at_least = is_ceiling(fit, pair.measure)
        ratio = fit.cost.bandwidth_bytes_per_s / graph.bandwidth_bytes_per_s
        if ratio > DIFFERENT or (ratio < 1 / DIFFERENT and not at_least):
            texts.append(
                f"{src} -> {dst}: measured {rate(fit.cost.bandwidth_bytes_per_s)} is "
                f"{ratio:.2g} times the {rate(graph.bandwidth_bytes_per_s)} of the graph in force"
            )
    return texts
