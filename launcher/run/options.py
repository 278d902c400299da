"""The flags of ``trainmesh launch`` beside torchrun's own, and their allowed values."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError

from trainmesh.job_settings import AUTO, CADENCE, MARGIN, NO_CODEC
from trainmesh.launcher.arguments import add_etcd, file_path
from trainmesh.launcher.quantity import nbytes
from trainmesh.types import Algorithm

__all__ = ["add_arguments", "parent_parsers"]


def parent_parsers() -> list[ArgumentParser]:
    """Torchrun's own parser: every flag of torchrun is one of ours."""
    from trainmesh.launcher.run import torchrun

    return [torchrun.parser()]


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("trainmesh")
    add = group.add_argument
    add_etcd(add, "a running etcd (default: $TRAINMESH_ETCD, else one is started on this machine)")
    add("--job", metavar="NAME", type=_job, help="the job's name (default: made from the flags)")
    add("--topology", metavar="FILE", type=file_path, help="the link graph this job runs on")
    add("--report", metavar="DIR", type=file_path, help="write report.json and report.html there")
    add(
        "--plan",
        choices=[AUTO, *map(str, Algorithm)],
        default="auto",
        help="use only plans of this kind (default: auto, the best)",
    )
    add(
        "--cadence",
        metavar="N",
        type=_cadence,
        default=CADENCE,
        help=f"steps between two agreements of the ranks on a plan, 1 to 1024 (default: {CADENCE})",
    )
    add(
        "--margin",
        metavar="RATIO",
        type=_margin,
        default=MARGIN,
        help=f"predicted gain below which a plan is not changed, 0 to 1 (default: {MARGIN})",
    )
    add(
        "--fusion",
        metavar="SIZE",
        type=_fusion,
        default="auto",
        help="reduce small buckets together: auto (what makes steps quickest; never with --plan "
        "native), off, or a size such as 8MB (default: auto)",
    )
    add(
        "--compression",
        metavar="CODEC",
        default=NO_CODEC,
        help="send gradients compressed, which changes results: none, auto (where it pays), or "
        "NAME[:OPTIONS] such as bf16, int8 or powersgd:4 (default: none)",
    )
    add(
        "--progress",
        choices=["auto", "on", "off"],
        default="auto",
        help="a live line on stderr (default: auto, in a terminal)",
    )
    add("--dry-run", action="store_true", help="say what would be started, and start nothing")


def _job(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ArgumentTypeError(f"{text!r}: use up to 64 letters, digits, '.', '_' and '-'")
    return text


def _fusion(text: str) -> str:
    """``auto``, or a number of bytes; 0 for off."""
    if text in (AUTO, "off"):
        return AUTO if text == AUTO else "0"
    try:
        return str(nbytes(text))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, nor auto or off") from error


def _cadence(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def _margin(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
