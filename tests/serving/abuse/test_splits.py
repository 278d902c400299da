"""However the network cuts the bytes, requests and answers are the same (RFC 9112, 2.2)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.abuse.requests import CASES, HOST, OFFERS, PLAIN, Case
from tests.serving.abuse.wire import Caller, Front, Recorder, answered, asked, cuts, every_cut
from trainmesh.serving.proxy.client.connection import ClientConnection
from trainmesh.serving.proxy.client.request_reader import MAX_PIPELINED
from trainmesh.serving.proxy.reading.call import Call

if TYPE_CHECKING:
    from trainmesh.serving.proxy.exchange.exchange import Exchange
    from trainmesh.serving.proxy.router import Router
    from trainmesh.serving.proxy.upstream.connection import Upstream

ONE = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
MINE, OTHER = (cast("Exchange", object()) for _ in range(2))
EVENT = b'data: {"choices":[]}\n\n'
OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
CHUNKED = SSE + b"Transfer-Encoding: chunked\r\n\r\n"
DOCUMENT = b'{"choices":[{"message":{"content":"hello there"}}]}'

WHOLE = {
    "document": OK
    + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(DOCUMENT), DOCUMENT),
    "events of a length": SSE + b"Content-Length: %d\r\n\r\n%s" % (2 * len(EVENT), 2 * EVENT),
    "length": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "long reason": b"HTTP/1.1 404 Not Quite Found\r\nContent-Length: 2\r\n\r\n{}",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n{}",
    "hints": b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 103 Early\r\n\r\n" + CHUNKED + b"0\r\n\r\n",
    "chunks": CHUNKED + CHUNK * 3 + b"0\r\n\r\n",
    "no chunks": CHUNKED + b"0\r\n\r\n",
    "extensions": CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
    "trailers": CHUNKED + CHUNK + b"0\r\nX-Usage: 5\r\nX-B: c\r\n\r\n",
    "chunks of line ends": CHUNKED + b"2\r\n\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n",
    "connection": OK + b"Connection: X-A, close\r\nX-A: b\r\nContent-Length: 1\r\n\r\n.",
}
UNTIL_THE_END = {
    "1.1": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello world",
    "1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "nothing": b"HTTP/1.1 200 OK\r\n\r\n",
}


def body_of(caller: Caller) -> bytes:
    """What a client decodes."""
    written = caller.client.written
    if not caller.chunked:
        return written
    body: list[bytes] = []

    class Reader:
        complete = False

        def on_body(self, data: bytes) -> None:
            body.append(data)

        def on_message_complete(self) -> None:
            self.complete = True

    reader = Reader()
    parser = httptools.HttpResponseParser(reader)
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + written)
    assert reader.complete or "done" not in caller.events, written
    return b"".join(body)


@pytest.mark.parametrize("decode", [False, True], ids=["forwarded", "decoded"])
@pytest.mark.parametrize("name", [*WHOLE, *UNTIL_THE_END])
def test_an_answer_is_the_same_wherever_it_is_cut(name: str, decode: bool) -> None:
    ends = name in UNTIL_THE_END
    data = UNTIL_THE_END[name] if ends else WHOLE[name]
    whole = answered([data], ends=ends, decode=decode)
    assert whole.events[0] == "done"
    assert len(whole.heads) == 1
    for pieces in every_cut(data):
        got = answered(pieces, ends=ends, decode=decode)
        assert (got.heads, got.events) == (whole.heads, whole.events), pieces
        assert body_of(got) == body_of(whole), pieces


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_is_forwarded_byte_for_byte(name: str) -> None:
    data = WHOLE[name]
    final = data.rindex(b"HTTP/1.")
    sent = data[data.index(b"\r\n\r\n", final) + 4 :]
    for pieces in every_cut(data):
        assert answered(pieces, ends=False).client.written == sent, pieces


@pytest.mark.parametrize("decode", [False, True], ids=["forwarded", "decoded"])
@pytest.mark.parametrize("name", [*WHOLE, *UNTIL_THE_END])
def test_a_decoded_answer_is_the_body(name: str, decode: bool) -> None:
    data = UNTIL_THE_END.get(name) or WHOLE[name]
    said: list[bytes] = []

    class Reader:
        def on_body(self, data: bytes) -> None:
            said.append(data)

    httptools.HttpResponseParser(Reader()).feed_data(data[data.rindex(b"HTTP/1.") :])
    got = answered([data], ends=name in UNTIL_THE_END, decode=decode)
    assert body_of(got) == b"".join(said)


@pytest.mark.parametrize("name", ["chunks", "extensions", "chunks of line ends"])
def test_a_stream_that_breaks_off_leaves_the_client_between_two_chunks(name: str) -> None:
    data = WHOLE[name]
    for length in range(len(CHUNKED) + 1, len(data) - 1):
        for pieces in ([data[:length]], [data[i : i + 1] for i in range(length)]):
            got = answered(pieces, ends=True)
            assert "done" not in got.events
            if got.heads:
                assert got.events == ["stream"]
                ended = got.client.written + b"0\r\n\r\n"
                whole = answered([CHUNKED + ended], ends=False)
                assert whole.events[0] == "done", ended


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", b"\0"])
@pytest.mark.parametrize("name", ["length", "empty", "chunks", "trailers", "no content"])
def test_what_comes_after_an_answer_never_reaches_the_client(name: str, extra: bytes) -> None:
    data = WHOLE[name]
    sent = data[data.index(b"\r\n\r\n") + 4 :]
    for pieces in every_cut(data + extra):
        written = answered(pieces, ends=True).client.written
        assert sent.startswith(written), pieces


LENGTH = b"Content-Length: 2\r\n"
BAD = {
    "both": LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": LENGTH + b"Content-Length: 3\r\n\r\n{}",
    "list": b"Content-Length: 2, 2\r\n\r\n{}",
    "minus": b"Content-Length: -2\r\n\r\n{}",
    "plus": b"Content-Length: +2\r\n\r\n{}",
    "huge": b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "line feed": b"X: a\nContent-Length: 2\r\n\r\n{}",
    "all line feeds": b"X: a\nContent-Length: 2\n\n{}",
    "carriage return": b"X: a\rContent-Length: 2\r\n\r\n{}",
    "NUL": b"X: a\0b\r\n" + LENGTH + b"\r\n{}",
    "blank before colon": b"Content-Length : 2\r\n\r\n{}",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "chunk size huge": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n",
    "chunk too long": b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
    "chunk line feed": b"Transfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
    "coding": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "switch": b"",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_lost_and_a_client_can_still_read_what_it_got(name: str) -> None:
    line = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" if name == "switch" else b""
    data = (line or b"HTTP/1.1 200 OK\r\n") + BAD[name]
    for pieces in every_cut(data):
        got = answered(pieces, ends=True)
        assert "done" not in got.events, pieces
        for _, _, head in got.heads:
            assert not {b"\0", b"\n", b"\r"} & set(head.replace(b"\r\n", b""))
        assert body_of(got) is not None


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_a_request_is_the_same_wherever_it_is_cut(case: Case) -> None:
    front, transport = asked([case.raw])
    assert len(front.calls) <= case.reaches
    assert len(front.calls) == case.reaches or not case.must
    for pieces in every_cut(case.raw):
        other, written = asked(pieces)
        assert other.calls == front.calls, pieces
        assert written.written == transport.written, pieces


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_an_offer_to_upgrade_changes_nothing(case: Case, offer: str) -> None:
    """Wherever the bytes are cut, and with whatever comes after it over the same connection."""
    offered = case.raw.replace(HOST, HOST + OFFERS[offer], 1)
    expected, written = asked([case.raw + ONE])
    assert not case.must or case.name == "HTTP 1.0" or expected.calls[-1][1] == b"/v1/models"
    for pieces in ([offered + ONE], *every_cut(offered + ONE)):
        front, transport = asked(pieces)
        assert [(call[1], call[3]) for call in front.calls] == [
            (call[1], call[3]) for call in expected.calls
        ], pieces
        assert front.refusals == expected.refusals, pieces
        assert transport.written == written.written, pieces
        assert front.buffered_bytes == 0


def test_an_answer_out_of_order_ends_the_connection_and_reaches_nobody() -> None:
    front, transport = Front(), Recorder()
    connection = ClientConnection(cast("Router", front))
    connection.connection_made(transport)
    connection._ready.append(_call_at(2))
    connection._next()
    assert transport.ended
    assert transport.written == b""
    assert front.calls == []


def test_an_answer_for_another_request_ends_the_connection_and_reaches_nobody() -> None:

    def begins(client: ClientConnection) -> None:
        assert client.begin_answer(OTHER, cast("Upstream", None)) is None

    wrong: list[Callable[[ClientConnection], None]] = [
        begins,
        lambda client: client.write(OTHER, b"HTTP/1.1 200 OK\r\n\r\n"),
        lambda client: client.end_answer(OTHER, close=False),
    ]
    for answers in wrong:
        transport = Recorder()
        connection = ClientConnection(cast("Router", Front()))
        connection.connection_made(transport)
        connection._turn.call = _call_at(1)
        connection.serve(MINE)
        answers(connection)
        assert transport.ended
        assert transport.written == b""


def _call_at(place: int) -> Call:
    call = Call()
    call.place = place
    return call


def test_a_request_too_many_leaves_nothing_behind() -> None:
    one = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde"
    front, _ = asked([one * (MAX_PIPELINED + 44)])
    assert front.refusals == [429]
    assert front.buffered_bytes == 0


def test_a_bad_request_is_as_bad_wherever_it_is_cut() -> None:
    for case in CASES:
        if len(case.raw) > 2000:
            continue
        front, transport = asked([case.raw])
        for place in range(1, len(case.raw), 7):
            other, written = asked(cuts(case.raw, place))
            assert other.calls == front.calls, (case.name, place)
            assert other.refusals == front.refusals, (case.name, place)
            assert written.ended == transport.ended, (case.name, place)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.data())
def test_many_cuts_at_once(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in CASES if len(case.raw) < 2000]))
    places = data.draw(st.lists(st.integers(1, len(case.raw) - 1), max_size=20))
    front, transport = asked([case.raw])
    other, written = asked(cuts(case.raw, *places))
    assert (other.calls, other.refusals) == (front.calls, front.refusals)
    assert written.ended == transport.ended


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.data())
def test_bytes_that_are_almost_a_request(data: st.DataObject) -> None:
    """Whatever comes, it is a request, a refusal or an unfinished one; never an exception."""
    case = data.draw(st.sampled_from([case for case in CASES if len(case.raw) < 2000]))
    raw = bytearray(case.raw)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(raw)))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    front, transport = asked(cuts(bytes(raw), data.draw(st.integers(0, len(raw)))))
    assert len(front.refusals) <= 1
    assert transport.ended or not front.refusals
    assert front.buffered_bytes == 0, "the connection has ended"


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.data())
def test_bytes_that_are_almost_an_answer(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([*WHOLE.values(), *UNTIL_THE_END.values()])))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(raw)))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    pieces = list(cuts(bytes(raw), data.draw(st.integers(0, len(raw)))))
    got = answered(pieces, ends=True)
    assert len([event for event in got.events if event != "free"]) <= 1
    body_of(got)
