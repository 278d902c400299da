"""Small HTTP requests to endpoints: bounded in time and size, errors in words."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

import aiohttp
from yarl import URL

from trainmesh.serving.config.addresses import OPENAI_ROOTS
from trainmesh.serving.config.types import EndpointConfig, UpstreamTls
from trainmesh.serving.identity.certificates import FileProblem
from trainmesh.serving.identity.describe_tls import handshake_problem
from trainmesh.serving.identity.tls import UpstreamSide

__all__ = ["Fetched", "Fetcher", "describe_error", "root_of"]

MAX_BYTES = 8 << 20
"""Of a page; a busy engine's metrics are some 100 KB."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """``status`` is 0 and ``problem`` says why where there was no answer."""

    status: int = 0
    body: bytes = b""
    problem: str = ""


def root_of(url: str) -> URL:
    """The URL that a server's own paths begin at: an endpoint's, without the ``/v1`` of OpenAI."""
    parsed = URL(url)
    path = parsed.path.rstrip("/")
    return parsed.with_path((path[:-3] if path.endswith(OPENAI_ROOTS) else path) or "/")


class Fetcher:
    """Must be made and closed inside the running event loop. Every request has a connection of its
    own, so that it also finds out whether the server still takes new ones. A ``spiffe://`` name,
    which is not in OpenSSL's checks, is left to the data path, so no secret is sent there."""

    def __init__(self) -> None:
        self._sides: dict[tuple[UpstreamTls, str], UpstreamSide] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def get(
        self, endpoint: EndpointConfig, url: URL, timeout_s: float, *, keyed: bool = False
    ) -> Fetched:
        """GET ``url`` with the TLS of ``endpoint``; never raises for what the other side does.
        ``keyed``: with its key, if it wants one."""
        try:
            side = self._side(endpoint, url)
            async with self._session.get(
                url,
                ssl=side.context if side is not None else True,
                server_hostname=side.server_hostname if side is not None else None,
                headers=_key(endpoint) if keyed else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                return await _answer(response)
        except TimeoutError:
            return Fetched(problem=f"no answer within {timeout_s:g} s")
        except FileProblem as error:
            return Fetched(problem=str(error))
        except (aiohttp.ClientError, OSError) as error:
            return Fetched(problem=describe_error(error))

    def _side(self, endpoint: EndpointConfig, url: URL) -> UpstreamSide | None:
        """How to speak TLS with ``endpoint``, with the newest of its files; None for http.

        Raises:
            FileProblem: one of them can't be used.
        """
        if url.scheme != "https":
            return None
        key = (endpoint.tls, url.host or "")
        if key not in self._sides:
            self._sides[key] = UpstreamSide(*key)
        self._sides[key].renew()
        return self._sides[key]

    async def close(self) -> None:
        await self._session.close()


def _key(endpoint: EndpointConfig) -> dict[str, str] | None:
    key = os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else ""
    if not key or endpoint.tls.san.startswith("spiffe://"):
        return None
    return {"Authorization": f"Bearer {key}"}


async def _answer(response: aiohttp.ClientResponse) -> Fetched:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            return Fetched(problem=f"more than {MAX_BYTES >> 20} MiB")
    return Fetched(response.status, bytes(body))


def describe_error(error: Exception) -> str:
    """A failure of the network in one short line, the same whatever event loop it comes from."""
    if isinstance(error.__cause__, ssl.SSLError):  # aiohttp's own errors don't say why
        return handshake_problem(error.__cause__)
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    cause = getattr(error, "os_error", error)
    text = str(getattr(cause, "strerror", None) or cause or type(error).__name__)
    return text.splitlines()[0][:200].lower()
