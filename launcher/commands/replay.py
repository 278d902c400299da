"""``trainmesh replay LEDGER``: make its decisions again, with the same policy or another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from trainmesh.console import clean, say
from trainmesh.errors import ConfigError
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.ledgers import NoLedger, check_ledger, find_ledgers
from trainmesh.launcher.terminal import Output
from trainmesh.serving.control.rundir import ServeRun
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.ledger.counterfactual import PolicyComparison, compare
from trainmesh.serving.ledger.reader import entries, read_lines
from trainmesh.serving.ledger.segments import segments
from trainmesh.units import count, duration, percent

__all__ = ["add_arguments", "run"]

Item = TypeVar("Item")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ledger",
        type=file_path,
        nargs="?",
        help="a ledger's directory, or one of its files; unless given, that of the running router, "
        "or the newest that one has left",
    )
    parser.add_argument("--policy", metavar="X", help="the policy to try; each one's own if absent")
    parser.add_argument("--model", metavar="M", help="only the decisions of this model")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 unless every decision is the same"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    ledger = args.ledger or _newest()
    check_ledger(ledger)
    scorers, warnings = load_scorers()
    for warning in warnings:
        say(f"warning: {warning}")
    lines = _Counted(read_lines(ledger))
    recorded = _Counted(entries(lines))
    found = compare(recorded, scorers, args.policy, args.model)
    if lines.count and not recorded.count:
        raise ConfigError(f"{clean(str(ledger))}: no line of it is a decision of this version")
    if args.json:
        fields = msgspec.structs.asdict(found)
        sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
    else:
        _show(found, Output())
    checked = found.identical and found.decisions > 0  # of nothing, nothing is shown
    return 1 if args.check and not checked else 0


def _newest() -> Path:
    """Where ``why`` would look first.

    Raises:
        NoLedger: there is none.
        ConfigError: several routers run.
    """
    live = [Path(info.ledger) for _, info in ServeRun.live() if info.ledger]
    if len(live) > 1:
        names = ", ".join(map(str, live))
        raise ConfigError(f"several routers are running; name one of their ledgers: {names}")
    ledger = next((path for path in find_ledgers() if path in live or segments(path)), None)
    if ledger is None:
        raise NoLedger(
            "no router of this user has kept a ledger; name its directory, or start trainmesh serve"
        )
    say(f"ledger: {ledger}")
    return ledger


class _Counted(Iterator[Item]):
    """Passes ``items`` on and counts them."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.count = 0

    def __next__(self) -> Item:
        item = next(self._items)
        self.count += 1
        return item


def _show(found: PolicyComparison, output: Output) -> None:
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
