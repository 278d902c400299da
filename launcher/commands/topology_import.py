"""``trainmesh topology import``: make a topology file from the output of other tools."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trainmesh.console import clean
from trainmesh.errors import ConfigError, GraphError
from trainmesh.launcher.arguments import file_path, file_to_write
from trainmesh.launcher.graph_file import SUFFIXES, write_graph
from trainmesh.topology.document import load_file
from trainmesh.topology.graph import LinkGraph, host_graph
from trainmesh.topology.importers import (
    calibration,
    hostfile,
    nccl_graph,
    nccl_tests,
    nccl_topo,
    nvidia_smi,
    nvml,
    slurm,
    slurm_topology,
    slurm_yaml,
)
from trainmesh.topology.importers.fragment import Fragment
from trainmesh.topology.importers.hardware import KNOWN_SM
from trainmesh.topology.merge import merge
from trainmesh.units import count, percent, rate

__all__ = ["KINDS", "add_arguments", "run"]

MAX_BYTES = 64 * 2**20
"""Read of each input before it is looked at: far more than dumps of whole clusters."""
MAX_NOTES = 8
"""Shown; of more there is the number."""
MEASURE = "costs are assumed; trainmesh topology probe measures"
OPTIONS = {
    "host": ("nccl-topo", "nccl-graph", "nvidia-smi", "nvml"),
    "ranks_per_node": ("slurm", "slurm-topology"),
    "sm": ("nvidia-smi",),
    "collective": ("nccl-tests",),
    "link_class": ("nccl-tests",),
}
"""Which kinds look at an option."""
Pieces = list[LinkGraph | Fragment]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="what to read, one per host; - is standard input"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=file_to_write(*SUFFIXES),
        help="write here, as the name says: .yaml, .yml or .json",
    )
    parser.add_argument(
        "--merge",
        metavar="FILE",
        type=file_path,
        action="append",
        default=[],
        help="a topology file to merge with; may be given again",
    )
    parser.add_argument(
        "--host",
        metavar="NAME",
        action="append",
        default=[],
        help="name of the host that a FILE is of, once for each FILE (default: the file's name)",
    )
    parser.add_argument(
        "--ranks-per-node",
        metavar="N",
        type=_positive,
        help="slurm kinds: ranks on each node (default: its tasks)",
    )
    parser.add_argument(
        "--sm",
        metavar="N",
        type=_positive,
        choices=KNOWN_SM,
        help="nvidia-smi: compute capability of the GPUs, such as 80 or 90",
    )
    parser.add_argument(
        "--collective",
        choices=tuple(nccl_tests.BUSBW_FACTOR),
        help="nccl-tests: what was run, where the output does not say",
    )
    parser.add_argument(
        "--class",
        dest="link_class",
        metavar="CLASS",
        help="nccl-tests with --merge: the class of links to calibrate (default: the slowest)",
    )

    parser.add_argument(
        "--json",
        action="store_true",
        help="with --output: print as JSON what was found, with all notes",
    )


def run(args: argparse.Namespace) -> int:
    """Read, merge, write; the output file stays as it was unless all of that worked.

    Raises:
        ConfigError: a file can't be read or written, or holds something else.
    """
    needs_files = args.kind not in ("nvml", "slurm")
    if bool(args.files) is not needs_files:
        problem = "needs a FILE" if needs_files else "reads no FILE; leave it out"
        raise ConfigError(f"topology import {args.kind} {problem}")
    _check_options(args)
    before: Pieces = [load_file(path) for path in args.merge]
    pieces, notes = KINDS[args.kind](args, before)
    graph = _merged(args, pieces)
    write_graph(graph, args.output, what="--output")
    if args.json:
        _print_json(args, graph, notes)
        return 0
    classes = ", ".join(sorted({link.link_class for link in graph.links})) or "no links"
    found = f"{count(graph.world_size, 'rank')}, {count(len(graph.nodes), 'node')}"
    where = f"; written to {args.output}" if args.output else ""
    links = f"{count(len(graph.links), 'directed link')} ({classes})"
    # Where the document goes to standard output, nothing else may.
    to = sys.stdout if args.output else sys.stderr
    print(clean(f"{args.kind}: {found}, {links}{where}"), file=to)
    for note in notes[:MAX_NOTES]:
        print(clean(f"note: {note}"), file=sys.stderr)
    if len(notes) > MAX_NOTES:
        print(f"note: and {len(notes) - MAX_NOTES} more", file=sys.stderr)
    return 0


def _merged(args: argparse.Namespace, pieces: Pieces) -> LinkGraph:
    """Of what several files say together, no line is to blame: the files are named."""
    try:
        return merge(*pieces)
    except GraphError as error:
        names = ", ".join(map(str, (*args.merge, *args.files))) or args.kind
        raise GraphError(f"{names}: {error}") from error


def _print_json(args: argparse.Namespace, graph: LinkGraph, notes: Sequence[str]) -> None:
    summary = {
        "kind": args.kind,
        "output": str(args.output),
        "ranks": graph.world_size,
        "nodes": len(graph.nodes),
        "links": len(graph.links),
        "classes": sorted({link.link_class for link in graph.links}),
        "notes": list(notes),
    }
    print(json.dumps(summary))


def _check_options(args: argparse.Namespace) -> None:
    """An option that a kind does not look at is a mistake."""
    for name, kinds in OPTIONS.items():
        if getattr(args, name) and args.kind not in kinds:
            option = name.replace("link_class", "class").replace("_", "-")
            raise ConfigError(f"--{option} is for {', '.join(kinds)}, not {args.kind}")
    if args.json and args.output is None:
        raise ConfigError("--json needs --output: standard output has the topology file else")
    if args.link_class and not args.merge:
        raise ConfigError("--class needs --merge: which graph has that class of links?")


def _read(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{name}: larger than {MAX_BYTES // 2**20} MiB; cut out what counts")
        # PowerShell writes UTF-16, and other Windows tools a mark before UTF-8.
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not a text file in UTF-8; write it again as text") from error


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:10]) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100000")
    return int(text)


def _hosts(args: argparse.Namespace) -> list[str]:
    """A name for each file."""
    names: list[str] = args.host or [
        Path(name).stem if len(args.files) > 1 else "host" for name in args.files
    ]
    if len(names) != len(args.files):
        raise ConfigError(f"give --host once for each FILE: {len(args.files)}, not {len(names)}")
    if len(set(names)) != len(names):
        raise ConfigError("two files have one host's name; tell them apart with --host")
    return names


def _of_hosts(
    args: argparse.Namespace, before: Pieces, read: Callable[[str, str, str, int | None], Fragment]
) -> tuple[Pieces, list[str]]:
    """A fragment for each file. Ranks are those in the files, or those that the documents to merge
    with give the host; otherwise the files' GPUs are numbered one after the other."""
    first = _first_ranks(before)
    texts = [(_read(name), name, host) for name, host in zip(args.files, _hosts(args), strict=True)]
    found = [read(*text, first.get(text[2])) for text in texts]
    ranks = sorted(rank for fragment in found for rank in fragment.ranks)
    notes = [note for fragment in found for note in fragment.notes]
    if not before and ranks != list(range(len(ranks))):
        number = 0
        for place, text in enumerate(texts):
            found[place] = read(*text, number)
            number += len(found[place].ranks)
        notes.append("ranks are numbered in the order of the files")
    return [*before, *found], notes


