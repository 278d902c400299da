"""Requests that can be read in two ways never get through, and never as two.

The same bytes go to nginx and HAProxy: we refuse at least what either of them refuses.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.serving.abuse.framing import Ambiguous, Incomplete, Request, read_requests
from tests.serving.abuse.proxies import backend, haproxy, need_proxy, nginx
from tests.serving.abuse.requests import BODY, CASES, Case, mark
from tests.serving.abuse.sender import Reply, send_all
from tests.serving.running import running_router
from tests.serving.tap import LoopThread

OF_ONE_CONNECTION = {
    b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings", b"expect",
    b"proxy-connection",
}  # fmt: skip
PEERS = {"nginx": nginx, "haproxy": haproxy}


@dataclass(frozen=True)
class Outcome:
    """What a proxy made of all cases."""

    replies: dict[str, Reply]
    received: list[bytes]
    """Over each connection to the backend."""

    def of(self, case: Case) -> list[bytes]:
        return [data for data in self.received if mark(case.name) in data]

    def refused(self, case: Case) -> bool:
        return not any(status < 400 for status in self.replies[case.name].statuses)


@contextmanager
def ours(folder: Path, backend_port: int) -> Iterator[int]:
    endpoint = {"url": f"http://127.0.0.1:{backend_port}"}
    model = {"endpoints": [endpoint], "hedge": {"enabled": False}}
    limits = {"header_timeout_s": 1, "body_timeout_s": 1}
    with running_router({"models": {"m": model}, "limits": limits}) as router:
        yield router.port
        assert "Traceback" not in router.log


def outcome(
    taps: LoopThread, folder: Path, proxy: Callable[[Path, int], AbstractContextManager[int]]
) -> Outcome:
    with backend(taps) as behind, proxy(folder, behind.port) as port:
        replies = asyncio.run(send_all(port, CASES))
        return Outcome(replies, [bytes(each) for each in behind.received])


@pytest.fixture(scope="module")
def routed(taps: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome(taps, tmp_path_factory.mktemp("ours"), ours)


@pytest.fixture(scope="module", params=sorted(PEERS))
def peer(
    request: pytest.FixtureRequest, taps: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    name: str = request.param
    need_proxy(name)
    return outcome(taps, tmp_path_factory.mktemp(name), PEERS[name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_plain_requests_reach_the_backend(case: Case, routed: Outcome) -> None:
    reply, sent = routed.replies[case.name], routed.of(case)
    requests = [request for data in sent for request in read_requests(data)]
    assert len(requests) == case.reaches, sent
    assert reply.statuses.count(200) == case.reaches, reply
    if case.must:
        assert reply.statuses == (200,) * case.reaches
    if case.reaches == 0:
        assert routed.refused(case), reply
        assert reply.statuses or reply.closed, "it is still waiting"
    for request in requests:
        check(request, case)


def check(request: Request, case: Case) -> None:
    names = [name for name, _ in request.fields]
    assert not OF_ONE_CONNECTION & set(names), names
    assert request.body == BODY[: len(request.body)]
    assert request.values(b"content-length") in ([b"%d" % len(request.body)], [])
    assert request.values(b"content-type") in ([b"application/json"], [])
    assert mark(case.name) in request.target


def test_nothing_else_reaches_the_backend(routed: Outcome) -> None:
    """Without the mark of a case there are only the router's own probes."""
    unmarked = [data for data in routed.received if b"?case=" not in data]
    for data in unmarked:
        assert {request.method for request in read_requests(data)} <= {b"GET"}


def test_we_refuse_whatever_another_proxy_refuses(routed: Outcome, peer: Outcome) -> None:
    refused = [case for case in CASES if peer.refused(case)]
    own = sum(routed.refused(case) for case in CASES)
    print(f"{len(CASES)} requests: {own} refused here, {len(refused)} by the peer")
    assert len(refused) > 80, "the other proxy does not work as it should"
    assert sum(not peer.refused(case) for case in CASES if case.must) > 5
    laxer = [case.name for case in refused if not routed.refused(case) and not case.why]
    assert laxer == []


PIECES = [b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b"0", b";", b"\t", b"\xff"]


def mutated(random: Random, number: int) -> Case:
    """A case with some bytes changed."""
    raw = bytearray(random.choice([case.raw for case in CASES if case.reaches]))
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(raw))
        raw[place : place + random.randint(0, 2)] = random.choice(PIECES)
    return Case(f"mutated {number}", bytes(raw), reaches=2)


def test_mutated_requests_are_plain_ones_or_none(taps: LoopThread, tmp_path: Path) -> None:
    random = Random(5)
    cases = [mutated(random, number) for number in range(300)]
    with backend(taps) as behind, ours(tmp_path, behind.port) as port:
        asyncio.run(send_all(port, cases))
        received = [bytes(each) for each in behind.received]
    requests = [request for data in received for request in read_requests(data)]
    chats = [request for request in requests if request.method == b"POST"]
    assert len(chats) > 20
    for request in chats:
        assert not OF_ONE_CONNECTION & {name for name, _ in request.fields}


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
    ],
)
def test_the_reader_that_judges_takes_nothing_ambiguous(data: bytes) -> None:
    with pytest.raises((Ambiguous, Incomplete)):
        read_requests(data)
