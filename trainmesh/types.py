"""What travels between processes, in the field's words.

All types are frozen ``msgspec.Struct``s: immutable, typed, and checked when they are decoded
(see ``trainmesh.wire``). Durations are seconds (``_s``) or nanoseconds (``_ns``), sizes are
bytes. Clocks are ``time.monotonic_ns`` of the host that took them, never wall clock, except
where a name says ``unix``.

Words: a *rank* is a process of the job's default process group, one of ``world_size``;
*local_rank* and *node_rank* are torchrun's. A *bucket* is one DDP gradient bucket, or the
gradients that one FSDP2 parameter group reduces. A *plan*
says how one all-reduce is carried out. A *hint* tells a job which plan to run from which step.
*epoch* numbers hints: it only grows. A *world* is one start of the job's processes: its ranks,
which live and end together, and a number that they have drawn together. *algbw* is bytes / time;
*busbw* is algbw * 2(N-1)/N. *bound* is the least time any algorithm needs on the graph;
*efficiency* is bound / predicted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "AgentInfo",
    "Algorithm",
    "Asked",
    "BucketTiming",
    "Choice",
    "ClassFit",
    "CodecCost",
    "Collective",
    "Crossover",
    "Event",
    "Failure",
    "Hello",
    "Hint",
    "Hop",
    "JobStatus",
    "LinkCost",
    "LinkOrigin",
    "NodeReport",
    "Note",
    "Outcome",
    "PairTime",
    "Plan",
    "RankReport",
    "RankStatus",
    "RecordLine",
    "StepReport",
    "Tree",
]

MAX_RANKS = 65_536
"""Of a job: what makes a message from the wire too large to be true."""

MAX_INT = 2**63 - 1

NOT_SENT = frozenset(
    {
        "reason",
        "predicted_s",
        "busy_s",
        "bound_s",
        "bound_kind",
        "bound_cut",
        "bottleneck",
        "graph_version",
    }
)
"""Fields of a Plan or a Hint that say why, and change nothing of what ranks send. Every other one
counts where ranks compare their hints (``trainmesh.wire.hint_digest``)."""

Natural = Annotated[int, Meta(ge=0, le=MAX_INT)]
Positive = Annotated[int, Meta(gt=0, le=MAX_INT)]
RankId = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Ranks = Annotated[tuple[RankId, ...], Meta(max_length=MAX_RANKS)]
Seconds = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]


class Algorithm(StrEnum):
    """The built-in algorithms, the simplest first; each is planned by the module of its name in
    ``trainmesh.topology.planners``. A plan may also name one that a plug-in registers."""

    NATIVE = "native"
    RING = "ring"
    TREE = "tree"
    HIERARCHICAL = "hierarchical"
    SHARDED = "sharded"
    FOREST = "forest"


class Collective(StrEnum):
    """The collective that is planned. With M bytes, each rank of an allreduce has M before and
    after; each rank of an allgather has M / N before and M after; in a reduce_scatter it is the
    other way round."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    REDUCE_SCATTER = "reduce_scatter"


class LinkOrigin(StrEnum):
    """Where the costs of a job's links came from last: the topology file or an assumption, the
    ranks' bucket times, or probes of the links."""

    GIVEN = "given"
    BUCKETS = "buckets"
    PROBES = "probes"


class LinkCost(Struct, frozen=True, kw_only=True):
    """Hockney's alpha-beta cost of one link: ``time = alpha_s + nbytes / bandwidth``."""

    alpha_s: Seconds
    bandwidth_bytes_per_s: Annotated[float, Meta(gt=0)]

    def time_s(self, nbytes: float) -> float:
        """Seconds to move ``nbytes`` in one message."""
        return self.alpha_s + nbytes / self.bandwidth_bytes_per_s


class Hop(Struct, frozen=True, array_like=True, omit_defaults=True):
    """One edge of a tree: a message from rank ``src`` to rank ``dst``. ``via`` names the nodes
    between them; None leaves the way to the network (the cheapest one is predicted)."""

    src: RankId
    dst: RankId
    via: tuple[Name, ...] | None = None


