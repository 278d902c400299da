"""Builds the workers' snapshot from everything that was observed; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from trainmesh.serving.cluster.cordons import Cordon, CordonState
from trainmesh.serving.cluster.graph import RoundTrip
from trainmesh.serving.cluster.peers import Load
from trainmesh.serving.cluster.verdicts import SubjectKind, Verdict
from trainmesh.serving.config.types import Config, EndpointConfig, ModelConfig
from trainmesh.serving.decide.types import EndpointSignal
from trainmesh.serving.signals.gpu import Derate
from trainmesh.serving.signals.listing import Card, Listing, listing_of
from trainmesh.serving.signals.probe_state import ProbeState
from trainmesh.serving.signals.scrape import EngineLoad

__all__ = ["RTT_BACK", "Observations", "Snapshot", "assemble"]

RTT_BACK = 0.9
"""An endpoint that was beyond the limit is taken back below this part of it, so that one at the
limit does not come and go."""
CLIENT_ONLY = "a client only"


class Snapshot(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``signals``: model -> its endpoints, in the order of the config. ``demand``: model -> load
    that other routers could not place, decayed (see ``peers``). ``derates``: why endpoints count
    as slower, by their URL. ``routers``: the others that are alive. ``store``: how etcd is doing,
    empty where none is used."""

    version: int
    taken_at_s: float
    signals: dict[str, tuple[EndpointSignal, ...]]
    listings: dict[str, Listing] = {}
    """By model: what its endpoints say of it, and their adapters."""
    demand: dict[str, float] = {}
    derates: dict[str, str] = {}
    routers: tuple[str, ...] = ()
    store: str = ""


