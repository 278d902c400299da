"""The types of serve.yaml. ``trainmesh.serving.loading.load`` reads and checks it.

Everything but ``models`` has a default. Durations are seconds (``_s``), sizes bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

__all__ = [
    "Config",
    "CorsConfig",
    "EjectConfig",
    "EndpointConfig",
    "HedgeConfig",
    "JwtConfig",
    "LedgerConfig",
    "LimitsConfig",
    "ModelConfig",
    "RetryConfig",
    "RouterConfig",
    "Runtime",
    "ShadowConfig",
    "TelemetryConfig",
    "TenantConfig",
    "TlsConfig",
    "TopologyConfig",
    "TrafficClass",
    "UpstreamTls",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*\Z"
MODEL_NAME = r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?\Z"
Name = Annotated[str, Meta(min_length=1, max_length=120, pattern=NAME)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256, pattern=MODEL_NAME)]
"""A model's name as endpoints have them: a path (/data/Qwen3), or words in any language."""
OptionalName = Annotated[str, Meta(max_length=120)]
NO_NUL = r"^[^\x00]*\Z"
Path = Annotated[str, Meta(max_length=4096, pattern=NO_NUL)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(gt=0, le=1_000_000)]
Rate = Annotated[float, Meta(gt=0, le=1e12)]


class Runtime(StrEnum):
    """The server behind an endpoint, which decides its paths and how it is asked for its state."""

    OPENAI = "openai"
    VLLM = "vllm"
    SGLANG = "sglang"
    TGI = "tgi"
    LLAMACPP = "llamacpp"
    TORCHSERVE = "torchserve"
    TRITON = "triton"
    KSERVE = "kserve"
    OVMS = "ovms"


class TrafficClass(StrEnum):
    """Which side yields if inference shares a link with a training job."""

    FIRST = "first"
    EQUAL = "equal"
    YIELD = "yield"


class _Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class UpstreamTls(_Strict, frozen=True):
    """TLS towards an endpoint (its url begins with https). ``san``: the name its certificate
    must have, where that is not the url's host; a ``spiffe://`` name is looked up as a URI SAN."""

    ca: Path = ""
    cert: Path = ""
    key: Path = ""
    san: Annotated[str, Meta(max_length=512)] = ""


class EndpointConfig(_Strict, frozen=True):
    """One server. ``name`` is host:port unless given; ``node`` its place in the link graph.
    ``api_key_env`` names the variable with the key that the endpoint wants."""

    url: Annotated[str, Meta(max_length=2048)]
    name: OptionalName = ""
    node: OptionalName = ""
    zone: OptionalName = ""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    runtime: Runtime = Runtime.OPENAI
    revision: OptionalName = ""
    served_model: OptionalName = ""
    """The name the endpoint knows the model by; the same as ours unless given."""
    standby: bool = False
    max_inflight: Count = 512
    metrics: Annotated[str, Meta(max_length=2048)] = ""
    """URL of its own /metrics page, where that is not on the port its runtime usually has it."""
    gpus: Annotated[tuple[Annotated[int, Meta(ge=0, le=1023)], ...], Meta(max_length=1024)] = ()
    """The GPUs of the router's own host that it runs on: their health lowers its share."""
    api_key_env: OptionalName = ""
    tls: UpstreamTls = UpstreamTls()


class HedgeConfig(_Strict, frozen=True):
    """A second attempt beside a slow one, before its first byte: when the first has taken longer
    than ``quantile`` of its kind, while hedges are at most ``budget`` of all tokens and the pool is
    below ``max_load`` of what it can hold."""

    enabled: bool = True
    quantile: Annotated[float, Meta(gt=0.5, lt=1)] = 0.95
    min_delay_s: Seconds = 0.02
    budget: Share = 0.05
    max_load: Share = 0.7


class RetryConfig(_Strict, frozen=True):
    """Attempts after a failed one, at other endpoints, before the first byte."""

    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    budget: Share = 0.2
    statuses: tuple[Annotated[int, Meta(ge=400, le=599)], ...] = (
        429, 500, 501, 502, 503, 504, 507, 508, 529,
    )  # fmt: skip


