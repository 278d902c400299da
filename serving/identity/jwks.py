"""Fetches the keys of a token issuer, again and again; in the control process, not a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
from msgspec import Struct

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import ConfigError, TrainmeshError, WireError
from trainmesh.serving.config.addresses import parse_url
from trainmesh.serving.config.types import JwtConfig
from trainmesh.serving.identity.keyset import MAX_BYTES, parse_keys
from trainmesh.wire import decode

__all__ = ["JwksSource"]

INTERVAL_S = 60.0
"""Issuers publish a key some time before they sign with it, and withdraw one late."""
RETRY_S = 5.0
TIMEOUT_S = 5.0
DISCOVERY = "/.well-known/openid-configuration"


class _Discovery(Struct, frozen=True):
    """What is read of an OpenID provider's configuration (OpenID Connect Discovery 1.0, 3)."""

    issuer: str
    jwks_uri: str


class JwksSource:
    """Hands on an issuer's keys whenever they have changed. While they can't be fetched, those
    fetched before stay in use."""

    def __init__(
        self,
        config: JwtConfig,
        publish: Callable[[bytes], None],
        log: Callable[[str], None],
        *,
        interval_s: float = INTERVAL_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """
        Args:
            config: where the keys are.
            publish: is given the JWKS, which has been found usable.
            log: is given one line when fetching begins to fail, and when it works again.
            interval_s: between fetches.
            retry_s: after one that failed.
        """
        self._config = config
        self._publish = publish
        self._log = log
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._published = b""
        self._problem = ""

    async def run(self) -> None:
        """Fetch until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                problem = await self._once(session)
                if problem != self._problem:
                    self._log(problem or f"keys of {self._config.issuer} can be fetched again")
                    self._problem = problem
                await asyncio.sleep(self._retry_s if problem else self._interval_s)

    async def _once(self, session: aiohttp.ClientSession) -> str:
        try:
            data = await self.fetch(session)
            parse_keys(data)
        except TrainmeshError as error:
            return f"can't fetch the keys of {self._config.issuer}: {error}"
        if data != self._published:
            self._published = data
            self._publish(data)
        return ""

    async def fetch(self, session: aiohttp.ClientSession) -> bytes:
        """The issuer's JWKS as it is now.

        Raises:
            WireError: it can't be fetched, or the discovery document is another issuer's.
        """
        source = self._config.jwks
        if source.startswith("file:"):
            return await asyncio.to_thread(_read_file, Path(source.removeprefix("file:")))
        if source:
            return await _get(session, source)
        url = self._config.issuer.rstrip("/") + DISCOVERY
        found = decode(await _get(session, url), _Discovery, what=url, max_bytes=MAX_BYTES)
        if found.issuer != self._config.issuer:
            raise WireError(f"{url}: is of issuer {ascii(found.issuer[:200])}")
        try:
            address = parse_url(found.jwks_uri)
        except ConfigError as error:
            raise WireError(f"{url}: jwks_uri {error}") from error
        if not address.tls and not address.loopback:
            raise WireError(f"{url}: jwks_uri does not begin with https://")
        return await _get(session, found.jwks_uri)


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    try:
        # A redirect could lead from https to http, or to an address inside the cluster.
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise WireError(f"{url}: answered {response.status}")
            data = bytearray()
            async for part in response.content.iter_chunked(65_536):
                data += part
                if len(data) > MAX_BYTES:
                    raise WireError(f"{url}: more than {MAX_BYTES // 1024} KiB")
            return bytes(data)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise WireError(f"{url}: {reason.splitlines()[0]}") from error


def _read_file(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise WireError(f"{path}: {error.strerror}") from error
