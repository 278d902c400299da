"""``trainmesh lab run|stream|check|clean``: a cluster emulated on this machine."""

from __future__ import annotations

import argparse

from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.quantity import nbytes
from trainmesh.launcher.terminal import Output
from trainmesh.units import count

__all__ = ["add_arguments", "run"]

NOT_AN_OPTION = "\0"
"""The prefix of options where there are none: all words go on as they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run_parser = actions.add_parser(
        "run",
        help="run a script on the emulated hosts of a topology file",
        prefix_chars=NOT_AN_OPTION,
        add_help=False,
    )
    run_parser.add_argument("words", nargs=argparse.REMAINDER)
    run_parser.set_defaults(act=_run)
    stream = actions.add_parser("stream", help="the rate of one TCP stream between two hosts")
    stream.add_argument("--topology", metavar="FILE", type=file_path, required=True)
    stream.add_argument("src", metavar="SRC", help="the host that sends")
    stream.add_argument("dst", metavar="DST", help="the host that receives")
    stream.add_argument(
        "--bytes", metavar="SIZE", type=nbytes, default=25_000_000, help="default: 25MB"
    )
    stream.set_defaults(act=_stream)
    check = actions.add_parser("check", help="what this machine can emulate")
    check.set_defaults(act=_check)
    clean = actions.add_parser("clean", help="remove what labs that were killed have left")
    clean.set_defaults(act=_clean)


def run(args: argparse.Namespace) -> int:
    code: int = args.act(args)
    return code


def _run(args: argparse.Namespace) -> int:
    from trainmesh.launcher.lab import arguments as lab_arguments
    from trainmesh.launcher.lab import run as lab_run

    arguments = lab_arguments.parse(args.words)
    args.debug = args.debug or arguments.debug
    return lab_run.main(arguments, debug=args.debug)


def _stream(args: argparse.Namespace) -> int:
    from trainmesh.launcher.lab import Lab, stream_gbps
    from trainmesh.launcher.run import signals

    if args.src == args.dst:
        raise ConfigError(f"SRC and DST are both {args.src!r}; a stream needs two hosts")
    with signals.raising(), Lab(args.topology) as lab:
        gbps = stream_gbps(lab, args.src, args.dst, args.bytes)
        path = lab.layout.path(args.src, args.dst)
    slowest_gbps = min(cost.bandwidth_bytes_per_s for cost in path) * 8e-9
    print(
        f"{args.src} -> {args.dst}: {gbps * 1e3:.1f} Mbit/s of payload, "
        f"{100 * gbps / slowest_gbps:.1f} % of the {slowest_gbps * 1e3:g} Mbit/s on the way"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    from trainmesh.launcher.lab.capability import capabilities, missing

    found = capabilities()
    rows = [
        [one.name, one.use, "yes" if one.found else "no", "" if one.found else one.advice]
        for one in found
    ]
    Output().table(["", "for", "found", "how to get it"], rows, "tttt")
    lacking = missing(found)
    if lacking:
        raise TrainmeshError(f"no lab here: {'; '.join(lacking)}")
    print("this machine can run a lab")
    return 0


def _clean(args: argparse.Namespace) -> int:
    from trainmesh.launcher.lab.state import LabDirectory

    gone = LabDirectory.sweep()
    print(f"removed {count(len(gone), 'lab')}" if gone else "nothing was left")
    return 0