class EjectConfig(_Strict, frozen=True):
    """When an endpoint is taken out: ``failures`` hard errors in a row, or a TTFT above
    ``latency_ratio`` times the pool's median over ``samples`` requests. At most ``max_share`` of
    a pool is out at a time (those that refuse connections are in any case), for ``base_s`` at first
    and ``max_s`` at most; it comes back with a slow start of ``slow_start_s``."""

    failures: Count = 3
    latency_ratio: Annotated[float, Meta(gt=1, le=1000)] = 3.0
    samples: Count = 5
    max_share: Share = 0.5
    base_s: Seconds = 1.0
    max_s: Seconds = 30.0
    slow_start_s: Seconds = 5.0


class ShadowConfig(_Strict, frozen=True):
    """Another policy beside the chosen one. With ``share`` 0, it only records what it would have
    done; above 0, it decides that share of requests (an A/B test). Both are counted."""

    policy: Name
    share: Share = 0.0


class ModelConfig(_Strict, frozen=True):
    """The endpoints of one model and how to choose among them. ``policy`` is a built-in name or
    one that a plug-in registers under the entry point ``trainmesh.scorers``."""

    endpoints: Annotated[tuple[EndpointConfig, ...], Meta(min_length=1, max_length=4096)]
    policy: Name = "hybrid"
    aliases: tuple[ModelName, ...] = ()
    shadow: ShadowConfig | None = None
    hedge: HedgeConfig = HedgeConfig()
    retry: RetryConfig = RetryConfig()
    eject: EjectConfig = EjectConfig()
    session_header: OptionalName = "x-session-id"
    keepalive_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """A stream that is silent for that long gets a comment, which clients skip, so that no proxy on
    the way considers the connection dead. 0: none, and streams are the endpoint's to the byte."""
    affinity_budget_s: Seconds = 0.1
    """How much later the first byte may come for a session or prefix to stay where it is."""


class TenantConfig(_Strict, frozen=True):
    """One tenant, and what it may request. ``keys`` are ``env:NAME``, ``file:PATH`` (one key a
    line) or ``sha256:HEX``; never the key itself. ``subjects``: JWT subjects, or names in a
    client's certificate (``spiffe://...`` or DNS). ``rule``: a CEL expression over ``request``,
    ``tenant`` and ``endpoint`` that an endpoint must meet."""

    keys: tuple[Annotated[str, Meta(max_length=4096)], ...] = ()
    subjects: tuple[Annotated[str, Meta(max_length=512)], ...] = ()
    roles: tuple[Name, ...] = ()
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    """0 is served first."""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    tokens_per_s: Rate | None = None
    requests_per_s: Rate | None = None
    burst_s: Seconds = 10.0
    max_inflight: Count | None = None
    models: tuple[ModelName, ...] = ()
    zones: tuple[Name, ...] = ()
    """Zones its requests may be answered in; empty: all."""
    revisions: dict[ModelName, Name] = {}
    """model -> the revision it is pinned to."""
    rule: Annotated[str, Meta(max_length=4096)] = ""


class JwtConfig(_Strict, frozen=True):
    """Bearer tokens from an OpenID Connect provider."""

    issuer: Annotated[str, Meta(max_length=2048)]
    audience: Annotated[str, Meta(min_length=1, max_length=512)]
    jwks: Annotated[str, Meta(max_length=2048)] = ""
    """URL or ``file:PATH``; found through the issuer's discovery document unless given."""
    tenant_claim: Name = "sub"
    roles_claim: Name = "roles"


