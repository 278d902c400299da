"""Trace context by the W3C's rules; spans at a real collector; nothing unless sampled."""

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.observe.collector import Collector, collecting
from trainmesh.serving.config.types import TelemetryConfig
from trainmesh.serving.observe.trace import (
    TraceParent,
    Tracer,
    format_traceparent,
    parse_traceparent,
)

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def test_a_valid_header_is_read_and_written_back() -> None:
    parent = parse_traceparent(PARENT)
    assert parent == TraceParent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)
    assert format_traceparent(parent) == PARENT
    assert parse_traceparent(PARENT[:-2] + b"00") == parent._replace(sampled=False)
    assert parse_traceparent(b"cc" + PARENT[2:] + b"-more") == parent, "a later version"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00",
        PARENT[:-1],
        PARENT + b"0",
        PARENT + b"-more",
        PARENT.upper(),
        b"ff" + PARENT[2:],
        b" " + PARENT,
        PARENT + b"\n",
        PARENT.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32),
        PARENT.replace(b"b7ad6b7169203331", b"0" * 16),
        PARENT.replace(b"b7ad", b"g7ad"),
        b"cc" + PARENT[2:] + b"more",
    ],
)
def test_what_is_not_a_header_is_as_if_there_were_none(header: bytes) -> None:
    assert parse_traceparent(header) is None


@settings(derandomize=True)
@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_headers_come_back_as_they_were_made(trace: int, span: int, sampled: bool) -> None:
    parent = TraceParent(trace, span, sampled)
    assert parse_traceparent(format_traceparent(parent)) == parent


@settings(derandomize=True)
@given(st.binary(max_size=100))
def test_any_bytes_are_read_without_an_error(header: bytes) -> None:
    parse_traceparent(header)


def test_spans_of_a_request_and_its_attempts_reach_the_collector(collector: Collector) -> None:
    tracer = Tracer(TelemetryConfig(otlp=collector.url), "router/worker-0")
    request = tracer.begin(PARENT, "POST /v1/chat/completions")
    assert request is not None
    request.set(gen_ai__request__model="m", trainmesh__request_id="r1")
    first = request.attempt("h1:1", "first")
    first.end("connect", failed=True)
    retry = request.attempt("h2:1", "retry")
    sent = parse_traceparent(retry.traceparent)
    retry.first_byte()
    retry.end("ok", 200)
    request.end(200)
    tracer.close()

    assert set(collector.paths) == {"/v1/traces"}
    spans = collector.spans()
    root = spans["POST /v1/chat/completions"]
    assert root.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = {each.key: each.value for each in root.attributes}
    assert attributes["gen_ai.request.model"].string_value == "m"
    assert attributes["http.response.status_code"].int_value == 200
    failed, answered = spans["first h1:1"], spans["retry h2:1"]
    assert failed.parent_span_id == answered.parent_span_id == root.span_id
    assert {each.key: each.value.string_value for each in failed.attributes}["error.type"] == (
        "connect"
    )
    assert failed.status.code == 2
    assert answered.status.code == 0
    assert [event.name for event in answered.events] == ["gen_ai.first_token"]
    assert sent == TraceParent(
        int.from_bytes(root.trace_id), int.from_bytes(answered.span_id), sampled=True
    )


def test_only_what_is_sampled_is_traced(collector: Collector) -> None:
    config = TelemetryConfig(otlp=f"{collector.url}/custom/path", trace_share=0.25)
    tracer = Tracer(config, "w", random.Random(7))
    for flags in (b"00", b"02", b"0a", b"fe"):
        assert tracer.begin(PARENT[:-2] + flags, "unsampled") is None
    for flags in (b"01", b"03", b"0b", b"ff"):
        trace = tracer.begin(PARENT[:-2] + flags, f"sampled {flags!r}")
        assert trace is not None
        trace.end(200)
    traced = [tracer.begin(b"", f"own {i}") for i in range(400)]
    for trace in traced:
        if trace is not None:
            trace.end(503)
    tracer.close()
    kept = sum(trace is not None for trace in traced)
    assert 60 < kept < 140
    assert len(collector.spans()) == kept + 4
    assert set(collector.paths) == {"/custom/path"}
    nothing = Tracer(TelemetryConfig(otlp=collector.url), "w")
    assert nothing.begin(None, "no share") is None
    assert nothing.begin(b"nonsense", "no share") is None
    nothing.close()


def test_a_collector_that_hangs_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as never_accepts:
        url = f"http://127.0.0.1:{never_accepts.getsockname()[1]}"
        tracer = Tracer(TelemetryConfig(otlp=url, trace_share=1.0), "w")
        for index in range(6000):
            trace = tracer.begin(b"", f"r{index}")
            assert trace is not None
            trace.end(200)
        tracer.close()
    # Its thread may still be in the last request, which ends now that the socket is closed.
    deadline_s = time.monotonic() + 20
    while any(thread.name.startswith("Otel") for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
