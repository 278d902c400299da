"""``trainmesh replay LEDGER``: take its decisions again, with the same policy or another."""

from __future__ import annotations

import argparse
import stat
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from trainmesh.console import clean, say
from trainmesh.errors import ConfigError
from trainmesh.format import count, duration, percent
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.terminal import Output
from trainmesh.serving.decide.scorers import load_scorers
from trainmesh.serving.ledger.counterfactual import Comparison, compare
from trainmesh.serving.ledger.entry import Entry
from trainmesh.serving.ledger.reader import entries, read_lines
from trainmesh.serving.ledger.segments import segments

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", type=file_path, help="a ledger's directory, or one of its files")
    parser.add_argument("--policy", metavar="X", help="the policy to try; each one's own if absent")
    parser.add_argument("--model", metavar="M", help="only the decisions of this model")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 unless every decision is the same"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    _check_readable(args.ledger)
    scorers, warnings = load_scorers()
    for warning in warnings:
        say(f"warning: {warning}")
    found = compare(_entries(args.ledger), scorers, args.policy, args.model)
    if args.json:
        fields = msgspec.structs.asdict(found)
        sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
    else:
        _show(found, Output())
    return 1 if args.check and not found.identical else 0


def _check_readable(ledger: Path) -> None:
    try:
        mode = ledger.stat().st_mode
        paths = list(ledger.iterdir()) if stat.S_ISDIR(mode) else [ledger]
        for path in paths:
            if path.is_file():  # a FIFO is opened once
                path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{clean(str(error.filename))}: {error.strerror}") from error


def _entries(ledger: Path) -> Iterator[Entry]:
    """The entries of a ledger, which may be new and have none.

    Raises:
        ConfigError: it is no ledger.
    """
    found = entries(read_lines(ledger))
    first = next(found, None)
    if first is not None:
        return chain([first], found)
    is_ledger = bool(segments(ledger)) if ledger.is_dir() else not ledger.stat().st_size
    if not is_ledger:
        raise ConfigError(f"{clean(str(ledger))}: not a ledger of a router, nor a file of one")
    return iter(())


def _show(found: Comparison, output: Output) -> None:
    for policy, number in found.unknown.items():
        output.text(f"{count(number, 'decision')} by policy {policy}, which is not installed here")
    if not found.decisions:
        output.text("no decision to take again")
        return
    by = f"by {found.policy}" if found.policy else "each by its own policy"
    output.text(
        f"{count(found.decisions, 'decision')} taken again {by}: {found.same} the same "
        f"({percent(found.same / found.decisions)})"
    )
    if found.same == found.decisions:
        return
    change_s = found.replayed_mean_s - found.recorded_mean_s
    output.text(
        f"expected first byte: {duration(found.recorded_mean_s)} as recorded, "
        f"{duration(found.replayed_mean_s)} now: {duration(abs(change_s))} "
        f"{'later' if change_s > 0 else 'earlier'} on average",
        "(each decision on its own: what other loads would have followed is not simulated)",
    )
    rows = [
        [
            each.model,
            each.endpoint,
            percent(each.recorded / found.decisions),
            percent(each.replayed / found.decisions),
        ]
        for each in found.shifts
    ]
    output.table(["model", "endpoint", "recorded", "now"], rows, "ttnn")
    output.heading("for instance")
    output.text(*found.examples)