class TlsConfig(_Strict, frozen=True):
    """TLS of the listener. ``client_ca``: clients must show a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path = ""


ANY: Final = "*"


class CorsConfig(_Strict, frozen=True):
    """Web pages of other origins that may send requests. ``*``: all of them; in ``headers``:
    whichever a page asks to send."""

    origins: Annotated[tuple[Annotated[str, Meta(max_length=512)], ...], Meta(min_length=1)]
    methods: tuple[Annotated[str, Meta(max_length=32)], ...] = ("GET", "POST")
    headers: tuple[Annotated[str, Meta(max_length=256)], ...] = (ANY,)
    expose_headers: tuple[Annotated[str, Meta(max_length=256)], ...] = (
        "x-request-id", "x-trainmesh-request-id", "x-trainmesh-endpoint", "retry-after",
    )  # fmt: skip
    credentials: bool = False
    """Cookies and client certificates go along; then no origin may be ``*``."""
    max_age_s: Annotated[int, Meta(ge=0, le=86_400)] = 600
    """How long a browser may keep the answer to a preflight."""


class HalfClosed(StrEnum):
    """How a request is treated whose client has shut down its sending side: it is answered, as by
    HAProxy and Envoy, or its client counts as gone, as with nginx."""

    ANSWER = "answer"
    CANCEL = "cancel"


class LimitsConfig(_Strict, frozen=True):
    """What one client or all of them may use."""

    header_bytes: Count = 65_536
    body_bytes: Annotated[int, Meta(gt=0, le=1 << 30)] = 32 << 20
    buffered_bytes: Annotated[int, Meta(gt=0, le=1 << 40)] = 1 << 30
    """Bodies of all requests of a worker together."""
    connections: Count = 20_000
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 120.0
    connect_timeout_s: Seconds = 2.0
    first_byte_timeout_s: Seconds = 600.0
    stream_timeout_s: Seconds = 3600.0
    """A whole answer."""
    silence_timeout_s: Seconds = 600.0
    """Between two bytes of an answer: models think for minutes in the middle of a stream."""
    queue: Count = 1024
    queue_timeout_s: Seconds = 10.0
    drain_s: Seconds = 30.0
    half_closed: HalfClosed = HalfClosed.ANSWER
    decision_s: Seconds = 0.002
    """A scorer that takes longer is replaced by the least outstanding requests for a while."""


class LedgerConfig(_Strict, frozen=True):
    """Where decisions are kept: ``segments`` files of ``segment_bytes`` for each worker."""

    enabled: bool = True
    dir: Path = ""
    segment_bytes: Annotated[int, Meta(ge=65_536, le=1 << 40)] = 64 << 20
    segments: Annotated[int, Meta(ge=2, le=10_000)] = 8


class TelemetryConfig(_Strict, frozen=True):
    """How endpoints are watched, and what is exported. ``otlp``: URL of an OTLP/HTTP collector;
    ``trace_share`` of requests without a sampled parent are traced."""

    probe_interval_s: Seconds = 1.0
    scrape_interval_s: Seconds = 1.0
    scrape: bool = True
    otlp: Annotated[str, Meta(max_length=2048)] = ""
    trace_share: Share = 0.0
    access_log: bool = False


class TopologyConfig(_Strict, frozen=True):
    """The link graph that endpoints are nodes of: a topology file, or the one that the
    coordinator of ``job`` publishes in the store. ``node``: where this router is."""

    file: Path = ""
    job: OptionalName = ""
    node: OptionalName = ""
    rtt_limit_s: Seconds = 0.08
    traffic_class: TrafficClass = TrafficClass.EQUAL


class RouterConfig(_Strict, frozen=True):
    """Several routers that share their load, demand and admins' orders through etcd."""

    etcd: Annotated[str, Meta(max_length=2048)] = ""
    group: Name = "default"
    name: OptionalName = ""


class Config(_Strict, frozen=True):
    """serve.yaml. A listener beyond loopback needs ``tls`` or ``insecure: true``, and tenants."""

    version: Literal[1]
    models: Annotated[dict[ModelName, ModelConfig], Meta(min_length=1, max_length=1024)]
    listen: Annotated[str, Meta(max_length=300)] = "127.0.0.1:8080"
    admin: Annotated[str, Meta(max_length=300)] = "127.0.0.1:0"
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    insecure: bool = False
    tls: TlsConfig | None = None
    cors: CorsConfig | None = None
    tenants: dict[Name, TenantConfig] = {}
    jwt: JwtConfig | None = None
    admin_keys: tuple[Annotated[str, Meta(max_length=4096)], ...] = ()
    """Keys of admins, written like a tenant's. Tenants with the role ``admin`` are admins too; if
    there are none, the run directory holds a token for this user."""
    limits: LimitsConfig = LimitsConfig()
    ledger: LedgerConfig = LedgerConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    topology: TopologyConfig = TopologyConfig()
    routers: RouterConfig = RouterConfig()
    audit: Path = ""
    """File that admin actions and refusals are appended to; in the run directory unless given."""
