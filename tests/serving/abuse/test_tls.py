"""TLS of the running router: nobody without the right certificate, nothing in plain text."""

import contextlib
import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.serving.abuse.proxies import Backend, backend
from tests.serving.abuse.requests import BODY
from tests.serving.identity.certs import CLIENT, DAY, NOW, SERVER, Authority
from tests.serving.running import RunningRouter, running_router, until
from tests.serving.tap import LoopThread

PATH = "/v1/chat/completions"
HOST = "localhost"
TRUSTED, OTHER = "spiffe://cluster/trainer", "spiffe://cluster/other"


@dataclass
class Secured:
    router: RunningRouter
    authority: Authority
    behind: Backend
    folder: Path
    config: dict[str, Any]

    def context(self, *pair: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if pair:
            context.load_cert_chain(*pair)
        return context

    def ask(self, context: ssl.SSLContext) -> tuple[int, bytes]:
        connection = HTTPSConnection(HOST, self.router.port, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("POST", PATH, BODY)
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture(scope="module")
def secured(taps: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    cert, key = authority.issue("server", HOST)
    tls = {"cert": cert, "key": key, "client_ca": str(authority.path)}
    with backend(taps) as behind:
        model = {"endpoints": [{"url": f"http://127.0.0.1:{behind.port}"}]}
        config = {
            "models": {"m": model},
            "tls": tls,
            "tenants": {"lab": {"subjects": [TRUSTED]}},
            "limits": {"header_timeout_s": 1},
        }
        with running_router(config) as router:
            yield Secured(router, authority, behind, folder, config)
            assert "Traceback" not in router.log


def test_the_right_certificate_is_let_in(secured: Secured) -> None:
    pair = secured.authority.issue("good", TRUSTED, use=CLIENT)
    assert secured.ask(secured.context(*pair))[0] == 200


def test_a_stranger_with_a_good_certificate_may_not_ask(secured: Secured) -> None:
    pair = secured.authority.issue("stranger", OTHER, use=CLIENT)
    status, answer = secured.ask(secured.context(*pair))
    assert status in (401, 403)
    assert json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("expired", {"end": NOW - DAY / 2}),
        ("early", {"begin": NOW + DAY / 2}),
        ("a server's", {"use": SERVER}),
        ("another authority's", {"authority": "other"}),
        ("none", {}),
    ],
)
def test_a_wrong_certificate_gets_no_answer(
    secured: Secured, name: str, wrong: dict[str, Any]
) -> None:
    context = secured.context()
    if wrong:
        other = wrong.pop("authority", "")
        signer = Authority(secured.folder, other) if other else secured.authority
        context.load_cert_chain(*signer.issue(name, TRUSTED, **{"use": CLIENT, **wrong}))
    before = len(secured.behind.received)
    with pytest.raises(OSError, match="(?i)closed|alert|reset|pipe|EOF"):
        secured.ask(context)
    assert not any(b"POST" in data for data in secured.behind.received[before:])


def test_plain_text_gets_no_answer(secured: Secured) -> None:
    before = len(secured.behind.received)
    with socket.create_connection(("127.0.0.1", secured.router.port), 10) as client:
        client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        said = b""
        with contextlib.suppress(OSError):
            while piece := client.recv(4096):
                said += piece
    assert b"HTTP" not in said
    assert not any(b"POST" in data for data in secured.behind.received[before:])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(secured: Secured) -> None:
    context = secured.context(*secured.authority.issue("old", TRUSTED, use=CLIENT))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match="(?i)version|protocol|reset|EOF"):
        secured.ask(context)


def test_a_handshake_that_does_not_go_on_is_cut_off(secured: Secured) -> None:
    with socket.create_connection(("127.0.0.1", secured.router.port), 15) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert client.recv(1) == b""


def test_a_renewed_certificate_is_shown_without_a_restart(secured: Secured) -> None:
    context = secured.context(*secured.authority.issue("renewing", TRUSTED, use=CLIENT))

    def shown() -> int:
        with (
            socket.create_connection(("127.0.0.1", secured.router.port), 10) as raw,
            context.wrap_socket(raw, server_hostname=HOST) as client,
        ):
            certificate = client.getpeercert(binary_form=True)
        assert certificate
        return x509.load_der_x509_certificate(certificate).serial_number

    old = shown()
    for path in secured.authority.issue("next", HOST):
        shutil.move(path, path.replace("next", "server"))
    until(lambda: shown() != old, timeout_s=60, what="the old certificate is still shown")
    assert secured.ask(context)[0] == 200


def test_a_subject_that_was_taken_out_is_not_let_in_any_more(secured: Secured) -> None:
    context = secured.context(*secured.authority.issue("revoked", TRUSTED, use=CLIENT))
    assert secured.ask(context)[0] == 200
    secured.router.rewrite({**secured.config, "tenants": {"lab": {"subjects": [OTHER]}}})
    until(lambda: secured.ask(context)[0] in (401, 403), what="it is still let in")
    secured.router.rewrite(secured.config)
    until(lambda: secured.ask(context)[0] == 200, what="it is not let in again")


ENDPOINTS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"end": NOW - DAY / 2}, "expired"),
    "name": ({"names": ["elsewhere.example"]}, "another name"),
    "authority": ({"signed_by": "other"}, "another authority"),
    "use": ({"use": CLIENT}, "not for this use"),
    "plain": ({}, ""),
    "right": ({}, ""),
}


@dataclass
class Endpoints:
    """A router with a model for each sort of endpoint."""

    router: RunningRouter
    behind: dict[str, Backend]

    def ask(self, model: str) -> tuple[int, str]:
        status, answer = self.router.post(json.dumps({"model": model}).encode())
        return status, answer.decode()


@pytest.fixture(scope="module")
def endpoints(taps: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    folder = tmp_path_factory.mktemp("endpoints")
    authority = Authority(folder)
    trust = {"ca": str(authority.path)}
    with contextlib.ExitStack() as stack:
        behind, models = {}, {}
        for name, (issue, _) in ENDPOINTS.items():
            tls = None if name == "plain" else server_side(authority, folder, name, **issue)
            behind[name] = stack.enter_context(backend(taps, tls))
            url = f"https://{HOST}:{behind[name].port}"
            models[name] = {"endpoints": [{"url": url, "tls": trust}]}
        config = {"models": models, "limits": {"connect_timeout_s": 1}}
        yield Endpoints(stack.enter_context(running_router(config)), behind)


def server_side(authority: Authority, folder: Path, file: str, **issue: Any) -> ssl.SSLContext:
    other = issue.pop("signed_by", "")
    signer = Authority(folder, other) if other else authority
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*signer.issue(file, *issue.pop("names", [HOST]), **issue))
    return tls


@pytest.mark.parametrize("name", [name for name, (_, cause) in ENDPOINTS.items() if cause])
def test_an_endpoint_that_is_not_who_it_should_be_gets_nothing(
    endpoints: Endpoints, name: str
) -> None:
    status, answer = endpoints.ask(name)
    assert status in (502, 503)
    assert ENDPOINTS[name][1] in answer
    assert endpoints.behind[name].received == []


def test_an_endpoint_that_speaks_plain_text_gets_nothing(endpoints: Endpoints) -> None:
    status, _ = endpoints.ask("plain")
    assert status in (502, 503, 504)
    for data in endpoints.behind["plain"].received:
        assert b"POST" not in data
        assert b"GET" not in data


def test_the_right_endpoint_is_asked(endpoints: Endpoints) -> None:
    assert endpoints.ask("right")[0] == 200
