"""What a running router tells: counters that add up over workers, reloads and crashes; its
ledger explained and replayed; an admin's word obeyed."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.observe.collector import Collector, collecting
from tests.serving.running import RunningRouter, ask, running_router, until
from trainmesh.launcher.cli import main
from trainmesh.serving.control.rundir import ServeRun

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
).encode()


class _Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    traceparents: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.traceparents.append(self.headers["traceparent"])
        self.rfile.read(int(self.headers["content-length"]))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def backends() -> Iterator[list[str]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Backend) for _ in range(2)]
    threads = [threading.Thread(target=each.serve_forever, args=(0.05,)) for each in servers]
    for thread in threads:
        thread.start()
    yield [f"http://127.0.0.1:{each.server_address[1]}" for each in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


class Observed:
    """A running router and its admin server."""

    def __init__(self, router: RunningRouter, config: dict[str, Any]) -> None:
        self.router = router
        self.config = config
        self.sent = 0
        until(lambda: any(info.admin for _, info in ServeRun.live()))
        ((self.run, self.info),) = ServeRun.live()
        self._admin = self.info.admin.partition("//")[2]

    def chat(self, count: int = 1, headers: dict[str, str] | None = None) -> list[tuple[str, str]]:
        """Send chats over connections of their own; ids and endpoints of the answers."""
        found = []
        for _ in range(count):
            connection = HTTPConnection(self.router.name, timeout=20)
            connection.request("POST", "/v1/chat/completions", CHAT, headers or {})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, ANSWER)
            connection.close()
            names = ("x-trainmesh-request-id", "x-trainmesh-endpoint")
            request_id, endpoint = (answer.headers[name] for name in names)
            found.append((request_id, endpoint))
        self.sent += count
        return found

    def answered(self) -> float:
        return self.metric("requests_total", model="m", code="200")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples that have ``labels``."""
        status, page = ask(self._admin, "GET", "/metrics")
        assert status == 200
        return sum(
            sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
            if sample.name == f"trainmesh_serve_{name}" and labels.items() <= sample.labels.items()
        )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


@pytest.fixture(scope="module")
def observed(backends: list[str], collector: Collector) -> Iterator[Observed]:
    endpoints = [{"url": url, "name": f"h{n}"} for n, url in enumerate(backends, 1)]
    config = {
        "models": {"m": {"endpoints": endpoints, "policy": "round_robin"}},
        "workers": 2,
        "telemetry": {"otlp": collector.url},
    }
    with pytest.MonkeyPatch.context() as patch, running_router(config) as router:
        entries = Path(f"/proc/{router.process.pid}/environ").read_text().split("\0")
        environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            patch.setenv(name, environment[name])
        yield Observed(router, config)


def test_it_is_ready_and_alive(observed: Observed) -> None:
    admin = observed.info.admin.partition("//")[2]
    until(lambda: ask(admin, "GET", "/ready") == (200, b"ready\n"))
    assert observed.metric("endpoint_up") == 2
    assert main(["endpoints"]) == 0


def test_counters_of_all_workers_add_up(observed: Observed) -> None:
    observed.chat(40)
    until(lambda: observed.answered() == observed.sent)
    until(lambda: observed.metric("endpoint_inflight") == 0)
    for name in ("endpoint_attempts_total", "time_to_first_token_seconds_count"):
        assert observed.metric(name) == observed.sent
    assert observed.metric("endpoint_results_total", outcome="ok") == observed.sent
    assert observed.metric("tenant_requests_total", tenant="anonymous") == observed.sent
    shares = [observed.metric("responses_total", worker=worker, code="200") for worker in "01"]
    assert min(shares) > 0, "the kernel spreads connections over the workers"


def test_why_and_replay(observed: Observed, capsys: pytest.CaptureFixture[str]) -> None:
    ((request_id, endpoint),) = observed.chat()
    until(lambda: main(["why", request_id]) == 0, what="the ledger never has it")
    assert f"went to {endpoint} by policy round_robin" in capsys.readouterr().out
    assert main(["replay", observed.info.ledger, "--check"]) == 0
    assert "(100.0 %)" in capsys.readouterr().out


def test_a_cordoned_endpoint_gets_nothing(observed: Observed) -> None:
    assert {endpoint for _, endpoint in observed.chat(20)} == {"h1", "h2"}
    assert main(["endpoints", "cordon", "h2"]) == 0
    until(lambda: {endpoint for _, endpoint in observed.chat(10)} == {"h1"})
    assert main(["endpoints", "uncordon", "h2"]) == 0
    until(lambda: {endpoint for _, endpoint in observed.chat(10)} == {"h1", "h2"})