class Tree(Struct, frozen=True, array_like=True):
    """``share`` of the bytes is reduced over ``up`` into rank ``root`` and broadcast over ``down``
    from there; one of them is empty unless the collective is an allreduce. A hop comes after those
    that bring what it sends."""

    root: RankId
    share: Annotated[float, Meta(gt=0, le=1)]
    up: tuple[Hop, ...]
    down: tuple[Hop, ...]


class Plan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one collective of ``nbytes`` over ``world_size`` ranks is carried out, and why.

    ``order`` is the order of all ranks around a ring (rank order where there is no single ring).
    Other fields are set for one algorithm each: ``rings`` for a ring plan of several rings at
    once (``shares``: the part of the bytes that each takes), ``islands`` for a hierarchical plan
    (``levels`` if there are more: each partitions the ranks into unions of the islands of the one
    before, ``islands`` first; ``shares``: the part of the bytes for each place in an island, where
    these are not equal), ``shares`` for a sharded plan (by rank), ``trees`` for tree and forest.
    ``num_chunks`` is how many pieces the bytes are cut into, so that stages overlap: 1 is one stage
    after the other, 0 is no limit (no link has an alpha).

    ``bottleneck`` names the links (``"src->dst"``) that set ``predicted_s``; ``bound_cut`` the
    nodes on one side of the cut (or empty, where no single cut does) that sets ``bound_s``.
    """

    algorithm: Name
    world_size: Positive
    order: Ranks
    collective: Collective = Collective.ALLREDUCE
    rings: tuple[Ranks, ...] = ()
    shares: tuple[Annotated[float, Meta(ge=0, le=1)], ...] = ()
    islands: tuple[Ranks, ...] = ()
    levels: tuple[tuple[Ranks, ...], ...] = ()
    trees: tuple[Tree, ...] = ()
    num_chunks: Natural = 1
    nbytes: Natural = 0
    predicted_s: Seconds = 0.0
    busy_s: Seconds = 0.0
    """The part of it in which the busiest link transfers; for very large buckets, all that
    remains."""
    bound_s: Seconds = 0.0
    bound_kind: Name = ""
    bound_cut: tuple[Name, ...] = ()
    bottleneck: tuple[Name, ...] = ()
    graph_version: Natural = 0
    reason: Text = ""

    @property
    def efficiency(self) -> float:
        """Bound time / predicted time, in (0, 1]; 0 where nothing was predicted."""
        return self.bound_s / self.predicted_s if self.predicted_s else 0.0

    @property
    def algbw_bytes_per_s(self) -> float:
        """Predicted algorithm bandwidth; 0 where nothing was predicted."""
        return self.nbytes / self.predicted_s if self.predicted_s else 0.0


class Hint(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``job`` does from ``effective_step`` on. Epoch 0 is native and is never sent.

    It is for the ranks of one ``world`` (a Hello's), whose steps ``effective_step`` counts; others
    ignore it.

    ``fusion_bytes``: buckets are held back until so many bytes can be reduced in one go (0: each
    goes by itself). ``codec``: how gradients are compressed (``"none"``, or a codec's name and
    options, as in ``"powersgd:4"``). ``probe_bytes``: if not 0, the ranks measure their links in
    pairs when they switch, with messages of that size.
    """

    job: Name
    epoch: Positive
    effective_step: Natural
    plan: Plan
    reason: Text
    world: Natural = 0
    fusion_bytes: Natural = 0
    codec: Name = "none"
    probe_bytes: Natural = 0


class BucketTiming(Struct, frozen=True, array_like=True):
    """One bucket of one step on one rank: when its gradients were ready (``arrival_ns``), when
    its communication began (``start_ns``) and when its result was there (``end_ns``). Buckets that
    were fused have equal starts and ends."""

    index: Natural
    nbytes: Natural
    arrival_ns: Natural
    start_ns: Natural
    end_ns: Natural


class StepReport(Struct, frozen=True, array_like=True):
    """One step of one DDP module on one rank.

    ``begin_ns`` is the step's first forward, ``end_ns`` the next step's. ``module`` numbers the
    DDP modules of the process in the order in which they first communicated. ``step`` counts
    synchronised backward passes of that module from 0. ``loss`` is None where it is unknown.
    """

    rank: RankId
    module: Natural
    step: Natural
    epoch: Natural
    begin_ns: Natural
    end_ns: Natural
    loss: float | None
    buckets: tuple[BucketTiming, ...]


