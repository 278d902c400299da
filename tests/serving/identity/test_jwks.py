"""The issuer's keys are fetched, handed on when they change, and kept when it is away."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace

from tests.serving.identity.issuer import CONFIG, Issuer
from trainmesh.errors import WireError
from trainmesh.serving.config.types import JwtConfig
from trainmesh.serving.identity.jwks import JwksSource
from trainmesh.serving.identity.keyset import MAX_BYTES

OWN, OTHER = Issuer(), Issuer()
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Provider:
    """A real HTTP server; what it answers can be changed."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, web.Response] = {}

    def says(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        self.answers[path] = web.Response(body=body, status=status, headers=headers)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        known = self.answers.get(request.path)
        if known is None:
            return web.Response(status=404)
        return web.Response(body=known.body, status=known.status, headers=known.headers)

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner


def with_provider(use: Callable[[Provider], Awaitable[None]]) -> None:
    async def run() -> None:
        provider = Provider()
        runner = await provider.start()
        try:
            await use(provider)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def fetched(config: JwtConfig) -> bytes:
    source = JwksSource(config, lambda data: None, lambda line: None)
    async with aiohttp.ClientSession() as session:
        return await source.fetch(session)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def discovery(issuer: str, uri: str) -> bytes:
    return json.dumps({"issuer": issuer, "jwks_uri": uri, "more": 1}).encode()


@pytest.mark.starts
def test_keys_are_found_through_the_issuer() -> None:
    async def use(provider: Provider) -> None:
        issuer = f"{provider.url}/realms/x"
        path = "/realms/x/.well-known/openid-configuration"
        provider.says(path, discovery(issuer, f"{provider.url}/keys"))
        provider.says("/keys", OWN.jwks())
        assert await fetched(replace(CONFIG, issuer=issuer)) == OWN.jwks()
        provider.says(path, discovery("https://other", f"{provider.url}/keys"))
        with pytest.raises(WireError, match="is of issuer 'https://other'"):
            await fetched(replace(CONFIG, issuer=issuer))
        provider.says(path, discovery(issuer, "http://idp.example/keys"))
        with pytest.raises(WireError, match="jwks_uri does not begin with https"):
            await fetched(replace(CONFIG, issuer=issuer))
        provider.says(path, discovery(issuer, "file:///etc/passwd"))
        with pytest.raises(WireError, match="jwks_uri must begin with"):
            await fetched(replace(CONFIG, issuer=issuer))

    with_provider(use)


@pytest.mark.starts
def test_what_can_t_be_fetched_has_a_reason() -> None:
    async def use(provider: Provider) -> None:
        provider.says("/large", b" " * (MAX_BYTES + 1))
        provider.says("/moved", b"", 302, Location=f"{provider.url}/large")
        for path, words in (
            ("/no", "answered 404"),
            ("/moved", "answered 302"),
            ("/large", "more than 256 KiB"),
        ):
            with pytest.raises(WireError, match=words):
                await fetched(replace(CONFIG, jwks=provider.url + path))
        with pytest.raises(WireError, match=r"http://127\.0\.0\.1:1/: "):
            await fetched(replace(CONFIG, jwks="http://127.0.0.1:1/"))

    with_provider(use)


def test_keys_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(OWN.jwks())
    assert asyncio.run(fetched(replace(CONFIG, jwks=f"file:{file}"))) == OWN.jwks()
    file.unlink()
    with pytest.raises(WireError, match="No such file"):
        asyncio.run(fetched(replace(CONFIG, jwks=f"file:{file}")))


@pytest.mark.starts
def test_rotation_is_followed_and_outages_are_survived() -> None:
    async def use(provider: Provider) -> None:
        provider.says("/keys", OWN.jwks())
        published: list[bytes] = []
        logged: list[str] = []
        source = JwksSource(
            replace(CONFIG, jwks=f"{provider.url}/keys"),
            published.append,
            logged.append,
            interval_s=0.01,
            retry_s=0.01,
        )
        task = asyncio.create_task(source.run())
        try:
            await until(lambda: published == [OWN.jwks()])
            provider.says("/keys", b"{}")
            await until(lambda: len(logged) == 1)
            provider.says("/keys", b"", 500)
            await until(lambda: len(logged) == 2)
            provider.says("/keys", OTHER.jwks())
            await until(lambda: published == [OWN.jwks(), OTHER.jwks()] and len(logged) == 3)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert [line.split(": ")[0] for line in logged[:2]] == [
            f"can't fetch the keys of {CONFIG.issuer}"
        ] * 2
        assert "again" in logged[2]

    with_provider(use)