def _first_ranks(graphs: Pieces) -> dict[str, int]:
    """The lowest rank that each host has."""
    first: dict[str, int] = {}
    for graph in graphs:
        for node in graph.nodes:
            host, slash, _ = node.name.rpartition("/rank")
            if slash and node.rank is not None:
                first[host] = min(node.rank, first.get(host, node.rank))
    return first


def _nccl_topo(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    def read(text: str, source: str, host: str, first_rank: int | None) -> Fragment:
        return nccl_topo.parse(text, source=source, host=host, first_rank=first_rank)

    return _of_hosts(args, before, read)


def _nccl_graph(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    def read(text: str, source: str, host: str, first_rank: int | None) -> Fragment:
        graphs = nccl_graph.parse(text, source=source)
        return nccl_graph.implied(graphs, host=host, first_rank=first_rank or 0)

    return _of_hosts(args, before, read)


def _nvidia_smi(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    def read(text: str, source: str, host: str, first_rank: int | None) -> Fragment:
        first = first_rank or 0
        return nvidia_smi.parse(text, source=source, host=host, first_rank=first, sm=args.sm)

    return _of_hosts(args, before, read)


def _nvml(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    import pynvml

    if len(args.host) > 1:
        raise ConfigError("nvml sees this host only; give --host once")
    host = args.host[0] if args.host else platform.node() or "host"
    first = _first_ranks(before).get(host, 0)
    found = nvml.fragment(nvml.look(pynvml), host=host, first_rank=first)
    return [*before, found], list(found.notes)


def _nccl_tests(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    graph = merge(*before) if before else None
    notes = []
    for name in args.files:
        for ran in nccl_tests.parse(_read(name), source=name, collective=args.collective):
            try:
                fit = calibration.calibrate(ran)
                if graph is None:
                    graph = calibration.graph_of(ran, fit.cost)
                else:
                    graph = calibration.calibrated(graph, ran, fit.cost, args.link_class)
            except GraphError as error:
                raise GraphError(f"{name}: {error}") from error
            wrong = sum(sample.num_wrong or 0 for sample in ran.samples)
            notes.append(
                f"{ran.collective}: {rate(fit.cost.bandwidth_bytes_per_s)} and "
                f"{fit.cost.alpha_s * 1e6:.1f} us a hop, median error {percent(fit.residual)}"
                + (f"; {wrong} wrong values" if wrong else "")
            )
    assert graph is not None  # noqa: S101 - there is a file, and a run in each
    return [graph], notes


def _hostfile(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    if len(args.files) > 1:
        raise ConfigError("a job has one hostfile; give one FILE")
    found = hostfile.parse(_read(args.files[0]), source=args.files[0])
    return [*before, host_graph(found.hosts)], [*found.notes, MEASURE]


def _slurm(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    found = slurm.from_environment(os.environ, ranks_per_node=args.ranks_per_node)
    return [*before, host_graph(found.hosts)], [*found.notes, MEASURE]


def _slurm_topology(args: argparse.Namespace, before: Pieces) -> tuple[Pieces, list[str]]:
    """Of the job's nodes, or outside of a job of all nodes."""
    if len(args.files) > 1:
        raise ConfigError("a cluster has one topology.conf or topology.yaml; give one FILE")
    source = args.files[0]
    text = _read(source)
    notes: list[str] = []
    if slurm_yaml.is_yaml(text):
        switches, notes = slurm_yaml.parse(text, source=source)
    else:
        switches = slurm_topology.parse(text, source=source)
    if slurm.in_job(os.environ):
        job = slurm.from_environment(os.environ, ranks_per_node=args.ranks_per_node)
    else:
        nodes = slurm_topology.all_nodes(switches)
        job = slurm.Allocation(hostfile.in_order(dict.fromkeys(nodes, args.ranks_per_node or 1)))
    found = slurm_topology.fragment(switches, job.hosts)
    return [*before, found], [*notes, *job.notes, *found.notes]


KINDS: dict[str, Callable[[argparse.Namespace, Pieces], tuple[Pieces, Sequence[str]]]] = {
    "nccl-topo": _nccl_topo,
    "nccl-graph": _nccl_graph,
    "nvidia-smi": _nvidia_smi,
    "nvml": _nvml,
    "nccl-tests": _nccl_tests,
    "hostfile": _hostfile,
    "slurm": _slurm,
    "slurm-topology": _slurm_topology,
}
"""What can be imported, and how it is read."""
