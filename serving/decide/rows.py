"""The parts of a decision that are stored and sent: msgspec Structs, which are never compiled."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

__all__ = ["NEVER_S", "Context", "EndpointSignal", "Row"]

NEVER_S: Final = 1e9
"""An age that stands for "never": JSON has no infinity."""


class EndpointSignal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the control process knows of an endpoint. ``*_at_s`` are monotonic seconds of this
    host, 0 where nothing was measured. ``excluded``: why it gets no requests, empty if it may;
    ``public``: what clients hear of it, where that is less. ``unready``: why nobody should count
    on it, which is no reason against it: no health check has gone well yet, or they fail now."""

    name: str
    excluded: str = ""
    public: str = ""
    unready: str = ""
    rtt_s: float = 0.0
    rtt_at_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    """0: unknown, taken as unlimited."""
    derate: float = 1.0
    """(0, 1]: the part of its nominal rate that its hardware delivers."""
    queued: int = 0
    running: int = 0
    kv_use: float = 0.0
    """[0, 1]"""
    reported_at_s: float = 0.0
    others_inflight: int = 0
    """Requests in flight from other routers."""
    others_tokens: int = 0


class Row(Struct, frozen=True, array_like=True):
    """One candidate as a scorer saw it: this is what the ledger keeps and ``replay`` scores
    again, so a scorer may read nothing else of a candidate."""

    index: int
    key: int
    """A hash of the endpoint's name, the same in every router and after a reload."""
    weight: float
    rtt_s: float
    bandwidth_bytes_per_s: float
    derate: float
    inflight: int
    """Requests in flight from all workers and routers."""
    inflight_tokens: int
    waiting_tokens: int
    """Prompt tokens that were sent and have no answer yet."""
    base_s: float
    """Estimated TTFT of an empty prompt on an idle endpoint at its nominal rate, without the
    network; for answers of the request's kind (streams or not)."""
    s_per_token: float
    """Estimated seconds per token of work ahead (``estimate.work_tokens``), its own included."""
    cached_tokens: int
    """Tokens of this prompt that the endpoint probably has in its prefix cache."""
    queued: int
    running: int
    kv_use: float
    report_age_s: float
    """``NEVER_S`` where the endpoint reports nothing"""


class Context(Struct, frozen=True, array_like=True):
    """What a scorer may know beside the request and the candidates; kept in the ledger too."""

    affinity_budget_s: float = 0.1
    """How much later the first byte may come for a session or prefix to stay where it is."""
    rif_limit: float = NEVER_S
    """The 0.84 quantile of what endpoints had in flight lately (Prequal, NSDI'24)."""
    ttft_s: float = 0.05
    """The TTFT of an ordinary request lately."""
    tokens: float = 256.0
    """Tokens of an ordinary request lately, prompt and answer."""
    prefix_pays: bool = False
    """Whether endpoints that hold a prompt's prefix were seen to answer sooner."""
