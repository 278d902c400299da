"""``trainmesh quarantine list|add|release``: which links, nodes and endpoints are out, and why."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches

import msgspec

from trainmesh.errors import ConfigError, StoreError, TrainmeshError
from trainmesh.launcher import jobs
from trainmesh.launcher.arguments import add_etcd
from trainmesh.launcher.terminal import Output
from trainmesh.rundir import RunDir
from trainmesh.serving.cluster.known_names import Known, emptied, known_in
from trainmesh.serving.cluster.verdicts import (
    ADMIN,
    QUARANTINE,
    SubjectKind,
    Verdict,
    in_force,
    judge,
    read_verdicts,
)
from trainmesh.serving.control.rundir import RouterInfo, ServeRun
from trainmesh.store.base import Store

__all__ = ["add_arguments", "duration_s", "run"]

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_UNTIL_S = 10 * 365 * 86_400
"""Ten years: above is a slip of the keyboard."""
MAX_SUBJECT = 300
"""Characters of a node's, a link's or an endpoint's name; host names have up to 253."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what is in quarantine")
    listing.add_argument("--all", action="store_true", help="also what was released or has ended")
    add = actions.add_parser("add", help="take a link, node or endpoint out")
    release = actions.add_parser("release", help="let it back in, whoever took it out")
    for action in (add, release):
        action.add_argument("kind", choices=[str(kind) for kind in SubjectKind])
        action.add_argument("subject", type=_subject, help="a->b or a<->b for links, else the name")
        action.add_argument("--reason", default="", help="shown wherever the verdict counts")
        action.add_argument(
            "--until",
            metavar="DURATION",
            type=duration_s,
            help="when this word ends by itself, such as 90s, 30m, 2h or 3d (default: never)",
        )
    add.add_argument(
        "--force",
        action="store_true",
        help="also a name that nobody knows, or the last endpoint of a model",
    )
    for action in (listing, add, release):
        _add_store_arguments(action)


def _add_store_arguments(parser: argparse.ArgumentParser) -> None:
    use = "the cluster's etcd (default: that of the job or router on this machine)"
    add_etcd(parser.add_argument, use)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    with _opened_store(args) as store:
        if args.action == "list":
            return _list(args, store)
        return _judge(args, store)


