"""``trainmesh why REQUEST_ID``: why a request went where it went."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from trainmesh.console import clean
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.ledgers import check_ledger, find_ledgers
from trainmesh.launcher.terminal import Output
from trainmesh.serving.ledger.explain import AttemptStory, Terms, attempts_of, words
from trainmesh.serving.ledger.reader import entries, find_lines
from trainmesh.units import duration

__all__ = ["add_arguments", "run"]

HEAD = ("endpoint", "RTT", "transfer", "waiting", "own work", "total", "score", "in flight")


MAX_SHOWN = 10
"""Request IDs to choose from, in one line."""


class SeveralRequests(TrainmeshError):
    """The id is a client's, and is that of more than one request."""


class NotRecorded(TrainmeshError):
    """No ledger has the request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "request_id",
        help="the x-trainmesh-request-id of the answer, or the x-request-id of the client",
    )
    parser.add_argument(
        "--ledger",
        type=file_path,
        metavar="DIR",
        help="look in this ledger instead of those of this user's routers",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.ledger and not os.path.isdir(args.ledger):
        raise ConfigError(f"--ledger {clean(str(args.ledger))}: no such directory")
    if args.ledger:
        check_ledger(args.ledger)
    stories = _find(args.request_id, [args.ledger] if args.ledger else find_ledgers())
    if args.json:
        answer = {"words": words(stories), "attempts": stories}
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        return 0
    output = Output()
    output.text(*words(stories))
    for number, story in enumerate(stories, 1):
        if story.candidates:
            output.heading(f"expected time to the first byte, attempt {number}")
            output.table(HEAD, [_row(terms) for terms in story.candidates], "tnnnnnnn")
    return 0


def _find(request_id: str, folders: list[Path]) -> list[AttemptStory]:
    for folder in folders:
        stories = attempts_of(entries(find_lines(folder, request_id)))
        if stories:
            _check_one(request_id, stories)
            return stories
    places = ", ".join(map(str, folders[:3])) or "any ledger of this user"
    if len(folders) > 3:
        places += f" or {len(folders) - 3} others"
    raise NotRecorded(
        f"no decision on request {request_id!r} is in {places}; the id is the answer's "
        "x-trainmesh-request-id; attempts are there once they are over, and old ones are removed"
    )


def _check_one(name: str, stories: list[AttemptStory]) -> None:
    """A client may send one x-request-id with several requests."""
    ids = list(dict.fromkeys(story.entry.decision.request_id for story in stories))
    if len(ids) > 1:
        shown = ", ".join(ids[-MAX_SHOWN:]) + (" ..." if len(ids) > MAX_SHOWN else "")
        raise SeveralRequests(
            f"{len(ids)} requests came with the x-request-id {name!r}; name one by its own id "
            f"(x-trainmesh-request-id): {shown}"
        )


def _row(terms: Terms) -> list[str]:
    return [
        f"{terms.endpoint}{' *' if terms.chosen else ''}",
        duration(terms.rtt_s),
        duration(terms.transfer_s),
        duration(terms.waiting_s),
        duration(terms.own_s),
        duration(terms.total_s),
        "-" if terms.score is None else f"{terms.score:.4g}",
        str(terms.inflight),
    ]
