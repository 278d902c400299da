"""``trainmesh plan``: the bound and the best plan for a topology file, without a job."""

from __future__ import annotations

import argparse
import json

from trainmesh.launcher.arguments import file_path, file_to_write
from trainmesh.launcher.output_file import write_output
from trainmesh.launcher.quantity import nbytes
from trainmesh.launcher.terminal import Output, waiting
from trainmesh.topology.answer import PlanAnswer, answer
from trainmesh.topology.document import load_file
from trainmesh.topology.explain import candidate_name
from trainmesh.topology.nccl.tables import Generation
from trainmesh.topology.render import svg
from trainmesh.types import Collective
from trainmesh.units import count, duration, rate

__all__ = ["add_arguments", "run"]

MAX_ROWS = 50
"""Of the table in a terminal; JSON has all."""
MAX_TREES = 65_536
"""Far beyond what any plan has: above is a slip of the keyboard."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--graph",
        metavar="FILE",
        type=file_path,
        required=True,
        help="a topology file (YAML or JSON)",
    )
    parser.add_argument(
        "--collective",
        choices=[collective.value for collective in Collective],
        default=Collective.ALLREDUCE.value,
    )
    parser.add_argument(
        "--bytes",
        type=nbytes,
        default=100_000_000,
        metavar="SIZE",
        help="each rank's bytes for an allreduce, those of all ranks together for the others "
        "(default 100MB)",
    )
    parser.add_argument(
        "--algorithm", metavar="NAME", help="choose this one; an error where it can't be had"
    )
    parser.add_argument(
        "--max-trees",
        type=_trees,
        default=64,
        metavar="N",
        help="the most trees of a forest (default 64); fewer are simpler, and may be slower",
    )
    parser.add_argument(
        "--nccl",
        choices=[generation.name.lower() for generation in Generation],
        metavar="GPU",
        help="say also what NCCL would pick by itself on GPUs of this generation: volta, ampere, "
        "hopper or blackwell",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--draw",
        metavar="FILE.svg",
        type=file_to_write(".svg"),
        help="draw the graph with its bottleneck",
    )


def run(args: argparse.Namespace) -> int:
    graph = load_file(args.graph, to_plan=True)
    with waiting(f"planning for {count(graph.world_size, 'rank')}"):
        found = answer(
            graph,
            Collective(args.collective),
            args.bytes,
            only=args.algorithm,
            max_trees=args.max_trees,
            nccl=Generation[args.nccl.upper()] if args.nccl else None,
        )
    if args.draw:
        drawing = svg(
            graph, cut=found.bound.cut, bottleneck=found.bound.links, limited="every plan"
        )
        write_output(args.draw, drawing.encode(), what="--draw")
    if args.json:
        print(json.dumps(found.document()))
    else:
        _show(found)
    return 0


def _show(found: PlanAnswer) -> None:
    output = Output()
    rows = [
        (
            ("* " if plan.algorithm == found.choice.chosen else "  ")
            + candidate_name(plan, native_is_ring=found.native_is_ring),
            duration(plan.predicted_s),
            rate(plan.algbw_bytes_per_s),
            f"{plan.efficiency:.1%}",
            str(plan.num_chunks or "any"),
        )
        for plan in found.choice.candidates
    ]
    bound_s = found.bound.time_s
    limit = rate(found.choice.nbytes / bound_s) if bound_s else "-"
    rows.append((f"  bound ({found.bound.kind})", duration(bound_s), limit, "100.0%", ""))
    head = ["algorithm", "time", "algbw", "efficiency", "chunks"]
    output.table(head, rows, "tnnnn", MAX_ROWS)
    output.text(*found.explain)


def _trees(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MAX_TREES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_TREES}")
    return int(text)
