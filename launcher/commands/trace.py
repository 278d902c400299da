"""``trainmesh trace RANK RANK [JOB]``: the path between two ranks in the link graph, both ways,
hop by hop, and what a probe has measured between their nodes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import msgspec

from trainmesh.errors import ConfigError
from trainmesh.launcher import jobs
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.terminal import Output
from trainmesh.probe_types import CostFit, PairMeasure, measured_key
from trainmesh.topology.document import load_file
from trainmesh.topology.graph import Link, LinkGraph
from trainmesh.topology.measure.measured import expected
from trainmesh.types import JobStatus, LinkCost
from trainmesh.units import count, duration, rate
from trainmesh.wire import decode

__all__ = ["TracedLink", "Trace", "TracedDirection", "add_arguments", "run"]


class TracedLink(msgspec.Struct, frozen=True, kw_only=True):
    """One link; ``source`` says where its cost comes from."""

    src: str
    dst: str
    link_class: str
    cost: LinkCost
    source: str


class TracedDirection(msgspec.Struct, frozen=True, kw_only=True):
    """One direction: its links, the sum of their alphas and the bandwidth of the narrowest."""

    hops: tuple[TracedLink, ...]
    cost: LinkCost
    narrowest: str


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trainmesh trace --json`` prints. ``measured`` is the newest probe between the nodes
    of the two ranks; its ``src`` is not always the node of ours."""

    src: int
    dst: int
    graph_version: int
    forward: TracedDirection
    backward: TracedDirection
    measured: PairMeasure | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="RANK", type=_rank, help="from this rank")
    parser.add_argument("dst", metavar="RANK", type=_rank, help="to this rank, and back")
    jobs.add_arguments(parser)
    parser.add_argument(
        "--file", metavar="FILE", type=file_path, help="a topology file instead of a running job"
    )


def run(args: argparse.Namespace) -> int:
    if args.src == args.dst:
        raise ConfigError(f"rank {args.src} twice: there is no link from a rank to itself")
    if args.file is not None and args.job is not None:
        raise ConfigError("give a job or --file, not both")
    if args.file is not None:
        graph, measured = load_file(args.file), None
    else:
        graph, measured = _of_job(args)
    trace = _trace(graph, args.src, args.dst, measured)
    if args.json:
        sys.stdout.write(msgspec.json.encode(trace).decode() + "\n")
    else:
        _show(trace, Output())
    return 0


def _of_job(args: argparse.Namespace) -> tuple[LinkGraph, PairMeasure | None]:
    status = jobs.find_job(args)
    with jobs.opened_store(args, status.job) as store:
        graph = jobs.graph_of(store, status.job)
        for key in _keys(status, args.src, args.dst):
            stored = store.get(key) if store is not None else None
            if stored is not None:
                return graph, decode(stored.value, PairMeasure, what=key)
    return graph, None


def _keys(status: JobStatus, src: int, dst: int) -> list[str]:
    """Where a measure between the nodes of the two ranks may be; none if they share a node."""
    nodes = {rank.rank: rank.node for rank in status.ranks}
    a, b = nodes.get(src), nodes.get(dst)
    if a is None or b is None or a == b:
        return []
    return [measured_key(status.job, a, b), measured_key(status.job, b, a)]


def _trace(graph: LinkGraph, src: int, dst: int, measured: PairMeasure | None) -> Trace:
    for rank in (src, dst):
        if rank >= graph.world_size:
            raise ConfigError(f"no rank {rank} in the graph; known: 0..{graph.world_size - 1}")
    return Trace(
        src=src,
        dst=dst,
        graph_version=graph.version,
        forward=_way(graph.path(src, dst)),
        backward=_way(graph.path(dst, src)),
        measured=measured,
    )


def _way(path: Sequence[Link]) -> TracedDirection:
    cost = expected(path)
    assert cost is not None  # noqa: S101 - two ranks are never at the same node
    narrowest = min(path, key=lambda link: link.cost.bandwidth_bytes_per_s)
    return TracedDirection(
        hops=tuple(
            TracedLink(
                src=link.src,
                dst=link.dst,
                link_class=link.link_class,
                cost=link.cost,
                source=link.provenance.name.lower(),
            )
            for link in path
        ),
        cost=cost,
        narrowest=narrowest.name,
    )


def _show(trace: Trace, output: Output) -> None:
    ways = [(trace.src, trace.dst, trace.forward), (trace.dst, trace.src, trace.backward)]
    for src, dst, way in ways:
        output.text(
            f"rank {src} -> rank {dst}: {count(len(way.hops), 'hop')}, alpha "
            f"{duration(way.cost.alpha_s)}, at most {rate(way.cost.bandwidth_bytes_per_s)} "
            f"({way.narrowest})"
        )
        rows = [
            [
                hop.src,
                hop.dst,
                hop.link_class,
                rate(hop.cost.bandwidth_bytes_per_s),
                duration(hop.cost.alpha_s),
                hop.source,
            ]
            for hop in way.hops
        ]
        output.table(["from", "to", "class", "bandwidth", "alpha", "source"], rows, "tttnnt")
    if trace.measured is not None:
        output.text(*_describe_measured(trace.measured))


def _describe_measured(measure: PairMeasure) -> list[str]:
    """The date is that of the host that has measured: its clock may be off."""
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(measure.unix_s))
    trips = measure.round_trips
    lines = [
        f"probed between their nodes at {date} by the clock of {measure.src}: round trip "
        f"{duration(trips.median_s)} (median of {trips.received})"
    ]
    for src, dst, fit in (
        (measure.src, measure.dst, measure.forward),
        (measure.dst, measure.src, measure.backward),
    ):
        if fit is not None:
            lines.append(f"  {src} -> {dst}: {_describe_fit(fit)}")
    return lines


def _describe_fit(fit: CostFit) -> str:
    low, high = fit.bandwidth_low_bytes_per_s, fit.bandwidth_high_bytes_per_s
    return (
        f"{rate(fit.cost.bandwidth_bytes_per_s)} ({rate(low)} to {rate(high)}), alpha "
        f"{duration(fit.cost.alpha_s)}"
    )


def _rank(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank: a whole number from 0 on")
    return int(text)
