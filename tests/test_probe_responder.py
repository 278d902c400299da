"""The listener of a probe against peers that break the rules, on real sockets."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from trainmesh.errors import ConfigError
from trainmesh.probe.channel import Channel, ProbeOp, ask, prove
from trainmesh.probe.pair import measure_pair
from trainmesh.probe.responder import MAX_CONNECTIONS, Responder
from trainmesh.probe_types import PairMeasure, ProbePair, ProbeRequest

pytestmark = pytest.mark.starts

HOST = "127.0.0.1"
TOKEN = "ab" * 32
REQUEST = ProbeRequest(
    id="one", token=TOKEN, backend="gloo", nbytes=16_000_000, seconds=5.0, echoes=10
)


@pytest.fixture
def responder() -> Iterator[Responder]:
    opened = Responder(HOST, REQUEST)
    try:
        yield opened
    finally:
        opened.close()


def connect(port: int, *, seconds: float = 10.0) -> Channel:
    connection = socket.create_connection((HOST, port), timeout=seconds)
    return Channel(connection, time.monotonic() + seconds, threading.Event())


def measure(port: int, request: ProbeRequest = REQUEST) -> PairMeasure:
    pair = ProbePair(src="a", dst="b", host=HOST, port=port)
    return measure_pair(request, pair, HOST, threading.Event())


def closed(channel: Channel) -> bool:
    """Whether the listener ends the connection; bounded by the channel's deadline."""
    try:
        channel.receive(1)
    except ConnectionError:
        return True
    return False


def test_a_pair_is_measured_within_its_bytes(responder: Responder) -> None:
    found = measure(responder.port)
    assert found.problem == ""
    assert 0 < found.nbytes <= REQUEST.nbytes
    assert found.round_trips.received == 10
    assert found.forward is not None
    assert found.backward is not None
    assert 0 <= found.forward.alpha_low_s <= found.forward.cost.alpha_s
    assert found.forward.cost.bandwidth_bytes_per_s > 1e6


def test_a_pair_with_too_little_time_says_so(responder: Responder) -> None:
    found = measure(responder.port, replace(REQUEST, seconds=1e-6, echoes=1))
    assert found.problem.startswith("a ")
    assert found.forward is found.backward is None


def test_a_wrong_token_gets_nothing(responder: Responder) -> None:
    found = measure(responder.port, replace(REQUEST, token="cd" * 32))
    assert found.problem.startswith("a could not measure b: ")
    assert found.round_trips.received == 0
    assert measure(responder.port).problem == ""


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 400], ids=["eof", "http", "noise"]
)
def test_garbage_is_cut_off_and_the_next_one_served(responder: Responder, sent: bytes) -> None:
    with socket.create_connection((HOST, responder.port), timeout=10) as peer:
        try:
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass
        except OSError:
            pass  # cut off while we were still sending
    assert measure(responder.port).problem == ""


def test_a_peer_that_says_nothing_is_cut_off(responder: Responder) -> None:
    channel = connect(responder.port)
    channel.receive(36)
    assert closed(channel)
    channel.close()


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!BQ", ProbeOp.PULL, REQUEST.nbytes + 1),
        struct.pack("!BQ", ProbeOp.PUSH, 2**64 - 1),
        struct.pack("!BQ", ProbeOp.ECHO, 2**40),
        struct.pack("!BQ", 77, 0),
    ],
    ids=["pull", "push", "echo", "unknown"],
)
def test_too_much_or_unknown_is_refused(responder: Responder, frame: bytes) -> None:
    channel = connect(responder.port)
    prove(channel, TOKEN)
    channel.send(frame)
    assert closed(channel)
    channel.close()


def test_the_bytes_of_one_connection_add_up(responder: Responder) -> None:
    channel = connect(responder.port)
    prove(channel, TOKEN)
    ask(channel, ProbeOp.PUSH, REQUEST.nbytes // 2)
    ask(channel, ProbeOp.PULL, REQUEST.nbytes - REQUEST.nbytes // 2)
    with pytest.raises(OSError, match="closed|reset|pipe"):
        ask(channel, ProbeOp.PUSH, 1)
    channel.close()


def test_the_seconds_of_one_connection_are_bounded() -> None:
    short = Responder(HOST, replace(REQUEST, seconds=0.1))
    try:
        channel = connect(short.port)
        prove(channel, TOKEN)
        assert closed(channel)
        channel.close()
    finally:
        short.close()


def test_no_more_than_a_few_connections_at_a_time(responder: Responder) -> None:
    held = [connect(responder.port) for _ in range(MAX_CONNECTIONS)]
    for channel in held:
        prove(channel, TOKEN)
    one_more = connect(responder.port)
    assert closed(one_more)
    for channel in [*held, one_more]:
        channel.close()


def test_nothing_listens_after_close_and_its_connections_are_gone() -> None:
    opened = Responder(HOST, REQUEST)
    channel = connect(opened.port)
    prove(channel, TOKEN)
    opened.close()
    assert closed(channel)
    channel.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("probe-")]
    found = measure(opened.port)
    assert found.problem == "a could not measure b: Connection refused"


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(ConfigError, match="can't listen on 192.0.2.1: "):
        Responder("192.0.2.1", REQUEST)


def test_something_else_on_the_port_is_said() -> None:
    with socket.create_server((HOST, 0)) as other:

        def answer() -> None:
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"220 mail.example ESMTP, at your service\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = measure(other.getsockname()[1])
        thread.join()
    assert found.problem == "a could not measure b: something else than an agent listens there"


def test_a_listener_that_says_nothing_costs_no_more_than_the_time_of_the_pair() -> None:
    with socket.create_server((HOST, 0)) as silent:
        found = measure(silent.getsockname()[1], replace(REQUEST, seconds=0.3))
    assert found.problem == "a could not measure b: its time was up"


def test_names_are_not_looked_up() -> None:
    pair = ProbePair(src="a", dst="b", host="face", port=1)
    found = measure_pair(REQUEST, pair, HOST, threading.Event())
    assert "'face' does not appear to be an IPv4 or IPv6 address" in found.problem


def test_a_request_does_not_show_its_token() -> None:
    assert TOKEN not in repr(REQUEST)
    assert TOKEN not in f"{[REQUEST]}"
