"""Quarantine: verdicts on links, nodes and endpoints, kept in the store for whole clusters.

A verdict stays until it is released or expires. People win: automation never changes an admin's
verdict, and an admin's release is kept as a verdict too, so that automation does not undo it (docs
of the rule: Slurm's NHC brings back only nodes that it took out itself; NVSentinel issues 445 and
1424 are what happens otherwise). Writers decide on what the store holds, by compare-and-swap, never
on a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.errors import StoreError, TrainmeshError, WireError
from trainmesh.store.base import Store
from trainmesh.wire import decode, encode

__all__ = [
    "ADMIN",
    "AUTOMATION",
    "QUARANTINE",
    "SubjectKind",
    "Overruled",
    "Verdict",
    "in_force",
    "judge",
    "key_of",
    "link_names",
    "read_verdicts",
]

QUARANTINE = "/trainmesh/quarantine/"
ADMIN = "admin:"
"""Begins the ``owner`` of a verdict that a person gave."""
AUTOMATION = "automation"
TRIES = 5
"""How many compare-and-swaps are tried; each failed one means that somebody else wrote the key."""


class SubjectKind(StrEnum):
    """What a verdict is on. A link is called ``a->b``, or ``a<->b`` in both directions; a node as
    in the link graph; an endpoint as in ``trainmesh endpoints``."""

    LINK = "link"
    NODE = "node"
    ENDPOINT = "endpoint"


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``until_unix_s``: when it ends by itself, None for never (hosts' clocks are compared, so
    this is good to a second or so). ``released``: the subject is free, and says who freed it."""

    kind: SubjectKind
    subject: Annotated[str, Meta(min_length=1, max_length=300)]
    reason: Annotated[str, Meta(max_length=1000)]
    owner: Annotated[str, Meta(min_length=1, max_length=256)]
    since_unix_s: float
    until_unix_s: float | None = None
    released: bool = False
    evidence: Annotated[str, Meta(max_length=4000)] = ""

    @property
    def by_person(self) -> bool:
        return self.owner.startswith(ADMIN)

    @property
    def words(self) -> str:
        """To be put after the subject."""
        why = f": {self.reason}" if self.reason else ""
        return f"in quarantine{why} ({self.owner})"

    def lasts(self, now_unix_s: float) -> bool:
        """Whether its time is not over."""
        return self.until_unix_s is None or now_unix_s < self.until_unix_s


class Overruled(TrainmeshError):
    """Automation may not change what a person decided."""


def key_of(kind: SubjectKind, subject: str) -> str:
    """Where the verdict on ``subject`` is kept."""
    return f"{QUARANTINE}{kind}/{subject}"


def link_names(subject: str) -> tuple[str, ...]:
    """The directed links that a verdict's subject names."""
    ends = subject.split("<->")
    if len(ends) == 2:
        return f"{ends[0]}->{ends[1]}", f"{ends[1]}->{ends[0]}"
    return (subject,)


def in_force(verdicts: Iterable[Verdict], now_unix_s: float) -> list[Verdict]:
    """Those that keep their subject out now."""
    return [verdict for verdict in verdicts if not verdict.released and verdict.lasts(now_unix_s)]


def read_verdicts(entries: Mapping[str, bytes]) -> tuple[list[Verdict], list[str]]:
    """The verdicts under ``QUARANTINE``, and a line for each value that is none. One that is kept
    in another one's place does not count."""
    verdicts: list[Verdict] = []
    problems: list[str] = []
    for key, value in sorted(entries.items()):
        try:
            verdict = decode(value, Verdict, what=key)
        except WireError as error:
            problems.append(f"ignored: {error}")
            continue
        if key_of(verdict.kind, verdict.subject) == key:
            verdicts.append(verdict)
        else:
            problems.append(f"ignored: {key}: it holds a verdict on {verdict.subject}")
    return verdicts, problems


def judge(store: Store, verdict: Verdict) -> Verdict | None:
    """Make ``verdict`` the one on its subject.

    Returns:
        The verdict that it takes the place of.

    Raises:
        Overruled: it is automation's, and a person's word still holds.
        StoreError: the store does not answer, or others keep changing it.
    """
    key = key_of(verdict.kind, verdict.subject)
    for _ in range(TRIES):
        entry = store.get(key)
        earlier = _known(entry.value, key) if entry is not None else None
        if earlier is not None and _binds(earlier, verdict):
            word = "released" if earlier.released else "quarantined"
            raise Overruled(
                f"{verdict.kind} {verdict.subject} was {word} by {earlier.owner}, "
                "which only a person may change"
            )
        revision = entry.mod_revision if entry is not None else 0
        if store.cas(key, encode(verdict), expected_revision=revision) is not None:
            return earlier
    raise StoreError(f"{key}: it was changed {TRIES} times meanwhile; try again")


def _binds(earlier: Verdict, verdict: Verdict) -> bool:
    """Whether a person's verdict that still holds overrules automation's."""
    by_automation = earlier.by_person and not verdict.by_person
    return by_automation and earlier.lasts(verdict.since_unix_s)


def _known(value: bytes, key: str) -> Verdict | None:
    """What is no verdict may be overwritten by one."""
    try:
        return decode(value, Verdict, what=key)
    except WireError:
        return None
