"""etcd's and gRPC's reasons in plain words, with what to do about them."""

from __future__ import annotations

import json
import re

from trainmesh.console import NOTE

__all__ = ["is_away", "log_reason", "plain_reason"]

REASONS = (
    (
        r"database space exceeded|NOSPACE",
        "its database is full: compact and defragment it, then run etcdctl alarm disarm, or raise "
        "--quota-backend-bytes",
    ),
    (r"Connection refused", "nothing listens on this port"),
    (r"Domain name not found|no such host", "there is no host of this name"),
    (
        r"user name is empty",
        "it wants a user: set TRAINMESH_ETCD_USER and TRAINMESH_ETCD_PASSWORD (user name is empty)",
    ),
    (
        r"invalid user ID or password",
        "it refuses TRAINMESH_ETCD_USER or TRAINMESH_ETCD_PASSWORD: invalid user ID or password",
    ),
    (
        r"authentication is not enabled",
        "it knows no users: unset TRAINMESH_ETCD_USER and TRAINMESH_ETCD_PASSWORD",
    ),
    (
        r"etcdserver: permission denied",
        "its user may not read and write the keys that begin with /trainmesh/: grant it a role "
        "that may",
    ),
    (
        r"no leader|leader changed|leader is lost",
        "it has no leader: too few of its members run",
    ),
    (
        r"request timed out",
        "it can't commit in time: too few of its members run, or its disk is slow",
    ),
    (r"too many requests", "it has too many requests waiting"),
    (r"request is too large", "it refuses a value of this size; raise --max-request-bytes"),
    (r"alarm: CORRUPT|corrupt", "its data is damaged; restore it from a snapshot"),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate signed by unknown authority",
        "its certificate is not one of the authority in TRAINMESH_ETCD_CA",
    ),
    (
        r"PEM_read_bio|Invalid cert chain file|no start line",
        "TRAINMESH_ETCD_CA, _CERT or _KEY is not a PEM file",
    ),
    (r"no space left on device", "no space is left on its disk"),
    (r"disk quota exceeded", "the disk quota is used up"),
    (r"too many open files", "it may not open more files: raise ulimit -n"),
    (r"read-only file system", "its directory is on a read-only file system"),
    (r"address already in use", "its port is in use"),
    (r"cannot allocate memory|out of memory", "no memory is left"),
    (r"file size limit|SIGXFSZ", "it may not write files of this size: raise ulimit -f"),
)
"""Patterns of what etcd 3.4 to 3.6 and gRPC say; the first that is found counts."""

SERIOUS = ("dpanic", "panic", "fatal", "error")
MAX_LENGTH = 200
"""Characters of a server's words that fit into one line of an error."""


def plain_reason(details: str) -> str:
    """``details`` of an error in plain words; as one line of at most 200 characters where nothing
    is known about it."""
    return (
        _known_reason(details)
        or " ".join(details.split()).removeprefix("etcdserver: ")[:MAX_LENGTH]
    )


def _known_reason(details: str) -> str | None:
    found = (words for pattern, words in REASONS if re.search(pattern, details, re.IGNORECASE))
    return next(found, None)


def is_away(details: str) -> bool:
    """Whether ``details`` of a failed call say that nobody answers, rather than that somebody
    else does, or that the connection is refused for a reason that lasts."""
    return not re.search(r"parsing HTTP/2|handshake|SSL|certificate", details, re.IGNORECASE)


def log_reason(text: str) -> str:
    """Why the program that has written ``text`` has ended; "" if it says nothing.

    etcd writes a JSON object a line, and Go's stack traces. The last serious line counts of which
    something is known, else the last serious one; without any, the last that is neither JSON nor
    a part of a stack trace. What our own processes have only noted is no reason.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(NOTE)]
    serious = [line for line in lines if _is_serious(line)]
    if serious:
        words = [_message(line) for line in reversed(serious)]
        return next(filter(None, map(_known_reason, words)), plain_reason(words[0]))
    plain = [line for line in lines if not _fields(line) and not _is_of_a_trace(line)]
    return plain[-1] if plain else ""


def _is_serious(line: str) -> bool:
    fields = _fields(line)
    return fields.get("level") in SERIOUS or line.startswith("panic: ")


def _is_of_a_trace(line: str) -> bool:
    return bool(re.match(r"goroutine \d+|[\w./*()-]+\(.*\)$|\S+\.(go|s):\d+|exit status", line))


def _message(line: str) -> str:
    """Message and error of one of etcd's log lines; others as they are."""
    fields = _fields(line)
    if not fields:
        return line
    return ": ".join(str(fields[name]) for name in ("msg", "error") if name in fields)


def _fields(line: str) -> dict[str, object]:
    if not line.startswith("{"):
        return {}
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) and "msg" in fields else {}
