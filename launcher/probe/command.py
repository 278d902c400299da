"""``trainmesh topology probe [JOB]``: measure round trips and bandwidth between a job's nodes."""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trainmesh.console import clean, say
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher import jobs
from trainmesh.launcher.arguments import file_to_write
from trainmesh.launcher.graph_file import SUFFIXES, write_graph
from trainmesh.launcher.output_file import check_output
from trainmesh.launcher.probe.progress import shown
from trainmesh.launcher.probe.report import PairReport, ProbeReport, node_facts, show
from trainmesh.launcher.probe.session import GRACE_S, ProbeSession, nodes_of
from trainmesh.launcher.quantity import nbytes
from trainmesh.launcher.run import signals
from trainmesh.launcher.terminal import Output
from trainmesh.probe_types import MAX_NODES, MAX_PAIR_BYTES, MAX_PAIR_S, PairMeasure
from trainmesh.store.base import Store
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.measure.measured import Between, expected, not_tcp, with_measures
from trainmesh.topology.measure.probing import LEAST_BYTES, exchanged, ladder, rounds
from trainmesh.types import JobStatus
from trainmesh.units import count, duration, size

__all__ = ["add_arguments", "run"]

ECHOES = 100
"""Round trips of a pair: enough for its least, and for a spread."""
MIN_ROUND_S = 0.1
"""Below, a round has no time for anything but round trips."""
MAX_TOTAL_S = 3_600.0
"""An hour: above is a slip of the keyboard."""
Turns = list[list[PairMeasure]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs.add_arguments(parser)
    parser.add_argument(
        "--bytes",
        metavar="SIZE",
        type=_pair_bytes,
        default=64_000_000,
        help="most that a pair may exchange, both directions together (default: 64MB)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=_seconds,
        default=30.0,
        help="most that all rounds together may take (default: 30)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=file_to_write(*SUFFIXES),
        help="write the job's graph with the measured costs into this topology file",
    )


def run(args: argparse.Namespace) -> int:
    """Probe; 0 if every pair was measured, 1 if not."""
    status = jobs.find_job(args)
    with signals.raising(), jobs.opened_store(args, status.job) as store:
        if store is None:
            raise TrainmeshError(f"job {status.job} is still starting; try again in a moment")
        nodes = nodes_of(store, status.job)
        if len(nodes) < 2:
            return _one_node(args, status, nodes)
        graph = _graph(store, status, args.output)
        report, turns = _probe(args, status, store, nodes, graph)
    if args.output is not None and graph is not None:
        report = msgspec.structs.replace(report, output=clean(str(args.output)))
        write_graph(_measured(graph, status, turns), args.output, what="--output")
    if args.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        show(report, Output())
        if report.output:
            print(f"wrote {report.output}")
    return 1 if any(pair.measure.problem for pair in report.pairs) else 0


def _one_node(args: argparse.Namespace, status: JobStatus, nodes: Sequence[str]) -> int:
    """No links between nodes: nothing to measure is no failure, unless a file was asked for."""
    words = f"job {status.job} has {count(len(nodes), 'node')} with an agent"
    if args.output is not None:
        raise TrainmeshError(f"{words}: nothing was measured, {args.output} was not written")
    if args.json:
        report = ProbeReport(
            job=status.job,
            backend=status.backend,
            num_rounds=0,
            nodes=node_facts(nodes, {}, {}),
        )
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        print(f"{words}: there is no link between nodes to measure")
    return 0


def _graph(store: Store, status: JobStatus, output: Path | None) -> LinkGraph | None:
    """The graph in force. Everything that ``output`` needs is checked before anything is
    measured."""
    try:
        graph = jobs.graph_of(store, status.job)
    except jobs.NoGraph:
        if output is not None:
            raise
        return None
    if output is not None:
        check_output(output, what="--output")
    return graph


def _probe(
    args: argparse.Namespace,
    status: JobStatus,
    store: Store,
    nodes: Sequence[str],
    graph: LinkGraph | None,
) -> tuple[ProbeReport, Turns]:
    plan = rounds(nodes)
    _announce(args, status, plan)
    with ProbeSession(
        store,
        status.job,
        backend=status.backend,
        nbytes=args.bytes,
        seconds=min(MAX_PAIR_S, args.seconds),
        echoes=ECHOES,
        total_s=args.seconds + GRACE_S * len(plan),
    ) as session:
        session.wait_ready(nodes)
        turns = _rounds(session, plan, args.seconds)
        facts = node_facts(nodes, session.listeners, session.problems)
    between = Between(graph, _ranks(status)) if graph is not None else None
    report = ProbeReport(
        job=status.job,
        backend=status.backend,
        num_rounds=len(plan),
        nodes=facts,
        pairs=tuple(
            _pair(number, measure, between)
            for number, turn in enumerate(turns, start=1)
            for measure in turn
        ),
    )
    return report, turns


def _announce(
    args: argparse.Namespace, status: JobStatus, plan: Sequence[Sequence[tuple[str, str]]]
) -> None:
    num_pairs = sum(map(len, plan))
    if len(plan) >= MAX_NODES:
        raise TrainmeshError(
            f"job {status.job} has more than {MAX_NODES} nodes: all pairs of them are too many"
        )
    if args.seconds < MIN_ROUND_S * len(plan):
        raise ConfigError(
            f"--seconds {args.seconds:g} is too short for {count(len(plan), 'round')}; give at "
            f"least {MIN_ROUND_S * len(plan):g}"
        )
    say(
        f"probing {count(num_pairs, 'pair')} of nodes in {count(len(plan), 'round')}, at most "
        f"{size(exchanged(ladder(args.bytes)))} a pair and {duration(args.seconds)} in all; job "
        f"{status.job} runs on and shares the network with the probe: both are slower meanwhile"
    )


def _rounds(
    session: ProbeSession, plan: Sequence[Sequence[tuple[str, str]]], seconds: float
) -> Turns:
    """One round after the other, each with its share of the time that is left."""
    end_s = time.monotonic() + seconds
    turns: Turns = []
    with shown(len(plan), sum(map(len, plan))) as progress:
        for number, pairs in enumerate(plan, start=1):
            progress.begin_round(number, list(pairs))
            share_s = (end_s - time.monotonic()) / (len(plan) - number + 1)
            able = [pair for pair in pairs if set(pair) <= session.listeners.keys()]
            if share_s > 0:
                limit_s = min(MAX_PAIR_S, share_s)
                done = session.turn(able, limit_s, progress.pair_done) if able else []
            else:
                done = [session.failed(pair, "the time was up before its round") for pair in able]
            by_pair = {(measure.src, measure.dst): measure for measure in done}
            turns.append([by_pair.get(pair) or session.failed(pair) for pair in pairs])
    return turns


def _pair(number: int, measure: PairMeasure, between: Between | None) -> PairReport:
    there = back = None
    if between is not None:
        there = expected(between.path(measure.src, measure.dst))
        back = expected(between.path(measure.dst, measure.src))
    return PairReport(round=number, measure=measure, graph_forward=there, graph_backward=back)


def _ranks(status: JobStatus) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank in status.ranks:
        ranks[rank.node].append(rank.rank)
    return dict(ranks)


def _measured(graph: LinkGraph, status: JobStatus, turns: Turns) -> LinkGraph:
    classes = not_tcp(status.backend)
    return with_measures(graph, _ranks(status), turns, except_classes=classes)


def _pair_bytes(text: str) -> int:
    value = nbytes(text)
    if not LEAST_BYTES <= value <= MAX_PAIR_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size from {size(LEAST_BYTES)} to {size(MAX_PAIR_BYTES)}"
        )
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_TOTAL_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time up to {MAX_TOTAL_S:g} seconds")
    return value
