"""What is wrong with a request's head, whoever sends it."""

from __future__ import annotations

from collections.abc import Mapping

from trainmesh.serving.config.types import LimitsConfig
from trainmesh.serving.proxy.reading.api import authority_of, is_host
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import (
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TRANSFER_ENCODING,
)
from trainmesh.serving.refusal import refused

__all__ = ["check_head"]


def check_head(
    call: Call, version: str, limits: LimitsConfig, good_host: bytes | None
) -> bytes | None:
    """What a head says of its own request's framing and host (RFC 9110, RFC 9112).

    Args:
        call: its header fields are there.
        version: of HTTP, as the parser has it.
        limits: of serve.yaml.
        good_host: a Host field that was looked at before.

    Returns:
        Such a Host field for the next request.

    Raises:
        RequestRefused: nothing behind it can be read.
    """
    special = call.special
    if call.method == b"CONNECT":
        raise refused(405, "CONNECT is for proxies of other hosts; this is none")
    if version != "1.1":
        _check_old(special, version)
    host = special.get(HOST)
    if host is None or host != good_host:
        good_host = _check_host(host, old=call.http10) or good_host
    if call.target[:1] != b"/" and authority_of(call.target) not in (
        b"",
        (host or b"").lower(),
    ):
        raise refused(400, "the target names another host than the Host field")
    coding = special.get(TRANSFER_ENCODING)
    if coding is not None and coding.strip().lower() != b"chunked":
        raise refused(501, "no Transfer-Encoding but chunked is understood")
    if EXPECT in special and special[EXPECT].lower() != b"100-continue":
        raise refused(417, "Expect can only be 100-continue")
    limit = limits.body_bytes
    if int(special.get(CONTENT_LENGTH, b"0")) > limit:
        raise refused(413, f"the body has more than {limit} bytes")
    return good_host


def _check_old(special: Mapping[int, bytes], version: str) -> None:
    if version != "1.0":
        raise refused(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
    if TRANSFER_ENCODING in special:
        raise refused(400, "HTTP/1.0 has no Transfer-Encoding")


def _check_host(host: bytes | None, *, old: bool) -> bytes | None:
    if host is None:
        if not old:
            raise refused(400, "no Host field; there must be one")
        return None
    if not is_host(host):
        raise refused(400, "the Host field is no host")
    return host
