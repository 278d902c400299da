"""Bearer tokens (JWT): verified with keys that the control process fetched; no I/O."""

from __future__ import annotations

from typing import Any, NamedTuple

import jwt

from trainmesh.serving.config.types import JwtConfig
from trainmesh.serving.identity.keyset import parse_keys
from trainmesh.serving.refusal import Refusal

__all__ = ["Claims", "Tokens"]

MAX_BYTES = 8192
MAX_ROLES = 64
MAX_TEXT = 512
LEEWAY_S = 10
"""How far the issuer's clock may be off."""
REQUIRED = ["exp", "iss", "aud"]


class Claims(NamedTuple):
    """What a valid token says."""

    subject: str
    """The value of ``tenant_claim``."""
    roles: frozenset[str]
    until_unix_s: float


class Tokens:
    """Verifies tokens of one issuer."""

    def __init__(self, config: JwtConfig) -> None:
        self._config = config
        self._keys: dict[str, jwt.PyJWK] = {}

    def set_keys(self, data: bytes) -> None:
        """Take the issuer's keys from now on, and no others.

        Raises:
            WireError: ``data`` is not a usable JWKS; the keys stay as they were.
        """
        self._keys = parse_keys(data)

    def verify(self, token: bytes) -> Claims | Refusal:
        """The claims of ``token``, if this issuer signed it for us and it is valid now."""
        if len(token) > MAX_BYTES:
            return _refused(f"is longer than {MAX_BYTES} bytes")
        try:
            key = self._key(token)
            if isinstance(key, Refusal):
                return key
            payload = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
        except jwt.PyJWTError as error:
            return _refused(_words(error))
        except (ValueError, TypeError, RecursionError):
            # What PyJWT lets through of base64, JSON (nested deeply) and claims of wrong types.
            return _refused("is malformed")
        return self._claims(payload)

    def _key(self, token: bytes) -> jwt.PyJWK | Refusal:
        if not self._keys:
            return _refused("can't be verified yet: the issuer's keys have not been fetched")
        kid = jwt.get_unverified_header(token).get("kid", "")
        if not kid and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if not isinstance(kid, str) or kid not in self._keys:
            return _refused("was signed with a key (kid) that the issuer does not publish")
        return self._keys[kid]

    def _claims(self, payload: dict[str, Any]) -> Claims | Refusal:
        subject = payload.get(self._config.tenant_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_TEXT:
            return _refused(f"has no text in its claim {self._config.tenant_claim}")
        roles = payload.get(self._config.roles_claim, [])
        if isinstance(roles, str):
            roles = roles.split()
        if not isinstance(roles, list) or len(roles) > MAX_ROLES:
            return _refused(f"has no list of roles in its claim {self._config.roles_claim}")
        return Claims(
            subject,
            frozenset(role for role in roles if isinstance(role, str)),
            float(payload["exp"]),
        )


WORDS: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "has expired",
    jwt.ImmatureSignatureError: "is not valid yet",
    jwt.InvalidAudienceError: "is for another audience",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.InvalidSignatureError: "has a wrong signature",
    jwt.InvalidAlgorithmError: "has an algorithm that its key is not for",
}


def _words(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"has no claim {error.claim}"
    return WORDS.get(type(error), "is malformed")


def _refused(problem: str) -> Refusal:
    return Refusal(status=401, code="invalid_token", message=f"The bearer token {problem}.")
