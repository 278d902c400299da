"""What the router reads of a request's path and body; the rest is the endpoint's business."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from trainmesh.serving.proxy.reading.body import Body, decode
from trainmesh.serving.refusal import refused

__all__ = [
    "BLOCK_BYTES",
    "EMBEDDINGS",
    "POST_PATHS",
    "Body",
    "authority_of",
    "check_coding",
    "is_host",
    "meant_path",
    "parse_body",
    "prefix_blocks",
    "split_target",
]

EMBEDDINGS: Final = b"/v1/embeddings"
POST_PATHS: Final = frozenset(
    {b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", EMBEDDINGS}
)

_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]{0,5})?"
)

BLOCK_BYTES: Final = 512


def parse_body(data: bytes) -> Body:
    """Read a request's JSON body.

    Raises:
        RequestRefused: 400, and what is wrong with it.
    """
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise refused(
            400, f"the body is not a valid request: {error}", code="invalid_value"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refused(400, f"the body is not JSON: {reason}", code="invalid_json") from error


def check_coding(coding: bytes | None) -> None:
    """A compressed body is refused: the router must read it, and a few bytes of it can be as long
    as any. No runtime that speaks OpenAI's API takes one either.

    Raises:
        RequestRefused: 415, with the coding that may be used (RFC 9110, 15.5.16).
    """
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise refused(
            415, f"Content-Encoding {coding[:40].decode('ascii', 'replace')} is not taken; send "
            "the body as it is", code="unsupported_content_encoding",
            fields=b"accept-encoding: identity\r\n",
        )  # fmt: skip


def is_host(value: bytes) -> bool:
    """Whether ``value`` may stand in a ``Host`` field (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


def authority_of(target: bytes) -> bytes:
    """The authority in a request target of absolute form, in lower case; empty in others."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return b""
    return rest.partition(b"/")[0].partition(b"?")[0].lower()


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query (with its ``?``) of a request target; an absolute form loses its authority."""
    if not target.startswith(b"/"):
        authority = authority_of(target)
        if not authority:
            return target, b""
        target = target[target.index(b"://") + 3 + len(authority) :] or b"/"
    path, mark, query = target.partition(b"?")
    return path, mark + query


def meant_path(path: bytes) -> str:
    """The path of ours that ``path`` is nearly, as /chat/completions is; empty without one."""
    parts = [part for part in path.split(b"/") if part]
    if parts[:1] != [b"v1"]:
        parts.insert(0, b"v1")
    likely = b"/" + b"/".join(dict.fromkeys(parts))
    known = likely in POST_PATHS or likely == b"/v1/models"
    return likely.decode() if known else ""


def prefix_blocks(model: str, head: bytes) -> Sequence[int]:
    """A hash for each full block of a prompt's beginning (``Prompt.head``), chained, so that equal
    hashes mean equal prefixes. They hold within one process only."""
    blocks: list[int] = []
    link = hash(model)
    for end in range(BLOCK_BYTES, len(head) + 1, BLOCK_BYTES):
        link = hash((link, head[end - BLOCK_BYTES : end]))
        blocks.append(link)
    return blocks
