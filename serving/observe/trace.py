"""Distributed traces: W3C trace context in and out, spans to an OTLP/HTTP collector.

Only sampled requests cost anything: those whose caller says so in ``traceparent``, and
``telemetry.trace_share`` of those that come without one. A request that isn't sampled has its
headers forwarded as they came. Spans are sent by a thread of the OpenTelemetry SDK; a collector
that is slow or gone loses spans and nothing else.

Formats: W3C Trace Context, https://www.w3.org/TR/trace-context/; names of attributes:
OpenTelemetry's semantic conventions for HTTP and generative AI.
"""

from __future__ import annotations

import random
import re
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from trainmesh.errors import ConfigError
from trainmesh.extras import install_line
from trainmesh.serving.config.types import TelemetryConfig

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = [
    "RequestTrace",
    "TraceParent",
    "Tracer",
    "check_sdk",
    "format_traceparent",
    "parse_traceparent",
]

SDK = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
"""Packages of the extra ``otlp``; looked for, not imported, where nothing is traced."""

_FIELDS = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.S)
_MAX_HEADER_BYTES = 512
_LENGTH = 55
_NOT_SAMPLED = b"02468ace"
"""The last digit of flags whose lowest bit is not set."""
_QUEUE_SPANS = 4096
_BATCH_SPANS = 512
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 3.0

Value = str | int | float | bool


class TraceParent(NamedTuple):
    """The caller's place in a trace."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(header: bytes) -> TraceParent | None:
    """The ``traceparent`` header; None if it isn't one, which is then as if there were none.

    Later versions than 00 may have more fields (section 3.2.4 of the recommendation).
    """
    match = _FIELDS.fullmatch(header[:_MAX_HEADER_BYTES])
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    parent = TraceParent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))
    return parent if parent.trace_id and parent.span_id else None


def format_traceparent(parent: TraceParent) -> bytes:
    """The header of version 00."""
    return b"00-%032x-%016x-%02x" % parent


def check_sdk() -> None:
    """Whether traces can be sent.

    Raises:
        ConfigError: the OpenTelemetry SDK isn't installed.
    """
    try:
        missing = not all(map(find_spec, SDK))
    except ModuleNotFoundError:  # what a part of it is in
        missing = True
    if missing:
        raise ConfigError(f"telemetry.otlp needs the OpenTelemetry SDK: {install_line('otlp')}")


class Tracer:
    """Makes the traces of one worker. ``close`` sends what is left and ends its thread.

    Raises:
        ConfigError: the OpenTelemetry SDK isn't installed.
    """

    def __init__(
        self, config: TelemetryConfig, service: str, rng: random.Random | None = None
    ) -> None:
        check_sdk()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._share = config.trace_share
        self._random = (rng or random.Random()).random  # noqa: S311  (which requests are traced)
        self._exporter = OTLPSpanExporter(
            endpoint=_traces_url(config.otlp), timeout=_EXPORT_TIMEOUT_S
        )
        # We have sampled before we come here.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": "trainmesh", "service.instance.id": service}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter, max_queue_size=_QUEUE_SPANS, max_export_batch_size=_BATCH_SPANS
            )
        )
        self._tracer = self._provider.get_tracer("trainmesh.serving")

    def begin(self, traceparent: bytes | None, name: str) -> RequestTrace | None:
        """The trace of a request that has just come; None if it isn't sampled.

        Args:
            traceparent: the header, if there was one.
            name: the method and path, such as ``POST /v1/chat/completions``.
        """
        if traceparent and len(traceparent) == _LENGTH and traceparent[-1] in _NOT_SAMPLED:
            return None  # as most of those that have the header
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is None:
            sampled = self._share > 0 and self._random() < self._share
        else:
            sampled = parent.sampled
        return RequestTrace(self, parent, name) if sampled else None

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def start_span(self, name: str, parent: Span | TraceParent | None, *, outgoing: bool) -> Span:
        """A span under ``parent``; ``outgoing``: towards an endpoint rather than from a client."""
        from opentelemetry import trace

        if isinstance(parent, TraceParent):
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            remote = trace.SpanContext(parent.trace_id, parent.span_id, True, flags)
            parent = trace.NonRecordingSpan(remote)
        context = trace.set_span_in_context(parent) if parent is not None else None
        kind = trace.SpanKind.CLIENT if outgoing else trace.SpanKind.SERVER
        return self._tracer.start_span(name, context=context, kind=kind)


class RequestTrace:
    """The spans of one sampled request: one for itself, one for each attempt."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Tracer, parent: TraceParent | None, name: str) -> None:
        self._tracer = tracer
        self._span = tracer.start_span(name, parent, outgoing=False)

    def set(self, **attributes: Value) -> None:
        """Attributes of the request; a double underscore stands for a dot."""
        _set(self._span, attributes)

    def attempt(self, endpoint: str, kind: str) -> AttemptTrace:
        """A span for an attempt that begins now."""
        span = self._tracer.start_span(f"{kind} {endpoint}", self._span, outgoing=True)
        return AttemptTrace(span)

    def end(self, status: int, error: str = "") -> None:
        """The request has been answered with ``status``; ``error``: what went wrong."""
        _end(self._span, error or (str(status) if status >= 500 else ""), status)


class AttemptTrace:
    """The span of one attempt."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> bytes:
        """The header to send to the endpoint."""
        context = self._span.get_span_context()
        return format_traceparent(TraceParent(context.trace_id, context.span_id, True))

    def set(self, **attributes: Value) -> None:
        """Attributes of the attempt; a double underscore stands for a dot."""
        _set(self._span, attributes)

    def first_byte(self) -> None:
        """The answer's first byte has come."""
        self._span.add_event("gen_ai.first_token")

    def end(self, outcome: str, status: int = 0, *, failed: bool = False) -> None:
        """It has ended; ``outcome`` as in the ledger."""
        self._span.set_attribute("trainmesh.outcome", outcome)
        _end(self._span, outcome if failed else "", status)


def _set(span: Span, attributes: dict[str, Value]) -> None:
    for name, value in attributes.items():
        span.set_attribute(name.replace("__", "."), value)


def _end(span: Span, error: str, status: int) -> None:
    from opentelemetry.trace import Status, StatusCode

    if status:
        span.set_attribute("http.response.status_code", status)
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def _traces_url(url: str) -> str:
    """``url``, with the path that OTLP/HTTP has by default where it has none."""
    base = url.rstrip("/")
    return base if "/" in base.partition("://")[2] else f"{base}/v1/traces"