class PairTime(Struct, frozen=True, array_like=True):
    """A link probe between two ranks while nothing else ran: in round ``turn`` of probe ``epoch``
    a message of ``nbytes`` took ``transfer_s`` from rank ``src`` to rank ``dst`` (who reports it),
    and an empty one ``latency_s``. The pairs of one round ran at once."""

    epoch: Natural
    turn: Natural
    src: RankId
    dst: RankId
    nbytes: Positive
    transfer_s: Seconds
    latency_s: Seconds


class Hello(Struct, frozen=True, kw_only=True):
    """A rank introduces itself once per process, when its first module communicates.

    ``world`` is the same number on all ranks of one start of the processes, and another one for
    each start; 0 where the ranks agree on nothing, so that no hint is for them.

    ``collective`` is what that module's buckets go through: an all-reduce follows plans, a
    reduce-scatter (FSDP2) is only timed. ``replicas``: the ranks that all-reduce with this one
    (HSDP: those with the same shard), numbered by a plan in this order; empty if that are all.
    """

    rank: RankId
    local_rank: RankId
    world_size: Positive
    node_rank: Natural
    node: Name
    pid: Natural
    clock: Name
    """Identity of the host clock (boot id): timestamps of equal clocks can be compared."""
    backend: Name
    device: Name
    restart: Natural = 0
    world: Natural = 0
    collective: Collective = Collective.ALLREDUCE
    replicas: Ranks = ()


class Note(Struct, frozen=True, kw_only=True):
    """Something a rank did or found: ``kind`` is switched, mismatch, hook_kept, unplanned (no plan
    can be carried out), rejected, untouched or warning."""

    kind: Name
    rank: RankId
    text: Text
    step: Natural = 0
    epoch: Natural = 0


class CodecCost(Struct, frozen=True):
    """What a rank measured of a codec (``"powersgd:4"``), per byte uncompressed.

    ``num_collectives`` wait for each other in one bucket (an uncompressed one needs one);
    ``ratio`` is bytes before / after. Larger numbers than allowed are a mistake or a lie.
    """

    codec: Name
    encode_s_per_byte: Seconds
    decode_s_per_byte: Seconds
    num_collectives: Annotated[float, Meta(ge=1, le=1e6)]
    ratio: Annotated[float, Meta(ge=1, le=1e6)]

    @property
    def name(self) -> str:
        return self.codec.partition(":")[0]


class RankReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One datagram from a rank to its node's agent. ``dropped`` counts the reports lost so far."""

    hello: Hello | None = None
    steps: tuple[StepReport, ...] = ()
    notes: tuple[Note, ...] = ()
    pairs: tuple[PairTime, ...] = ()
    costs: tuple[CodecCost, ...] = ()
    dropped: Natural = 0


class NodeReport(Struct, frozen=True, kw_only=True):
    """What an agent publishes about once a second: the reports of its ranks since the last one.
    ``sequence`` counts those of one agent process, which ``agent`` tells from others of its node:
    no clock is compared."""

    node: Name
    agent: Natural = 0
    sequence: Natural
    reports: tuple[RankReport, ...]
    dropped: Natural


class AgentInfo(Struct, frozen=True, kw_only=True):
    """An agent's entry in the store; it lives as long as the agent's lease."""

    node: Name
    pid: Natural
    started_unix_s: float


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to the job, in words. ``kind`` is one of hello, plan, switch,
    mismatch, fit, revert, agent, coordinator, process, note, warning."""

    unix_s: float
    step: Natural
    kind: Name
    text: Text


class ClassFit(Struct, frozen=True, kw_only=True):
    """What the hooks' timings say about one link class, next to what was declared."""

    link_class: Name
    measured: LinkCost
    planned: LinkCost
    """The cost used for planning: never faster than what was declared."""
    num_samples: Natural
    residual: float
    """Median of |measured - fitted| / measured."""


class Crossover(Struct, frozen=True):
    """From ``nbytes`` on ``after`` is predicted to be the fastest algorithm; below, ``before``."""

    nbytes: Natural
    before: Name
    after: Name