def test_a_sampled_request_leaves_a_trace(observed: Observed, collector: Collector) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for flags in ("00", "01"):
        observed.chat(headers={"traceparent": f"00-{trace}-b7ad6b7169203331-{flags}"})
    until(lambda: len(collector.spans()) == 2)
    request, attempt = sorted(collector.spans().values(), key=lambda span: span.kind)
    assert request.name == "POST /v1/chat/completions"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert attempt.parent_span_id == request.span_id
    assert _Backend.traceparents[-2:] == [
        f"00-{trace}-b7ad6b7169203331-00",
        f"00-{trace}-{attempt.span_id.hex()}-01",
    ]


def test_counters_survive_a_reload_and_a_crash(observed: Observed) -> None:
    observed.chat(10)
    until(lambda: observed.answered() == observed.sent)
    model = {**observed.config["models"]["m"], "policy": "least_requests"}
    observed.router.rewrite({**observed.config, "models": {"m": model}})
    until(lambda: "board-2" in os.listdir(observed.run.path))
    assert observed.answered() == observed.sent
    observed.chat(10)
    until(lambda: observed.answered() == observed.sent)

    victims = observed.router.workers()
    os.kill(victims[0], signal.SIGKILL)
    until(lambda: len(set(observed.router.workers()) - {victims[0]}) == 2)
    assert observed.answered() == observed.sent
    observed.chat(10)
    until(lambda: observed.answered() == observed.sent)


def test_a_client_hears_that_all_are_out_but_not_by_whom(observed: Observed) -> None:
    """Neither a digest of an admin's key nor a name; operators hear both."""
    for name in ("h1", "h2"):
        assert main(["endpoints", "cordon", name]) == 0
    until(lambda: all(observed.router.post(CHAT)[0] == 503 for _ in range(20)))  # both workers
    told = observed.router.post(CHAT)[1] + ask(observed.router.name, "GET", "/ready")[1]
    admin = observed.info.admin.partition("//")[2]
    until(lambda: ask(admin, "GET", "/ready")[0] == 503)
    told += ask(admin, "GET", "/ready")[1]
    assert told.count(b"cordoned") == 6, told
    assert b"sha256" not in told
    assert b" by " not in told
    assert b"cordoned by key sha256:" in ask(admin, "GET", "/endpoints")[1]
    for name in ("h1", "h2"):
        assert main(["endpoints", "uncordon", name]) == 0
    until(lambda: all(observed.router.post(CHAT)[0] == 200 for _ in range(20)))


def test_why_takes_a_clients_id_where_it_is_of_one_request(
    observed: Observed, capsys: pytest.CaptureFixture[str]
) -> None:
    ((alone, _),) = observed.chat(headers={"x-request-id": "only-once"})
    until(lambda: main(["why", "only-once"]) == 0, what="the ledger never has it")
    assert f"request {alone} ('only-once' to its client): " in capsys.readouterr().out
    several = [own for own, _ in observed.chat(3, {"x-request-id": "same"})]
    until(lambda: all(main(["why", own]) == 0 for own in several))
    capsys.readouterr()
    assert main(["why", "same"]) == 1
    said = capsys.readouterr().err
    assert "3 requests came with the x-request-id 'same'" in said
    assert all(own in said for own in several)


def test_drain_waits_for_workers_that_have_not_heard_of_it(observed: Observed) -> None:
    """One that has not taken the word yet may still send a request there, though none is now."""
    observed.chat(4)
    victim, *_ = observed.router.workers()
    os.kill(victim, signal.SIGSTOP)
    done: list[int] = []
    draining = threading.Thread(
        target=lambda: done.append(main(["endpoints", "drain", "h1", "--wait", "60s"]))
    )
    draining.start()
    try:
        until(lambda: b"draining" in ask(observed._admin, "GET", "/endpoints")[1])
        time.sleep(0.5)
        assert done == [], "it did not wait for the worker that stands still"
    finally:
        os.kill(victim, signal.SIGCONT)
    draining.join(30)
    assert done == [0]
    assert main(["endpoints", "uncordon", "h1"]) == 0


def test_replay_finds_the_ledger_by_itself(
    observed: Observed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((request_id, _),) = observed.chat()
    until(lambda: main(["why", request_id]) == 0)
    capsys.readouterr()
    assert main(["replay", "--check"]) == 0
    told = capsys.readouterr()
    assert "(100.0 %)" in told.out
    assert f"ledger: {observed.info.ledger}" in told.err
    assert main(["replay", "--check", "--model", "nobody"]) == 1, "it has shown nothing"
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.jsonl").write_text('{"a": 1}\n')
    capsys.readouterr()
    for path, words in (
        ("empty", "an empty folder"),
        ("other", "this is no ledger"),
        ("other/notes.jsonl", "no line of it is a decision"),
        ("none", "No such file"),
    ):
        assert main(["replay", str(tmp_path / path)]) == 2
        assert words in capsys.readouterr().err
    for path in ("empty", "other", "none"):
        assert main(["why", request_id, "--ledger", str(tmp_path / path)]) == 2
