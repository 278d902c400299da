"""What happens to links while a lab runs: the key ``timeline`` of a topology document.

::

    timeline:
      - {at_step: 40, link: [h3, leaf1], bandwidth_mbps: 100}
      - {at_s: 20, link: [h3, leaf1], down: true, direction: forward}
      - {at_step: 120, link: [h3, leaf1], restore: true}

Only a lab (docs/lab.md) acts on it; the link graph is that of the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainmesh.topology.document.text import Value
from trainmesh.topology.document.values import (
    DocumentProblem,
    label,
    mapping,
    number,
    one_of,
    whole,
)
from trainmesh.types import MAX_INT

__all__ = ["LinkChange", "read_timeline"]

MAX_CHANGES = 10_000
"""Of a lab's day: one every ten seconds."""
UNITS = {"bandwidth_mbps": 1e6 / 8, "bandwidth_gbps": 1e9 / 8}
"""Each in bytes a second."""
WHEN = ("at_step", "at_s")
WHAT = (*UNITS, "latency_us", "loss", "down", "restore")
KEYS = dict.fromkeys((*WHEN, "link", "direction", *WHAT)).keys()
DIRECTIONS = {"both": True, "forward": False}
ONLY_TRUE = {"true": True}


@dataclass(frozen=True)
class LinkChange:
    """At the beginning of step ``at_step``, or ``at_s`` seconds after the start, ``link`` gets the
    values that are not None; ``restore`` gives it all it had in the beginning.

    ``both``: in both directions, else only from the first node to the second.
    """

    link: tuple[str, str]
    at_step: int | None = None
    at_s: float | None = None
    both: bool = True
    bandwidth_bytes_per_s: float | None = None
    latency_s: float | None = None
    loss: float | None = None
    down: bool = False
    restore: bool = False


def read_timeline(value: Value, links: Collection[tuple[str, str]]) -> tuple[LinkChange, ...]:
    """The changes in ``value``, for a document whose links lead from and to ``links``.

    Raises:
        Problem: they are not of the documented form.
    """
    if not isinstance(value, list):
        raise DocumentProblem("timeline must be a list", "timeline")
    if len(value) > MAX_CHANGES:
        raise DocumentProblem(f"timeline: more than {MAX_CHANGES} changes", "timeline")
    changes = []
    for place, entry in enumerate(value):
        try:
            changes.append(_change(entry, links))
        except DocumentProblem as problem:
            raise problem.inside(("timeline", place)) from problem
    return tuple(changes)


def _change(entry: Value, links: Collection[tuple[str, str]]) -> LinkChange:
    fields = mapping(entry, "timeline entry", KEYS)
    if len(fields.keys() & set(WHEN)) != 1:
        raise DocumentProblem("timeline entry: give at_step or at_s, one of them")
    link = _link(fields)
    what = f"timeline of link {link[0][:40]}-{link[1][:40]}"
    both = True
    if "direction" in fields:
        both = one_of(fields, "direction", f"{what}: direction", DIRECTIONS)
    for ends in (link, link[::-1])[: 1 + both]:
        if ends not in links:
            raise DocumentProblem(
                f"{what}: there is no link {ends[0][:40]}->{ends[1][:40]}", "link"
            )
    _check_what(fields, what)
    latency_us = _optional(fields, "latency_us", what)
    loss = _optional(fields, "loss", what)
    if loss is not None and loss > 1:
        raise DocumentProblem(f"{what}: loss must be a share from 0 to 1", "loss")
    for word in ("down", "restore"):
        if word in fields:
            one_of(fields, word, f"{what}: {word}", ONLY_TRUE)
    return LinkChange(
        link,
        at_step=whole(fields, "at_step", f"{what}: at_step", at_most=MAX_INT)
        if "at_step" in fields
        else None,
        at_s=_optional(fields, "at_s", what),
        both=both,
        bandwidth_bytes_per_s=_bandwidth(fields, what),
        latency_s=None if latency_us is None else latency_us * 1e-6,
        loss=loss,
        down="down" in fields,
        restore="restore" in fields,
    )


def _link(fields: Mapping[str, Value]) -> tuple[str, str]:
    ends = fields.get("link")
    if not isinstance(ends, list) or len(ends) != 2:
        raise DocumentProblem("timeline entry: link must be a list of two nodes")
    src, dst = (label({"link": end}, "link", "timeline entry: link") for end in ends)
    return src, dst


def _check_what(fields: Mapping[str, Value], what: str) -> None:
    given = [key for key in WHAT if key in fields]
    if not given:
        raise DocumentProblem(f"{what}: nothing changes; give one of {', '.join(WHAT)}")
    for alone in ("down", "restore"):
        if alone in given and len(given) > 1:
            raise DocumentProblem(f"{what}: {alone} stands alone", alone)
    if len(fields.keys() & UNITS.keys()) > 1:
        raise DocumentProblem(f"{what}: give one of {', '.join(UNITS)}")


def _bandwidth(fields: Mapping[str, Value], what: str) -> float | None:
    for key, unit in UNITS.items():
        if key in fields:
            return number(fields, key, f"{what}: {key}", positive=True) * unit
    return None


def _optional(fields: Mapping[str, Value], key: str, what: str) -> float | None:
    return number(fields, key, f"{what}: {key}", positive=False) if key in fields else None
