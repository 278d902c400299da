"""A router over time: reloads, its end, its queue, hedges."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.launchjob import place
from tests.needs import need_root
from tests.serving.proxy.backend import STREAM_HEAD, Backend, answer, backends, chunked, event
from tests.serving.proxy.raw import chat, raw
from tests.serving.running import RunningRouter, ask, running_router, until
from tests.serving.tap import free_port

OFF = {"enabled": False}


def model(made: list[Backend], **more: Any) -> dict[str, Any]:
    return {"endpoints": [{"url": backend.url} for backend in made], "hedge": OFF, **more}


async def slow_stream(_: Backend, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    for number in range(20):
        writer.write(chunked(event(number)))
        await writer.drain()
        await asyncio.sleep(0.1)
    writer.write(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def rewrite(router: RunningRouter, change: dict[str, Any]) -> None:
    file = next(iter(router._here.path.glob("serve.yaml")))
    whole = json.loads(file.read_text())
    whole.update(change)
    file.write_text(json.dumps(whole))


@pytest.mark.parametrize("streams", ["", "<&- >&- 2>&-"])
def test_it_outlives_its_terminal(streams: str) -> None:
    """A hangup, also in a worker, and standard streams that were closed from the beginning."""
    with (
        backends(1) as made,
        running_router({"models": {"one": model(made)}}, streams=streams) as router,
    ):
        until(lambda: router.post(b'{"model":"one"}')[0] == 200)
        workers = router.workers()
        assert workers
        for pid in (router.process.pid, *workers):
            os.kill(pid, signal.SIGHUP)
        time.sleep(0.5)
        assert router.post(b'{"model":"one"}')[0] == 200
        assert router.workers() == workers
        assert router.stop() == 0


def test_a_reload_adds_and_removes_endpoints_and_disturbs_nobody() -> None:
    with backends(2) as made, running_router({"models": {"one": model(made[:1])}}) as router:
        made[0].do(slow_stream)
        with raw(router.port) as client:
            client.send(chat("one", stream=True))
            client.head()
            rewrite(router, {"models": {"one": model(made[1:])}})
            until(lambda: router.post(b'{"model":"one"}')[0] == 200 and made[1].asked)
            assert client.until(b"\r\n0\r\n\r\n").count(b"data: ") == 21
        assert made[1].name in router.log
        asked = len(made[0].asked)
        for _ in range(5):
            assert router.post(b'{"model":"one"}')[0] == 200
        assert len(made[0].asked) == asked


def test_a_wrong_file_changes_nothing_and_is_reported() -> None:
    with backends(1) as made, running_router({"models": {"one": model(made)}}) as router:
        rewrite(router, {"models": {"one": {"endpoints": [{"url": "ftp://x"}]}}})
        until(lambda: "stays as it was" in router.log)
        assert "models.one.endpoints[0].url" in router.log
        assert router.post(b'{"model":"one"}')[0] == 200
        assert router.process.poll() is None


def test_the_end_lets_streams_finish_and_leaves_nothing() -> None:
    with backends(1) as made, running_router({"models": {"one": model(made)}}) as router:
        made[0].do(slow_stream)
        workers = router.workers()
        with raw(router.port) as client:
            client.send(chat("one", stream=True))
            client.head()
            router.process.terminate()
            assert client.until(b"\r\n0\r\n\r\n").count(b"data: ") == 21
        assert router.process.wait(20) == 0
        assert workers
        assert not router.workers()
        assert not list(router._here.path.rglob("serve-*"))
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", router.port)).close()


async def hang_in_a_stream(_: Backend, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event(0)))
    await asyncio.sleep(60)


async def hang_before_the_answer(_: Backend, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_drain_that_is_cut_short_tells_clients(signals: int) -> None:
    """A stream ends in the error event of every interruption, an answer that has not begun is an
    error, that of a request which waited in the queue too; each is in the access log."""
    models = {
        "stream": model([]),
        "slow": model([]),
    }
    with backends(2) as made:
        made[0].do(hang_in_a_stream)
        made[1].do(hang_before_the_answer)
        for name, backend in zip(models, made, strict=True):
            models[name] = model([backend])
            models[name]["endpoints"][0]["max_inflight"] = 1
        config = {
            "models": models,
            "limits": {"drain_s": 1 if signals == 1 else 60, "queue_timeout_s": 60},
            "telemetry": {"access_log": True},
        }
        with running_router(config) as router, ExitStack() as stack:
            streaming, asked, waiting = [stack.enter_context(raw(router.port)) for _ in range(3)]
            streaming.send(chat("stream", stream=True))
            streaming.until(b"t0")
            asked.send(chat("slow"))
            until(lambda: made[1].busy)
            waiting.send(chat("slow"))
            until(
                lambda: (
                    b'requests_queued{model="slow"} 1' in ask(router.admin, "GET", "/metrics")[1]
                )
            )
            for _ in range(signals):
                router.process.terminate()
                until(lambda: "stopping" in router.log)
            rest = streaming.rest()
            assert b"stream_interrupted" in rest
            assert rest.endswith(b"\r\n0\r\n\r\n")
            assert b"[DONE]" not in rest
            for client in (asked, waiting):
                status, fields, body = client.json()
                assert (status, fields["connection"]) == (503, "close")
                assert json.loads(body)["error"]["code"] == "stopping"
                assert client.rest() == b""
            assert router.process.wait(20) == 0
            assert len(made[1].asked) == 1, "what waited was not sent any more"
            cut = [
                json.loads(line) for line in router.log.splitlines() if "drain_cut_short" in line
            ]
            [line] = cut
            assert line["requests"] == 3
            assert ("limits.drain_s" in line["reason"]) is (signals == 1)
            assert router.log.count("second signal") == signals - 1
            accesses = [json.loads(line) for line in router.log.splitlines() if '"request"' in line]
            chats = [line["status"] for line in accesses if line["method"] == "POST"]
            assert sorted(chats) == [200, 503, 503]
        assert not router.workers()


def test_a_third_signal_ends_it_at_once() -> None:
    with backends(1) as made, running_router({"models": {"one": model(made)}}) as router:
        made[0].do(hang_in_a_stream)
        with raw(router.port) as client:
            client.send(chat("one", stream=True))
            client.head()
            [worker] = router.workers()
            os.kill(worker, signal.SIGSTOP)  # it hears nothing
            for signals in range(3):
                assert router.process.poll() is None, "it waits for the stream"
                router.process.terminate()
                until(lambda: "stopping" in router.log)
                if signals == 1:
                    until(lambda: "second signal" in router.log)
            assert router.process.wait(10) == 0
        assert not router.workers()


def test_what_is_beyond_an_endpoint_waits_and_beyond_the_queue_is_refused() -> None:
    free = threading.Event()

    async def wait(_: Backend, writer: asyncio.StreamWriter) -> None:
        while not free.is_set():
            await asyncio.sleep(0.01)
        writer.write(answer())

    with backends(1) as made:
        endpoints = [{"url": made[0].url, "max_inflight": 2}]
        config = {
            "models": {"one": {"endpoints": endpoints, "hedge": OFF}},
            "limits": {"queue": 3, "queue_timeout_s": 60},
        }
        with running_router(config) as router:
            made[0].do(wait)
            results: list[tuple[int, bytes]] = []

            def ask() -> None:
                results.append(router.post(b'{"model":"one"}'))

            threads = []
            for _ in range(5):
                threads.append(threading.Thread(target=ask))
                threads[-1].start()
            until(lambda: len(made[0].asked) == 2)
            with ExitStack() as stack:
                for _ in range(8):
                    client = stack.enter_context(raw(router.port))
                    client.send(chat("one"))
                    if not client.silent(0.5):
                        break
                status, fields, body = client.json()
                assert status == 429
                assert int(fields["retry-after"]) >= 1
                assert b"wait" in body
                assert len(made[0].asked) == 2, "no more than it may have"
                free.set()
                until(lambda: len(made[0].asked) == 2 + 3)
            for thread in threads:
                thread.join(20)
            assert {status for status, _ in results} <= {200, 429}


def test_a_hedge_answers_for_an_endpoint_that_hangs() -> None:
    hang = threading.Event()

    async def maybe(_: Backend, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        if hang.is_set():
            await asyncio.sleep(30)
        writer.write(answer())

    with backends(2) as made:
        config = {"models": {"m": model(made, hedge={"budget": 1.0})}}
        with running_router(config) as router:
            for backend in made:
                backend.do(maybe)
            for _ in range(200):
                assert router.post(b'{"model":"m"}')[0] == 200
            hang.set()
            made[1].say(answer())
            began = time.monotonic()
            while not any(asked.left for asked in made[0].asked):
                assert router.post(b'{"model":"m"}')[0] == 200
                assert time.monotonic() - began < 20, "the hanging endpoint was never given up"


def test_every_line_of_a_running_router_is_json() -> None:
    with backends(1) as made, running_router({"models": {"one": model(made)}}) as router:
        rewrite(router, {"models": {"one": model(made, policy="round_robin")}})
        until(lambda: "round_robin" in router.log)
        assert router.stop() == 0
        lines = [json.loads(line) for line in router.log.splitlines()]
    said = [line["what"] for line in lines if line["event"] == "control"]
    assert {line["process"] for line in lines if line["event"] == "control"} == {"control"}
    assert said[0].startswith("serving 1 model on 1 endpoint at http://")
    assert said[-1] == "stopping: requests on their way are finished first"


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_logs_that_cannot_be_written_end_and_delay_nothing(reader: str) -> None:
    """Standard error is a pipe that nobody reads, because its reader has gone or is stuck."""
    read_end, write_end = os.pipe()
    if reader == "gone":
        os.close(read_end)
    else:
        os.set_blocking(write_end, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(write_end, b"x" * 4096):
                pass
        os.set_blocking(write_end, True)
    with backends(1) as made, place() as here:
        listen = f"127.0.0.1:{free_port()}"
        config = {"version": 1, "listen": listen, "models": {"one": model(made)}}
        config["telemetry"] = {"access_log": True}
        (here.path / "serve.yaml").write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "trainmesh", "serve", "--config", "serve.yaml"],
            env={**here.environment, "XDG_STATE_HOME": str(here.path / "state")},
            cwd=here.path,
            stderr=write_end,
        )

        def answers() -> bool:
            assert process.poll() is None, f"it ended with {process.returncode}"
            try:
                return ask(listen, "POST", "/v1/chat/completions", b'{"model":"one"}')[0] == 200
            except OSError:
                return False

        until(answers)
        os.kill(process.pid, signal.SIGHUP)  # a line more
        assert answers()
        if reader == "gone":
            [info] = here.path.glob("trainmesh/serve-*/router.json")
            url: str = until(lambda: json.loads(info.read_text())["admin"])  # told last
            admin = url.removeprefix("http://")
            lost = rb'log_dropped_total\{worker="0"\} [1-9]'
            until(lambda: re.search(lost, ask(admin, "GET", "/metrics")[1]), what="it is counted")
        process.terminate()
        assert process.wait(20) == 0
        assert here.files() == []
    os.close(write_end)
    if reader == "asleep":
        os.close(read_end)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 2\nmodels: {}\n", "version"),
        ("version: 1\nlisten: 0.0.0.0:0\nmodels: {m: {endpoints: [{url: 'http://a:1'}]}}\n", "tls"),
        ("version: 1\nmodels: {m: {endpoints: [{url: 'http://a:1'}], policy: best}}\n", "hybrid"),
        (": : :", "serve.yaml"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    argv = [sys.executable, "-m", "trainmesh", "serve", "--config", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        argv = [sys.executable, "-m", "trainmesh", "serve", "--config", "/dev/stdin"]
        text = f"version: 1\nlisten: 127.0.0.1:{port}\nmodels: {{m: {{endpoints: [{{url: 'http://127.0.0.1:1'}}]}}}}\n"
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr


def test_an_ordinary_shells_limit_of_open_files_is_raised() -> None:
    """500 requests at once once got 502s from a router started with the usual 1 024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with backends(1) as made, running_router({"models": {"one": model(made)}}) as router:
            pids = [router.process.pid, *router.workers()]
            assert len(pids) > 1
            limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]
            assert limits == [(hard, hard)] * len(pids)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_limit_of_open_files_is_said(tmp_path: Path) -> None:
    config = {"version": 1, "models": {"one": {"endpoints": [{"url": "http://127.0.0.1:1"}]}}}
    file = tmp_path / "serve.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends at once
        file.write_text(json.dumps({**config, "listen": f"127.0.0.1:{taken.getsockname()[1]}"}))
        command = [sys.executable, "-m", "trainmesh", "serve", "--config", str(file)]
        done = subprocess.run(
            ["sh", "-c", 'ulimit -n 2048; exec "$@"', "sh", *command],
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
            capture_output=True,
            timeout=60,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "only 2048 files may be open: a worker takes 1000 clients; raise ulimit" in done.stderr


def test_who_is_let_in_is_answered_however_many_come() -> None:
    """With few files clients were let in until none was left for endpoints: nobody was answered,
    and the endpoints were taken for dead."""
    with backends(1) as made:
        made[0].say(answer())
        config = {"workers": 1, "models": {"one": model(made)}}
        with running_router(config, num_files=256) as router:
            clients = [socket.create_connection(("127.0.0.1", router.port), 20) for _ in range(300)]
            told = []
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(chat("one"))
            for client in clients:
                with client, contextlib.suppress(OSError):
                    told.append(client.recv(12))
    assert {one for one in told if one} == {b"HTTP/1.1 200"}
    assert sum(map(bool, told)) >= 100


@pytest.mark.root
def test_a_run_directory_that_is_full_ends_nothing(tmp_path: Path) -> None:
    """Workers go on as they were told; what is new comes when there is room again."""
    need_root()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path]).returncode:
        pytest.skip("no file system can be mounted here")
    filler = tmp_path / "filler"
    try:
        with backends(2) as made:
            models = {"one": model(made[:1])}
            with running_router(
                {"models": models}, env={"XDG_RUNTIME_DIR": str(tmp_path)}
            ) as router:
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
                until(lambda: "go on as they are" in router.log)
                assert "snapshot.json" in router.log, "which file can't be written is not said"
                router.rewrite({"models": {"one": model(made[1:])}})
                until(lambda: "not used yet" in router.log, what=router.log)
                assert [router.post(b'{"model":"one"}')[0] for _ in range(20)] == [200] * 20
                assert not made[1].asked
                filler.unlink()
                until(lambda: router.post(b'{"model":"one"}')[0] == 200 and made[1].asked)
                until(lambda: "told what is new again" in router.log)
                assert router.stop() == 0
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
