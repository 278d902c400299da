"""``trainmesh topology show | validate``: look at a link graph."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainmesh.errors import ConfigError
from trainmesh.launcher import jobs
from trainmesh.topology.bound import bound
from trainmesh.topology.document import dump, load, load_file
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.render import svg, table_rows

__all__ = ["add_arguments", "run"]

REFERENCE_BYTES = 25_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a running job's graph, or a file's")
    jobs.add_arguments(show)
    show.add_argument("--file", type=Path, help="a topology file instead of a running job")
    show.add_argument("--draw", metavar="FILE.svg", type=Path, help="draw it into this file")
    validate = actions.add_parser("validate", help="check a topology file")
    validate.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> int:
    if args.action == "validate":
        graph = load_file(args.file)
        print(f"{args.file}: {graph.world_size} ranks, {len(graph.links)} directed links, valid")
        return 0
    shown = load_file(args.file) if args.file else _of_job(args)
    if shown is None:
        print("no job is running, or its ranks are not known yet")
        return 0
    least = bound(shown, REFERENCE_BYTES)
    if args.draw:
        _write(args.draw, svg(shown, cut=least.cut, bottleneck=least.links))
    if args.json:
        print(json.dumps(dump(shown)))
        return 0
    console = Console()
    console.print(_table(shown))
    if least.kind == "cut":
        console.print(
            f"an all-reduce is limited by the cut {', '.join(least.links[:6])}: "
            f"{REFERENCE_BYTES / least.time_s / 1e9:.3f} GB/s algbw at most",
            highlight=False,
        )
    elif least.kind == "volume":
        console.print(
            "an all-reduce is limited by all links of the ranks together: "
            f"{REFERENCE_BYTES / least.time_s / 1e9:.3f} GB/s algbw at most",
            highlight=False,
        )
    return 0


def _of_job(args: argparse.Namespace) -> LinkGraph | None:
    status = jobs.find_job(args)
    document = jobs.graph_document(args, status.job) if status is not None else None
    if status is None or document is None:
        return None
    return load(document.decode(), source=f"graph of {status.job}")


def _table(graph: LinkGraph) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("from", "to", "class", "GB/s", "alpha us", "source")
    for column in columns:
        table.add_column(column, justify="right" if column in ("GB/s", "alpha us") else "left")
    for row in table_rows(graph):
        table.add_row(*row)
    return table


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"--draw {path}: {error.strerror}") from error
