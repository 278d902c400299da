"""Addresses that are wrong, and servers that are not etcd: one clear line each."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainmesh.errors import ConfigError, StoreError
from trainmesh.store.address import parse_url, security_from_environment
from trainmesh.store.claim import AWAY, ENV_CLAIM, new_claim
from trainmesh.store.etcd import check, connect
from trainmesh.store.rpc import prefix_end
from trainmesh.wire import encode

ROOT = Path(__file__).parent.parent


@pytest.fixture
def impostor(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of something that is not etcd: what it sends to who connects, if anything."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ends: list[socket.socket] = []

    def answer() -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            open_ends.append(end)
            end.sendall(request.param)

    thread = threading.Thread(target=answer)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for end in open_ends:
        end.close()


def failure(url: str) -> str:
    """What check says; one line, whatever answers."""
    store = connect(url, timeout_s=1.0)
    try:
        with pytest.raises(StoreError) as caught:
            check(store, otherwise=", or think")
    finally:
        store.close()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("; start etcd 3.4 or newer there, or think")
    return message


class TestWrongServers:
    def test_closed_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert f"127.0.0.1:{port}: nothing listens on this port" in failure(
            f"http://127.0.0.1:{port}"
        )

    @pytest.mark.parametrize("impostor", [b"hello, this is no etcd\r\n"], indirect=True)
    def test_garbage(self, impostor: str) -> None:
        assert "is not etcd v3" in failure(impostor)

    @pytest.mark.parametrize("impostor", [b""], indirect=True)
    def test_silence(self, impostor: str) -> None:
        assert "no answer within 1 s" in failure(impostor)

    def test_http_server(self) -> None:
        class Quiet(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            assert "is not etcd v3" in failure(f"http://127.0.0.1:{server.server_port}")
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be http://host:port"),
        ("127.0.0.1:2379", "must be http://host:port"),
        ("ftp://127.0.0.1:2379", "must be http://host:port"),
        ("http://", "must be http://host:port"),
        ("http://:2379", "must be http://host:port"),
        ("http://127.0.0.1:0", "must be http://host:port"),
        ("http://127.0.0.1:99999", "out of range"),
        ("http://127.0.0.1:http", "cast to integer"),
        ("http://[::1:2379", "Invalid IPv6"),
        ("http://127.0.0.1:2379/v3", "nothing after the port"),
        ("http://127.0.0.1:2379?a=b", "nothing after the port"),
        ("http://root:secret@127.0.0.1:2379", "must not hold a user or password"),
        ("https://etcd.example:2379", "TRAINMESH_ETCD_CA"),
    ],
)
def test_a_bad_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        connect(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", ("127.0.0.1", 1, False)),
        ("http://localhost", ("localhost", 2379, False)),
        ("http://[::1]:2379/", ("::1", 2379, False)),
        ("https://etcd.example:2379", ("etcd.example", 2379, True)),
    ],
)
def test_a_good_url_is_taken_apart(url: str, expected: tuple[str, int, bool]) -> None:
    assert parse_url(url) == expected


def test_a_password_goes_to_another_machine_in_plain_text_only_on_demand() -> None:
    with pytest.raises(ConfigError, match="--insecure-etcd"):
        connect("http://etcd.example:2379", user="root", password="secret")
    connect("http://etcd.example:2379").close()


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    for security in ({"user": "root"}, {"password": "x"}, {"cert": "a"}, {"key": "a"}):
        with pytest.raises(ConfigError, match="only work together"):
            connect("http://127.0.0.1:1", **security)  # type: ignore[arg-type]
    missing = str(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=re.escape(f"{missing}: No such file")):
        connect("https://127.0.0.1:1", ca_cert=missing)


def test_security_comes_from_the_environment() -> None:
    security = security_from_environment({"TRAINMESH_ETCD_CA": "/ca", "TRAINMESH_ETCD_USER": ""})
    assert security == {
        "ca_cert": "/ca",
        "cert": None,
        "key": None,
        "user": None,
        "password": None,
    }


def claim(url: str) -> tuple[int, str]:
    """Exit code and words of the command that claims a job's name before its launch."""
    mine = encode(new_claim("addresses", None)).decode()
    done = subprocess.run(
        [sys.executable, "-m", "trainmesh.store.claiming", url],
        cwd=ROOT,
        env={**os.environ, ENV_CLAIM: mine},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.etcd
def test_a_claim_as_a_command(etcd_url: str) -> None:
    assert claim(etcd_url) == (0, "")


@pytest.mark.parametrize(("url", "expected"), [("http://127.0.0.1:1", AWAY), ("nonsense", 2)])
def test_a_claim_fails_with_one_line(url: str, expected: int) -> None:
    code, words = claim(url)
    assert code == expected
    assert re.fullmatch(r".+\n", words)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0")],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end
