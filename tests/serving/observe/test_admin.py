"""The admin server over a real socket: what it shows, who may do what, what it refuses."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.observe.desk import CONFIG, TOKEN, Desk
from trainmesh.errors import ConfigError
from trainmesh.serving.admin.admin import AdminServer
from trainmesh.serving.admin.views import Overview
from trainmesh.serving.config.types import LimitsConfig
from trainmesh.serving.ledger.segments import Segment

KEY = {"Authorization": f"Bearer {TOKEN}"}

Asked = Callable[[aiohttp.ClientSession, str], Awaitable[Any]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def serve(desk: Desk, ask: Asked) -> Any:
    """What ``ask`` gets from a running admin server."""

    async def run() -> Any:
        admin = AdminServer(desk)
        url = await admin.start()
        try:
            async with aiohttp.ClientSession() as session:
                return await ask(session, url)
        finally:
            await admin.close()

    return asyncio.run(run())


async def answer(request: Any) -> tuple[int, str]:
    async with request as response:
        return response.status, await response.text()


@pytest.mark.starts
def test_health_and_readiness(desk: Desk) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        assert await answer(session.get(f"{url}/health")) == (200, "ok\n")
        assert await answer(session.get(f"{url}/ready")) == (200, "ready\n")
        desk.problem = "no worker runs"
        assert await answer(session.get(f"{url}/ready")) == (503, "no worker runs\n")
        assert await answer(session.get(f"{url}/health")) == (200, "ok\n")

    serve(desk, ask)


@pytest.mark.starts
def test_endpoints_are_shown(desk: Desk) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> Overview:
        desk.snapshot = None
        assert (await answer(session.get(f"{url}/endpoints")))[0] == 503
        desk.look()
        return msgspec.json.decode(
            (await answer(session.get(f"{url}/endpoints")))[1], type=Overview
        )

    view = serve(desk, ask)
    assert view.router == "front"
    assert [each.name for each in view.models[0].endpoints] == ["h1", "org/h2:1"]


@pytest.mark.starts
def test_metrics_are_what_prometheus_reads(desk: Desk) -> None:
    cells = desk.counters.layout.endpoints["m", "h1"]
    desk.counters.row(0).cells[cells.attempts] = 2
    desk.counters.row(1).cells[cells.attempts] = 3

    async def ask(session: aiohttp.ClientSession, url: str) -> str:
        async with session.get(f"{url}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return await response.text()

    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(serve(desk, ask))
        for sample in family.samples
    }
    labels = frozenset({"model": "m", "endpoint": "h1"}.items())
    assert samples["trainmesh_serve_endpoint_attempts_total", labels] == 5


@pytest.mark.starts
def test_an_admin_cordons_drains_and_uncordons(desk: Desk) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        for word, state, reason in (
            ("cordon", "cordon", "cordoned by key sha256:"),
            ("drain", "drain", "draining by key sha256:"),
            ("uncordon", "open", ""),
        ):
            status, text = await answer(
                session.post(f"{url}/endpoints/org/h2:1/{word}", headers=KEY)
            )
            assert status == 200, text
            assert json.loads(text)["state"] == state
            assert desk.snapshot is not None
            assert desk.snapshot.signals["m"][1].excluded.startswith(reason)
            assert bool(desk.snapshot.signals["m"][1].excluded) == bool(reason)

    serve(desk, ask)
    lines = [json.loads(line) for line in desk.audit_path.read_text().splitlines()]
    assert [(line["kind"], line["action"], line["target"]) for line in lines] == [
        ("admin", "cordon", "org/h2:1"),
        ("admin", "drain", "org/h2:1"),
        ("admin", "uncordon", "org/h2:1"),
    ]
    assert TOKEN not in desk.audit_path.read_text()


@pytest.mark.starts
def test_drain_answers_when_the_last_request_is_over(desk: Desk) -> None:
    cells = desk.counters.layout.endpoints["m", "h1"]
    row = desk.counters.row(1)
    row.cells[cells.inflight] = 1

    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        draining = asyncio.create_task(
            answer(session.post(f"{url}/endpoints/h1/drain", headers=KEY))
        )
        while not (desk.snapshot and desk.snapshot.signals["m"][0].excluded):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not draining.done()
        row.cells[cells.inflight] = 0
        status, text = await draining
        assert (status, json.loads(text)["inflight"]) == (200, 0)

    serve(desk, ask)


@pytest.mark.starts
def test_drain_gives_up_waiting_and_says_what_is_left(tmp_path: Path) -> None:
    limits = LimitsConfig(drain_s=0.01)
    desk = Desk(tmp_path, msgspec.structs.replace(CONFIG, limits=limits))
    desk.counters.row(0).cells[desk.counters.layout.endpoints["m", "h1"].inflight] = 3

    async def ask(session: aiohttp.ClientSession, url: str) -> Any:
        return await answer(session.post(f"{url}/endpoints/h1/drain", headers=KEY))

    status, text = serve(desk, ask)
    desk.close()
    assert (status, json.loads(text)["inflight"]) == (200, 3)


@pytest.mark.starts
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_nobody_else_may(desk: Desk, headers: dict[str, str]) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        for method, path in (("POST", "/endpoints/h1/cordon"), ("GET", "/why/r1")):
            async with session.request(method, url + path, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")

    serve(desk, ask)
    assert desk.snapshot is not None
    assert not desk.snapshot.signals["m"][0].excluded
    assert '"kind":"refused"' in desk.audit_path.read_text()


@pytest.mark.starts
def test_what_cannot_be_written_down_is_not_done(desk: Desk) -> None:
    def full(by: str, action: str, subject: str, remote: str, result: str) -> None:
        raise OSError(28, "No space left on device")

    desk.audit = full  # type: ignore[method-assign]

    async def ask(session: aiohttp.ClientSession, url: str) -> Any:
        return await answer(session.post(f"{url}/endpoints/h1/cordon", headers=KEY))

    status, text = serve(desk, ask)
    assert status == 503
    assert "audit log can't be written: No space left" in text
    assert desk.snapshot is not None
    assert not desk.snapshot.signals["m"][0].excluded


@pytest.mark.starts
def test_records_of_a_request_are_shown(desk: Desk, tmp_path: Path) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> list[Any]:
        answers = [await answer(session.get(f"{url}/why/r1", headers=KEY))]
        desk.ledger = tmp_path
        answers.append(await answer(session.get(f"{url}/why/r1", headers=KEY)))
        Segment.at(tmp_path, 0, 0).path.write_text('{"request_id":"r1"}\n{"request_id":"r2"}\n')
        answers.append(await answer(session.get(f"{url}/why/r1", headers=KEY)))
        return answers

    none, missing, found = serve(desk, ask)
    assert none[0] == missing[0] == 404
    assert found == (200, '{"request_id":"r1"}\n')


@pytest.mark.starts
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/endpoints", {"Host": "evil.example"}, 403),
        ("GET", "/endpoints", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("GET", "/endpoints", {"Host": "[::1"}, 403),
        ("GET", "/endpoints", {"Host": "localhost:1"}, 200),
        ("GET", "/endpoints", {"Host": "[::1]:1"}, 200),
        ("GET", "/nothing", {}, 404),
        ("POST", "/metrics", {}, 405),
        ("PUT", "/endpoints/h1/cordon", KEY, 405),
        ("POST", "/endpoints/h9/cordon", KEY, 404),
        ("POST", "/endpoints/h1/destroy", KEY, 404),
        ("GET", "/../../etc/passwd", {}, 404),
    ],
)
def test_odd_requests_get_one_line(
    desk: Desk, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        async with session.request(method, url + path, headers=headers) as response:
            assert response.status == status
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            if status >= 400:
                assert "Traceback" not in (text := await response.text())
                assert json.loads(text)["error"]["message"]

    serve(desk, ask)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    desk = Desk(tmp_path, msgspec.structs.replace(CONFIG, admin=address))
    with pytest.raises(ConfigError, match="port"):
        asyncio.run(AdminServer(desk).start())
    desk.close()


@pytest.mark.starts
def test_beyond_loopback_health_and_metrics_are_open_and_the_rest_wants_a_key(
    tmp_path: Path,
) -> None:
    """``load`` lets such an address through only with ``insecure`` and ``admin_keys``."""
    desk = Desk(tmp_path, msgspec.structs.replace(CONFIG, admin="0.0.0.0:0"))

    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        url = url.replace("0.0.0.0", "127.0.0.1")
        named = {"Host": "router.example:9090"}
        for path in ("/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics"):
            async with session.get(url + path, headers=named) as response:
                assert response.status == 200, path
        for path in ("/endpoints", "/why/x"):
            async with session.get(url + path, headers=named) as response:
                assert response.status == 401, path
        keyed = {**named, "Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{url}/endpoints", headers=keyed) as response:
            assert response.status == 200

    serve(desk, ask)
    desk.close()


@pytest.mark.starts
def test_an_address_in_use_is_reported(desk: Desk, tmp_path: Path) -> None:
    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        (tmp_path / "other").mkdir()
        other = Desk(
            tmp_path / "other", msgspec.structs.replace(CONFIG, admin=url.partition("//")[2])
        )
        with pytest.raises(ConfigError, match="can't listen on 127.0.0.1:"):
            await AdminServer(other).start()
        other.close()

    serve(desk, ask)
