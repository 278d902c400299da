"""The messages of a measured probe: the request, who listens where, and the results.

A command writes one ``ProbeRequest`` under the job's ``probe/`` keys and rewrites it for each
turn; the agents obey it and write ``PairMeasure``s. Keys below the job's prefix:

``probe/owner/...``       the election that lets one command at a time probe a job
``probe/request``         ProbeRequest; gone when the command has ended
``probe/ready/<node>``    ProbeListener of the node's agent
``probe/answers/<src>``   ProbeAnswer of the pair that begins at this node

The newest PairMeasure of each pair with a bandwidth stays as long as src's agent, at
``measured_key``. Pairs are many, so it is not among the keys that a job's processes list and
watch. Every key is bound to the lease of who wrote it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.types import LinkCost, Name, Natural, Positive, Text

__all__ = [
    "MAX_NODES",
    "MAX_PAIR_BYTES",
    "MAX_PAIR_S",
    "CostFit",
    "PairMeasure",
    "ProbeAnswer",
    "ProbeListener",
    "ProbePair",
    "ProbeRequest",
    "RoundTrips",
    "is_ceiling",
    "measured_key",
]

MAX_PAIR_BYTES = 2**34
"""Most that one pair may exchange, both directions together."""
MAX_PAIR_S = 600.0
"""Most that one pair may take."""
MAX_NODES = 256
"""All pairs of them are 32 640 measures, about 40 MB in etcd."""
MAX_ECHOES = 1_000
"""Round trips of one pair: medians don't get better."""
CEILING_SHARE = 0.5
"""Above this share of the rate at which an agent sends to itself (both ends share one process and
one cache), its CPU counts as the limit."""

Finite = Annotated[float, Meta(ge=0, le=1e18)]


class ProbePair(Struct, frozen=True, kw_only=True):
    """``src``'s agent connects to ``dst``'s, which listens at ``host`` and ``port``."""

    src: Name
    dst: Name
    host: Name
    port: Annotated[int, Meta(gt=0, lt=65_536)]
    ceiling_bytes_per_s: Finite = 0.0
    """The highest rate that the slower of the two agents can send at; 0 if that is not known."""


class ProbeRequest(Struct, frozen=True, kw_only=True):
    """What the agents are to do now. Turn 0 has no pairs: everybody gets ready.

    ``nbytes``, ``seconds`` and ``echoes`` bound one pair: payload of both directions together,
    its time, and its round trips. ``open_s`` bounds how long an agent listens for it all.
    """

    id: Name
    token: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Shared secret of the agents; proven by a keyed hash, never sent, never logged."""
    backend: Name
    turn: Natural = 0
    pairs: Annotated[tuple[ProbePair, ...], Meta(max_length=MAX_NODES // 2)] = ()
    nbytes: Annotated[int, Meta(ge=0, le=MAX_PAIR_BYTES)] = 0
    seconds: Annotated[float, Meta(ge=0, le=MAX_PAIR_S)] = 0.0
    echoes: Annotated[int, Meta(ge=0, le=MAX_ECHOES)] = 0
    open_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0

    def __repr__(self) -> str:
        """Without the token, so that no log or traceback can hold it."""
        return f"ProbeRequest(id={self.id!r}, turn={self.turn}, pairs={self.pairs})"


class ProbeListener(Struct, frozen=True, kw_only=True):
    """An agent is ready for request ``id``; with a ``problem`` it can't be."""

    id: Name
    machine: Name
    """Identity of the host (boot id)."""
    interface: Name = ""
    host: Name = ""
    port: Annotated[int, Meta(ge=0, lt=65_536)] = 0
    ceiling_bytes_per_s: Finite = 0.0
    """The rate of one stream from this agent to itself: no link can be measured as faster."""
    problem: Text = ""


class RoundTrips(Struct, frozen=True, kw_only=True):
    """Times of the smallest message there and back, through both agents."""

    sent: Natural
    received: Natural
    min_s: Finite = 0.0
    median_s: Finite = 0.0
    mean_s: Finite = 0.0
    p99_s: Finite = 0.0
    max_s: Finite = 0.0


class CostFit(Struct, frozen=True, kw_only=True):
    """Alpha and beta of one direction, each with its 95 % confidence interval."""

    cost: LinkCost
    alpha_low_s: Finite
    alpha_high_s: Finite
    bandwidth_low_bytes_per_s: Finite
    bandwidth_high_bytes_per_s: Finite
    num_samples: Positive
    residual: Finite
    """Median of |measured - fitted| / measured over the message sizes."""


class PairMeasure(Struct, frozen=True, kw_only=True):
    """What one pair measured; ``forward`` is from ``src`` to ``dst``. A fit is None where there
    were too few samples; ``problem`` says what went wrong, if anything."""

    src: Name
    dst: Name
    unix_s: float
    round_trips: RoundTrips
    forward: CostFit | None = None
    backward: CostFit | None = None
    nbytes: Natural = 0
    """Payload exchanged, both directions together."""
    ceiling_bytes_per_s: Finite = 0.0
    """What the agents themselves can move; 0 if that is not known."""
    problem: Text = ""


def is_ceiling(fit: CostFit, measure: PairMeasure) -> bool:
    """Whether the agents rather than the link limited ``fit``: the link may be faster."""
    return fit.cost.bandwidth_bytes_per_s > CEILING_SHARE * measure.ceiling_bytes_per_s > 0


def measured_key(job: str, src: str, dst: str) -> str:
    """Where the newest measure of a pair is kept."""
    return f"/trainmesh/measured/{job}/{src}/{dst}"


class ProbeAnswer(Struct, frozen=True, kw_only=True):
    """A pair's measure, and which turn of which request it answers."""

    id: Name
    turn: Natural
    measure: PairMeasure