@dataclass(frozen=True)
class Observations:
    """All that is known now. Keys are endpoints' URLs unless said otherwise; what is missing is
    unknown, and never a reason against an endpoint."""

    probe_states: Mapping[str, ProbeState] = field(default_factory=dict)
    reports: Mapping[str, EngineLoad] = field(default_factory=dict)
    derates: Mapping[str, Derate] = field(default_factory=dict)
    estimates_s: Mapping[str, float] = field(default_factory=dict)
    """Round trips from Vivaldi coordinates."""
    revisions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What the endpoint says it serves; empty where its runtime does not say."""
    listed: Mapping[str, Mapping[str, Card]] = field(default_factory=dict)
    """The models that it lists."""
    ways: Mapping[str, RoundTrip] = field(default_factory=dict)
    """By node: the way from the router to it."""
    verdicts: Sequence[Verdict] = ()
    """Those in force."""
    cordons: Mapping[str, Cordon] = field(default_factory=dict)
    """By endpoint name."""
    loads: Mapping[str, Load] = field(default_factory=dict)
    """What other routers have in flight."""
    demand: Mapping[str, float] = field(default_factory=dict)
    """By model."""
    routers: tuple[str, ...] = ()
    store: str = ""


def assemble(
    config: Config, seen: Observations, now_s: float, *, previous: Snapshot | None = None
) -> Snapshot:
    """The next snapshot after ``previous``."""
    before = {
        (model, signal.name): signal
        for model, signals in (previous.signals.items() if previous else ())
        for signal in signals
    }
    return Snapshot(
        version=previous.version + 1 if previous else 1,
        taken_at_s=now_s,
        signals={
            name: _signals(name, model, config, seen, before)
            for name, model in config.models.items()
        },
        listings={
            name: listing
            for name, model in config.models.items()
            if (listing := listing_of(name, model, seen.listed)) != Listing()
        },
        demand=dict(seen.demand),
        derates={url: derate.reason for url, derate in seen.derates.items() if derate.reason},
        routers=seen.routers,
        store=seen.store,
    )


def _signals(
    name: str,
    model: ModelConfig,
    config: Config,
    seen: Observations,
    before: Mapping[tuple[str, str], EndpointSignal],
) -> tuple[EndpointSignal, ...]:
    """Health checks alone never leave a model without endpoints: if all of them fail, what fails
    may be here, and if not, a request that is tried finds out at once."""
    found = [
        _signal(endpoint, config, seen, before.get((name, endpoint.name)))
        for endpoint in model.endpoints
    ]
    probe_states = [
        seen.probe_states.get(endpoint.url, ProbeState()) for endpoint in model.endpoints
    ]
    pairs = tuple(zip(found, probe_states, strict=True))
    some_up = any(not signal.excluded and not probe_state.down for signal, probe_state in pairs)
    return tuple(
        replace(
            signal,
            excluded=signal.excluded or (probe_state.down if some_up else ""),
            unready=probe_state.unready,
        )
        for signal, probe_state in pairs
    )


def _signal(
    endpoint: EndpointConfig, config: Config, seen: Observations, before: EndpointSignal | None
) -> EndpointSignal:
    """All but its health checks."""
    url = endpoint.url
    probe_state = seen.probe_states.get(url, ProbeState())
    report = seen.reports.get(url, EngineLoad())
    load = seen.loads.get(url, Load())
    way = seen.ways.get(endpoint.node) if endpoint.node else None
    rtt_s = _rtt_s(probe_state, way, seen.estimates_s.get(url, 0.0))
    limit_s = config.topology.rtt_limit_s
    was_beyond = before is not None and CLIENT_ONLY in before.excluded
    too_far = _too_far(rtt_s, limit_s * RTT_BACK if was_beyond else limit_s, limit_s)
    excluded = _excluded(endpoint, seen, way, too_far)
    return EndpointSignal(
        name=endpoint.name,
        excluded=excluded,
        public=_public(endpoint, seen, excluded),
        rtt_s=rtt_s,
        rtt_at_s=probe_state.rtt_at_s,
        bandwidth_bytes_per_s=way.bandwidth_bytes_per_s if way else 0.0,
        derate=seen.derates[url].value if url in seen.derates else 1.0,
        queued=report.queued,
        running=report.running,
        kv_use=report.kv_use,
        reported_at_s=report.at_s,
        others_inflight=load.inflight,
        others_tokens=load.tokens,
    )


def _rtt_s(probe_state: ProbeState, way: RoundTrip | None, estimate_s: float) -> float:
    """Measured before declared before estimated; 0 where nothing is known."""
    if probe_state.rtts_s:
        return probe_state.rtt_s
    return way.rtt_s if way is not None else estimate_s


def _excluded(
    endpoint: EndpointConfig,
    seen: Observations,
    way: RoundTrip | None,
    too_far: str,
) -> str:
    """Why it gets no requests: people's words first, then what was measured."""
    return (
        _cordoned(seen.cordons.get(endpoint.name))
        or _quarantined(endpoint, seen.verdicts)
        or (way.blocked if way is not None else "")
        or _other_revision(endpoint, seen.revisions.get(endpoint.url, ()))
        or too_far
    )


def _public(endpoint: EndpointConfig, seen: Observations, excluded: str) -> str:
    """The same without who said so and why, which is for operators."""
    if words := _cordoned(seen.cordons.get(endpoint.name)):
        return words.partition(" by ")[0]
    return "in quarantine" if "in quarantine" in excluded else ""


def _cordoned(cordon: Cordon | None) -> str:
    if cordon is None or cordon.state is CordonState.OPEN:
        return ""
    word = "draining" if cordon.state is CordonState.DRAIN else "cordoned"
    return f"{word} by {cordon.by}"


def _quarantined(endpoint: EndpointConfig, verdicts: Sequence[Verdict]) -> str:
    for verdict in verdicts:
        if verdict.kind is SubjectKind.ENDPOINT and verdict.subject == endpoint.name:
            return f"endpoint {verdict.words}"
        if verdict.kind is SubjectKind.NODE and verdict.subject == endpoint.node:
            return f"node {endpoint.node} {verdict.words}"
    return ""


def _other_revision(endpoint: EndpointConfig, served: Sequence[str]) -> str:
    if not endpoint.revision or not served or endpoint.revision in served:
        return ""
    return f"serves revision {', '.join(served)}, not {endpoint.revision}"


def _too_far(rtt_s: float, limit_s: float, shown_s: float) -> str:
    """Without the round trip itself, so that a reason stays the same from probe to probe."""
    if rtt_s <= limit_s:
        return ""
    return f"its round trip is beyond the limit of {1e3 * shown_s:g} ms: {CLIENT_ONLY}"