def duration_s(text: str) -> float:
    """``90s``, ``30m``, ``2h`` or ``3d`` in seconds.

    Raises:
        ArgumentTypeError: nothing of the kind, or longer than ten years.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    seconds = int(match[1]) * UNITS_S[match[2]] if match is not None else 0
    if not 0 < seconds <= MAX_UNTIL_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration such as 90s, 30m, 2h or 3d, ten years at most"
        )
    return float(seconds)


def _subject(text: str) -> str:
    if not 0 < len(text) <= MAX_SUBJECT or not text.isprintable():
        raise argparse.ArgumentTypeError(f"a name has 1 to {MAX_SUBJECT} printable characters")
    return text


@contextmanager
def _opened_store(args: argparse.Namespace) -> Iterator[Store]:
    """The etcd that is meant.

    Raises:
        ConfigError: it is not clear which one.
        StoreError: it does not answer.
    """
    jobs_here = {info.etcd: info.job for _, info in RunDir.live() if info.etcd}
    routers = [info for _, info in ServeRun.live()]
    here = {**{info.etcd: "" for info in routers if info.etcd}, **jobs_here}
    if not args.etcd:
        _check_only(here, routers)
        url, job = next(iter(here.items()))
        args.etcd = None if job else url
    with ExitStack() as stack:
        try:
            store = stack.enter_context(jobs.opened_store(args, "" if args.etcd else job))
        except StoreError as error:
            named = next((info.name for info in routers if info.etcd == args.etcd), "")
            more = f" (routers.etcd of router {named}); --etcd URL asks another" if named else ""
            raise type(error)(f"{error}{more}") from error
        if store is None:  # it ended just now
            raise ConfigError("the job here has no etcd any more; pass --etcd URL")
        yield store


def _check_only(here: Collection[str], routers: Collection[RouterInfo]) -> None:
    """There must be one etcd here that can be meant.

    Raises:
        ConfigError: there is none, or several.
    """
    if len(here) > 1:
        raise ConfigError(
            f"which etcd? jobs and routers here use {', '.join(sorted(here))}; "
            "pass --etcd URL or set TRAINMESH_ETCD"
        )
    if not here:
        alone = (
            f"router {next(iter(routers)).name} runs without one, so trainmesh endpoints cordon "
            "NAME takes an endpoint out of it; for a cluster set routers.etcd in serve.yaml, or"
            if routers
            else "no job or router that has one runs here;"
        )
        raise ConfigError(
            f"quarantine is kept in an etcd that a cluster shares: {alone} pass --etcd URL or set "
            "TRAINMESH_ETCD"
        )


def _list(args: argparse.Namespace, store: Store) -> int:
    entries, _ = store.list(QUARANTINE)
    verdicts, problems = read_verdicts({entry.key: entry.value for entry in entries})
    now_unix_s = time.time()
    shown = verdicts if args.all else in_force(verdicts, now_unix_s)
    for problem in problems:
        print(f"trainmesh: {problem}", file=sys.stderr)
    if args.json:
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
    elif not shown:
        Output().text("nothing is in quarantine")
    else:
        head = ["what", "name", "state", "reason", "by", "since", "until"]
        Output().table(head, [_row(verdict, now_unix_s) for verdict in shown], "ttttttt")
    return 0


def _row(verdict: Verdict, now_unix_s: float) -> list[str]:
    state = "released" if verdict.released else "in quarantine"
    return [
        verdict.kind,
        verdict.subject,
        state if verdict.lasts(now_unix_s) else "ended",
        verdict.reason,
        verdict.owner,
        _date(verdict.since_unix_s),
        _date(verdict.until_unix_s) if verdict.until_unix_s is not None else "no end",
    ]


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _judge(args: argparse.Namespace, store: Store) -> int:
    kind, now_unix_s = SubjectKind(args.kind), time.time()
    release = args.action == "release"
    if not release and not args.force:
        _check(kind, args.subject, known_in(store, now_unix_s))
    verdict = Verdict(
        kind=kind,
        subject=args.subject,
        reason=args.reason[:1000],
        owner=f"{ADMIN}{_user()}",
        since_unix_s=now_unix_s,
        until_unix_s=now_unix_s + args.until if args.until is not None else None,
        released=release,
    )
    if release:
        _check_held(store, kind, args.subject, now_unix_s)
    judge(store, verdict)
    if args.json:
        sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
    else:
        word = "released" if release else "in quarantine"
        until = f" until {_date(verdict.until_unix_s)}" if verdict.until_unix_s else ""
        Output().text(f"{kind} {args.subject}: {word}{until}")
    return 0


def _check(kind: SubjectKind, subject: str, known: Known) -> None:
    """A typing error would do nothing, and a model without endpoints answers nobody."""
    names = known.names(kind)
    if names and subject not in names:
        raise TrainmeshError(
            f"no job or router knows {kind} {subject!r}{_instead(subject, names)}; "
            "--force takes it all the same"
        )
    if models := emptied(known, kind, subject):
        raise TrainmeshError(
            f"without {kind} {subject} no endpoint would be left for model "
            f"{', '.join(models)}; --force takes it all the same"
        )


def _check_held(store: Store, kind: SubjectKind, subject: str, now_unix_s: float) -> None:
    entries, _ = store.list(QUARANTINE)
    verdicts, _ = read_verdicts({entry.key: entry.value for entry in entries})
    held = [v.subject for v in in_force(verdicts, now_unix_s) if v.kind is kind]
    if subject not in held:
        raise TrainmeshError(f"{kind} {subject!r} is not in quarantine{_instead(subject, held)}")


def _instead(subject: str, names: Collection[str]) -> str:
    close = get_close_matches(subject, names, n=1)
    return f"; is {close[0]!r} meant?" if close else ""


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:200]