class Choice(Struct, frozen=True, kw_only=True):
    """All candidates for one bucket size on one graph, the chosen one first by predicted time,
    with the words of ``trainmesh explain``."""

    graph_version: Natural
    nbytes: Natural
    chosen: Name
    candidates: tuple[Plan, ...]
    explain: tuple[Text, ...]
    crossovers: tuple[Crossover, ...] = ()


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker of this node that failed: in which attempt of torchrun (0 is the first), its rank
    (None: not known) and local rank, its exit code (negative: the signal that ended it), and the
    last line of its exception, if it has left one."""

    attempt: Natural
    rank: RankId | None
    local_rank: RankId
    exit_code: int
    text: Text = ""


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a launch has ended on one node; of one that runs, what is known so far.

    ``signal`` is the one that has ended it (the first, if there were several), ``why`` the reason
    where it was neither a signal nor a worker. ``failures``: those of the last attempt with the
    root cause first, then the first ones of earlier attempts.
    """

    exit_code: int | None = None
    """As a shell sees it; None while it runs."""
    signal: Name = ""
    why: Text = ""
    num_failed_attempts: Natural = 0
    failures: tuple[Failure, ...] = ()


class Asked(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A setting that the user asked for at the launch: ``knob`` is plan, fusion (``value`` in
    bytes) or codec. ``refusal`` says why it can't be had here, as the end of a sentence;
    ``since_step`` is the first step of the newest start of the processes at which all ranks had it;
    ``was_in_force``: they had it in an earlier start, or before the coordinator was restarted."""

    knob: Name
    value: Name
    refusal: Text = ""
    since_step: Natural | None = None
    was_in_force: bool = False


class RankStatus(Struct, frozen=True, kw_only=True):
    """One line of ``trainmesh status``, of the newest step that was timed. ``skew_s``: lateness at
    its first bucket against the earliest rank of the same host clock; ``exposed_share``: share of
    it spent waiting on communication. None: not measured, or there is no other rank."""

    rank: RankId
    node: Name
    pid: Natural
    step: Natural
    epoch: Natural
    skew_s: float | None = None
    exposed_share: float | None = None


class JobStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the coordinator knows of the job now; rewritten about once a second."""

    job: Name
    updated_unix_s: float
    world_size: Natural = 0
    """As reported by the ranks that have introduced themselves (``ranks``); 0 if none has."""
    step: Natural = 0
    num_steps: Natural = 0
    """Of the main module, in the newest start of the processes."""
    step_time_s: float | None = None
    """Of the newest step; None: none is over yet."""
    exposed_share: float | None = None
    """Median of the last steps under the plan in force; None: none of them was timed yet."""
    loss: float | None = None
    backend: Name = ""
    epoch: Natural = 0
    """Epoch of the plan that all ranks were last seen running."""
    plan: Plan | None = None
    """That plan; None before the first hint (native)."""
    fusion_bytes: Natural = 0
    codec: Name = "none"
    """In force with that plan, as in a Hint."""
    asked: tuple[Asked, ...] = ()
    hint: Hint | None = None
    """The newest hint, in force or on its way."""
    choice: Choice | None = None
    fits: tuple[ClassFit, ...] = ()
    links_from: LinkOrigin = LinkOrigin.GIVEN
    """Of the link graph in force."""
    ranks: tuple[RankStatus, ...] = ()
    events: tuple[Event, ...] = ()
    dropped: Natural = 0
    troubles: tuple[Text, ...] = ()
    """What is wrong with the control plane, as the launcher on this machine knows it."""
    age_s: Seconds | None = None
    """How long ago it came to this machine; None: not known."""
    is_last: bool = False
    """Whether the coordinator wrote it after the job's end."""
    num_restarts: Natural = 0
    """As torchrun counts them in the workers' environment."""
    outcome: Outcome | None = None
    """The outcome of the launch on this machine, as far as it is known; None in the store."""


class RecordLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a run's ``record.jsonl``: exactly one field is set. ``graph`` is a topology
    document as ``trainmesh.topology.load`` reads it."""

    hello: Hello | None = None
    step: StepReport | None = None
    event: Event | None = None
    choice: Choice | None = None
    hint: Hint | None = None
    fit: ClassFit | None = None
    pair: PairTime | None = None
    asked: tuple[Asked, ...] | None = None
    """All of it, again whenever something of it has changed."""
    graph: dict[str, object] | None = None
    outcome: Outcome | None = None
    links_from: LinkOrigin | None = None
    """Of the next ``graph``."""
