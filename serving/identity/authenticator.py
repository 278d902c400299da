"""Who sends a request: by API key, bearer token or client certificate."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from trainmesh.serving.config.types import Config, TenantConfig
from trainmesh.serving.identity.access import ANONYMOUS
from trainmesh.serving.identity.tokens import Tokens
from trainmesh.serving.refusal import Refusal

__all__ = ["ADMIN", "AdminIdentity", "Authenticator", "Tenant"]

ADMIN = "admin"
"""The role that may change things."""
MAX_KNOWN = 8192
"""Headers that are remembered; the oldest is forgotten first."""
MAX_HEADER_BYTES = 8192 + 16
FOREVER = float("inf")


class Tenant:
    """Who asks. ``subject`` is the token's or certificate's name, empty for a key."""

    __slots__ = ("config", "name", "roles", "subject")

    def __init__(
        self, name: str, config: TenantConfig, roles: frozenset[str], subject: str = ""
    ) -> None:
        self.name = name
        self.config = config
        self.roles = roles
        self.subject = subject


class AdminIdentity(NamedTuple):
    """An admin, as the audit log names them."""

    who: str


class _Known(NamedTuple):
    tenant: Tenant
    until_unix_s: float


class Authenticator:
    """Tells tenants apart.

    A valid header is remembered for the next request, in this process's memory only. An invalid one
    never is, so that nobody can push others out. Keys are compared by their SHA-256, whose timing
    says nothing about the key.
    """

    def __init__(
        self,
        config: Config,
        *,
        admin_digests: Iterable[str] = (),
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            config: complete (``load``): keys are ``sha256:HEX``.
            admin_digests: of further keys of admins (``admin_token``).
            unix_s: the clock that tokens expire by.
        """
        self._unix_s = unix_s
        self._tenants = {
            name: Tenant(name, tenant, frozenset(tenant.roles))
            for name, tenant in config.tenants.items()
        }
        self._by_digest = {
            _digest_of(key): self._tenants[name]
            for name, tenant in config.tenants.items()
            for key in tenant.keys
        }
        self._by_subject = {
            subject: self._tenants[name]
            for name, tenant in config.tenants.items()
            for subject in tenant.subjects
        }
        self._admins = {*map(_digest_of, config.admin_keys), *map(bytes.fromhex, admin_digests)}
        self._tokens = None if config.jwt is None else Tokens(config.jwt)
        self._anonymous = Tenant(ANONYMOUS, TenantConfig(), frozenset())
        self._open = not config.tenants and config.jwt is None
        self._known: dict[bytes, _Known] = {}

    def set_keys(self, data: bytes) -> None:
        """Take these keys of the token issuer (a JWKS) from now on.

        Raises:
            WireError: they can't be used; the keys stay as they were.
        """
        if self._tokens is not None:
            self._tokens.set_keys(data)
            self._known.clear()

    def identify(self, authorization: bytes | None, peer: tuple[str, ...] = ()) -> Tenant | Refusal:
        """Who sends a request.

        Args:
            authorization: the header's value.
            peer: the names in the client's certificate (``peer_names``); they count where the
                header names no tenant.
        """
        if self._open:
            return self._anonymous
        if authorization is not None:
            known = self._known.get(authorization)
            if known is not None and self._unix_s() < known.until_unix_s:
                return known.tenant
        found = self._by_header(authorization)
        if isinstance(found, Refusal):
            return next((self._by_peer(name) for name in peer if name in self._by_subject), found)
        return found

    def authorize_admin(
        self, authorization: bytes | None, peer: tuple[str, ...] = ()
    ) -> AdminIdentity | Refusal:
        """Whether a request may change things: by an admin's key, or as a tenant or token with
        the role ``admin``."""
        token = _bearer(authorization)
        if token:
            digest = hashlib.sha256(token).digest()
            if digest in self._admins:
                return AdminIdentity(f"key sha256:{digest.hex()[:12]}")
        if self._open:
            return Refusal(
                status=401,
                code="invalid_api_key",
                message="An admin's key is needed (Authorization: Bearer ...): one of admin_keys, "
                "or the one in admin.token in the run directory.",
            )
        tenant = self.identify(authorization, peer)
        if isinstance(tenant, Refusal):
            return tenant
        if ADMIN not in tenant.roles:
            return Refusal(
                status=403,
                code="admin_required",
                message=f"tenant {tenant.name} does not have the role {ADMIN}",
            )
        return AdminIdentity(
            f"tenant {tenant.name}" + (f" ({tenant.subject})" if tenant.subject else "")
        )

    def _by_header(self, authorization: bytes | None) -> Tenant | Refusal:
        token = _bearer(authorization)
        if authorization is None or token is None:
            return NO_KEY
        tenant = self._by_digest.get(hashlib.sha256(token).digest())
        until_unix_s = FOREVER
        if tenant is None:
            if self._tokens is None or token.count(b".") != 2:
                return WRONG_KEY
            claims = self._tokens.verify(token)
            if isinstance(claims, Refusal):
                return claims
            found = self._of_claims(claims.subject, claims.roles)
            if isinstance(found, Refusal):
                return found
            tenant, until_unix_s = found, claims.until_unix_s
        while len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[authorization] = _Known(tenant, until_unix_s)
        return tenant

    def _of_claims(self, subject: str, roles: frozenset[str]) -> Tenant | Refusal:
        tenant = self._by_subject.get(subject)
        if tenant is None:
            if self._tenants:
                return Refusal(
                    status=403,
                    code="tenant_unknown",
                    message="The token is valid, but its subject is that of no tenant.",
                )
            tenant = self._anonymous
        return Tenant(tenant.name, tenant.config, tenant.roles | roles, subject)

    def _by_peer(self, name: str) -> Tenant:
        tenant = self._by_subject[name]
        return Tenant(tenant.name, tenant.config, tenant.roles, name)


def _digest_of(key: str) -> bytes:
    return bytes.fromhex(key.removeprefix("sha256:"))


def _bearer(authorization: bytes | None) -> bytes | None:
    """The credential after ``Bearer`` (RFC 6750; the scheme's case does not matter)."""
    if authorization is None or len(authorization) > MAX_HEADER_BYTES:
        return None
    scheme, _, token = authorization.partition(b" ")
    return token.strip() or None if scheme.lower() == b"bearer" else None


NO_KEY = Refusal(
    status=401,
    code="invalid_api_key",
    message="You didn't provide an API key: send it as Authorization: Bearer KEY, or as "
    "api-key: KEY.",
)
WRONG_KEY = Refusal(
    status=401, code="invalid_api_key", message="Incorrect API key or token provided."
)
