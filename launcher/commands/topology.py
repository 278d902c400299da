"""``trainmesh topology show | validate | import | probe``: look at a link graph, or make one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainmesh.errors import ConfigError, GraphError
from trainmesh.launcher import jobs
from trainmesh.launcher.arguments import file_path, file_to_write
from trainmesh.launcher.commands import topology_import as import_topology
from trainmesh.launcher.output_file import write_output
from trainmesh.launcher.probe import command as probe_topology
from trainmesh.launcher.terminal import Output
from trainmesh.topology.bounds import bound
from trainmesh.topology.document import dump, load_file
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.render import svg, table_rows
from trainmesh.types import Plan
from trainmesh.units import count, duration, rate, size

__all__ = ["add_arguments", "run"]

DDP_BUCKET_BYTES = 25 * 2**20
"""Default size of a DDP bucket."""
MAX_ROWS = 200
"""Of the table in a terminal; JSON has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a running job's graph, or a file's")
    jobs.add_arguments(show)
    show.add_argument(
        "--file", metavar="FILE", type=file_path, help="a topology file instead of a running job"
    )
    show.add_argument(
        "--draw", metavar="FILE.svg", type=file_to_write(".svg"), help="draw it into this file"
    )
    validate = actions.add_parser("validate", help="check a topology file")
    validate.add_argument("file", type=file_path)
    words = "make a topology file of what NCCL, nvidia-smi, NVML, SLURM or a hostfile say"
    import_topology.add_arguments(actions.add_parser("import", help=words, description=words))
    words = "measure round trips and bandwidth between a running job's nodes"
    probe_topology.add_arguments(actions.add_parser("probe", help=words, description=words))


def run(args: argparse.Namespace) -> int:
    if args.action == "validate":
        graph = load_file(args.file, to_plan=True)
        Output().text(f"{args.file}: valid; {_size(graph)}", _limit(graph))
        return 0
    if args.action == "import":
        return import_topology.run(args)
    if args.action == "probe":
        return probe_topology.run(args)
    if args.file is not None and args.job is not None:
        raise ConfigError("give a job or --file, not both")
    graph, plan = (load_file(args.file), None) if args.file else _of_job(args)
    if args.draw:
        _draw(graph, plan, args.draw)
    if args.json:
        print(json.dumps(dump(graph)))
        return 0
    output = Output()
    output.text(f"{_size(graph)}, version {graph.version}")
    head = ["from", "to", "class", "GB/s", "alpha us", "source"]
    output.table(head, table_rows(graph), "tttnnt", MAX_ROWS)
    output.text(_limit(graph))
    return 0


def _of_job(args: argparse.Namespace) -> tuple[LinkGraph, Plan | None]:
    """The graph of a running job, and the plan that it runs."""
    status = jobs.find_job(args)
    with jobs.opened_store(args, status.job) as store:
        return jobs.graph_of(store, status.job), status.plan


def _size(graph: LinkGraph) -> str:
    others = len(graph.nodes) - graph.world_size
    return (
        f"{count(graph.world_size, 'rank')}, {count(others, 'other node')}, "
        f"{count(len(graph.links), 'directed link')}"
    )


def _limit(graph: LinkGraph) -> str:
    try:
        least = bound(graph.usable(), DDP_BUCKET_BYTES)
    except GraphError as error:
        return f"nothing can be planned {error}"
    if least.kind == "none":
        return "one rank: there is nothing to reduce"
    where = "all links of the ranks together"
    if least.kind == "cut" and least.links:
        where = "the cut " + ", ".join(least.links[:6]) + (", ..." if len(least.links) > 6 else "")
    return (
        f"no all-reduce of a {size(DDP_BUCKET_BYTES)} bucket can take less than "
        f"{duration(least.time_s)} ({rate(DDP_BUCKET_BYTES / least.time_s)} algbw): "
        f"limited by {where}"
    )


def _draw(graph: LinkGraph, plan: Plan | None, path: Path) -> None:
    """The picture, with what limits the plan in force, or else any plan at all."""
    try:
        least = bound(graph.usable(), DDP_BUCKET_BYTES)
    except GraphError as error:
        raise GraphError(f"--draw {path}: {error}") from error
    links, limited = (plan.bottleneck, "the plan") if plan else (least.links, "every plan")
    drawing = svg(graph, cut=least.cut, bottleneck=links, limited=limited)
    write_output(path, drawing.encode(), what="--draw")
