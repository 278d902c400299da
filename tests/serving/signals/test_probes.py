"""Health checks and round trips against real servers."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from tests.serving.signals.builds import Server, config, serving, until
from trainmesh.serving.config.types import EndpointConfig, Runtime
from trainmesh.serving.signals.fetch import Fetched, Fetcher, root_of
from trainmesh.serving.signals.probes import HEALTH_PATHS, EndpointProber, problem_of, tcp_rtt_s
from trainmesh.serving.signals.revisions import revision_path, revisions_in


@pytest.mark.parametrize("runtime", list(Runtime))
@pytest.mark.parametrize(
    ("status", "healthy"),
    [(200, True), (404, True), (401, True), (429, True), (501, True), (500, False), (503, False)],
)
def test_only_a_server_that_says_so_is_unhealthy(
    runtime: Runtime, status: int, healthy: bool
) -> None:
    path = HEALTH_PATHS[runtime]
    assert (problem_of(runtime, path, Fetched(status)) == "") is healthy


def test_the_open_inference_protocol_says_no_with_400() -> None:
    said = {r for r in Runtime if problem_of(r, "/", Fetched(400))}
    assert said == {Runtime.TRITON, Runtime.KSERVE, Runtime.OVMS}


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:1", "http://h:1/"),
        ("http://h:1/v1", "http://h:1/"),
        ("http://h:1/v1/", "http://h:1/"),
        ("https://h/team/v1", "https://h/team"),
        ("https://h/v3", "https://h/"),
        ("https://h/team", "https://h/team"),
    ],
)
def test_roots(url: str, root: str) -> None:
    assert str(root_of(url)) == root


@pytest.mark.parametrize(
    ("body", "revisions"),
    [
        (b'{"model_sha": "abc", "model_id": "x"}', ("abc",)),
        (b'{"model_sha": null}', ()),
        (b'{"weight_version": "v7"}', ("v7",)),
        (b'{"name": "m", "versions": ["1", "3"], "platform": "p"}', ("1", "3")),
        (b'{"versions": "1"}', ()),
        (b"[" * 100_000, ()),
        (b"\xff", ()),
    ],
)
def test_revisions(body: bytes, revisions: tuple[str, ...]) -> None:
    assert revisions_in(body) == revisions


def test_where_revisions_are_asked_for() -> None:
    def path(runtime: Runtime, served: str = "") -> str:
        endpoint = EndpointConfig(url="http://h:1", runtime=runtime, served_model=served)
        return revision_path(endpoint, "org/m")

    assert path(Runtime.TGI) == "/info"
    assert path(Runtime.TRITON) == "/v2/models/org%2Fm"
    assert path(Runtime.KSERVE, "x") == "/v2/models/x"
    assert path(Runtime.VLLM) == ""


@pytest.mark.starts
def test_a_round_trip_comes_from_the_kernel() -> None:
    async def run() -> None:
        async with serving(Server()) as server:
            assert 0 < await tcp_rtt_s("127.0.0.1", server.port) < 1
            assert 0 < await tcp_rtt_s("localhost", server.port) < 1
        with pytest.raises(ConnectionRefusedError):
            await tcp_rtt_s("127.0.0.1", server.port)

    asyncio.run(run())


class Changes:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.mark.starts
def test_down_after_three_failures_and_back_after_one_success() -> None:
    async def run() -> None:
        changes = Changes()
        fetcher = Fetcher()
        prober = EndpointProber(fetcher, changes)
        async with serving(Server()) as server:
            server.answers["/health"] = (200, "")
            prober.update(
                config(
                    [{"url": server.url, "runtime": "vllm"}], telemetry={"probe_interval_s": 0.05}
                )
            )
            await until(lambda: server.url in prober.probe_states, "a pulse")
            assert prober.probe_states[server.url].rtt_s > 0
            server.answers["/health"] = (503, "loading")
            await until(lambda: changes.count == 1, "it is down")
            probe_state = prober.probe_states[server.url]
            assert probe_state.down == "health checks fail: GET /health was answered with 503"
            assert probe_state.failures == 3
            server.answers["/health"] = (200, "")
            await until(lambda: changes.count == 2, "it is back")
            assert prober.probe_states[server.url].down == ""
        await until(lambda: changes.count == 3, "its port is closed")
        assert prober.probe_states[server.url].down == (
            "health checks fail: no connection: connection refused"
        )
        async with serving(server):
            await until(lambda: changes.count == 4, "it was started again")
        await prober.close()
        await fetcher.close()

    asyncio.run(run())


def test_a_server_that_accepts_and_says_nothing_is_down_in_bounded_time() -> None:
    async def run() -> None:
        fetcher = Fetcher()
        prober = EndpointProber(fetcher, Changes(), answer_timeout_s=0.2)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            url = f"http://127.0.0.1:{mute.getsockname()[1]}"
            prober.update(config([{"url": url}], telemetry={"probe_interval_s": 0.05}))
            await until(
                lambda: url in prober.probe_states and prober.probe_states[url].down, "down"
            )
            assert prober.probe_states[url].problem == "GET /v1/models: no answer within 0.2 s"
            await prober.close()
            await fetcher.close()

    asyncio.run(run())


@pytest.mark.starts
def test_an_endpoint_that_left_the_config_is_forgotten_and_a_changed_one_begins_anew() -> None:
    async def run() -> None:
        fetcher = Fetcher()
        prober = EndpointProber(fetcher, Changes())
        async with serving(Server()) as one, serving(Server()) as other:
            both = [{"url": one.url}, {"url": other.url}]
            prober.update(config(both, telemetry={"probe_interval_s": 0.05}))
            await until(lambda: len(prober.probe_states) == 2, "two pulses")
            prober.update(config([{"url": one.url, "runtime": "tgi"}]))
            assert prober.probe_states == {}
            await until(lambda: "/health" in one.asked, "the new runtime's page is asked for")
            assert list(prober.probe_states) == [one.url]
            await prober.close()
            await fetcher.close()

    asyncio.run(run())


@pytest.mark.starts
def test_a_revision_is_asked_for_and_again_after_a_restart() -> None:
    async def run() -> None:
        changes = Changes()
        fetcher = Fetcher()
        prober = EndpointProber(fetcher, changes)
        server = Server()
        server.answers = {"/health": (200, ""), "/info": (200, '{"model_sha": "r1"}')}
        async with serving(server):
            endpoint = {"url": server.url, "runtime": "tgi", "revision": "r1"}
            prober.update(config([endpoint], telemetry={"probe_interval_s": 0.05}))
            await until(lambda: prober.revisions.get(server.url) == ("r1",), "r1")
        await until(lambda: prober.probe_states[server.url].down, "it is down")
        server.answers["/info"] = (200, '{"model_sha": "r2"}')
        async with serving(server):
            await until(lambda: prober.revisions.get(server.url) == ("r2",), "r2")
        assert server.asked.count("/info") == 2  # not with each check
        await prober.close()
        await fetcher.close()

    asyncio.run(run())


@pytest.mark.starts
def test_tls_is_checked_and_a_new_authority_is_taken_up(tmp_path: Path) -> None:
    async def run() -> None:
        right, wrong = trustme.CA(), trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        right.issue_cert("engine.example").configure_cert(context)
        authority = tmp_path / "ca.pem"
        wrong.cert_pem.write_to_path(str(authority))
        fetcher = Fetcher()
        prober = EndpointProber(fetcher, Changes())
        async with serving(Server(), context) as server:
            url = f"https://127.0.0.1:{server.port}"
            tls = {"ca": str(authority), "san": "engine.example"}
            fields = config([{"url": url, "tls": tls}], telemetry={"probe_interval_s": 0.05})
            prober.update(fields)
            await until(
                lambda: url in prober.probe_states and prober.probe_states[url].down,
                "it is refused",
            )
            assert prober.probe_states[url].problem == (
                "GET /v1/models: its certificate was signed by another authority than the one "
                "trusted here"
            )
            authority.unlink()
            await asyncio.sleep(0.2)  # a file that is missing for a while changes nothing
            assert "certificate" in prober.probe_states[url].problem
            right.cert_pem.write_to_path(str(authority))
            await until(lambda: not prober.probe_states[url].problem, "it is trusted")
            await prober.close()
            await fetcher.close()

    asyncio.run(run())
