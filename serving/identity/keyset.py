"""The public keys of a token issuer (JWKS, RFC 7517), and which algorithm each may verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.wire import decode

__all__ = ["MAX_BYTES", "parse_keys"]

MAX_BYTES = 256 * 1024
MAX_KEYS = 64
MIN_RSA_BITS = 2048
ALGORITHMS: Mapping[tuple[str, str], str] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""By type and curve: a key verifies one algorithm, whatever a token says (RFC 8725, 3.1)."""


class _Keys(Struct, frozen=True):
    keys: list[dict[str, Any]]


def parse_keys(data: bytes, *, what: str = "JWKS") -> dict[str, jwt.PyJWK]:
    """The keys by their ``kid``; those for other uses or algorithms are left out.

    Raises:
        WireError: not a JWKS, too large, or without a key that can be used; begins with ``what``.
    """
    entries = decode(data, _Keys, what=what, max_bytes=MAX_BYTES).keys
    if len(entries) > MAX_KEYS:
        raise WireError(f"{what}: {len(entries)} keys, more than the {MAX_KEYS} allowed")
    found: dict[str, jwt.PyJWK] = {}
    for entry in entries:
        key = _usable(entry)
        if key is not None:
            if (key.key_id or "") in found:
                raise WireError(f"{what}: two keys have the same kid")
            found[key.key_id or ""] = key
    if not found:
        raise WireError(f"{what}: no key of {', '.join(ALGORITHMS.values())} in it")
    return found


def _usable(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    kind, curve, kid = entry.get("kty"), entry.get("crv", ""), entry.get("kid", "")
    if not isinstance(kind, str) or not isinstance(curve, str) or not isinstance(kid, str):
        return None
    algorithm = ALGORITHMS.get((kind, curve))
    if algorithm is None or entry.get("use", "sig") != "sig":
        return None
    if entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK({**entry, "alg": algorithm})
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None  # PyJWT lets what base64 and cryptography raise through
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        return None
    # A private key has no business in a JWKS, and nothing here should hold one.
    return key if not hasattr(key.key, "public_key") else None
