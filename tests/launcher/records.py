"""A record whose numbers can be worked out by hand.

Four ranks on two hosts whose clocks are 1000 s apart. In every step, times in ms after its begin:

- bucket 0 (4 MB) is ready at 30 and bucket 1 (1 MB) at 60 on a rank that is never late; rank 1
  is 4 ms late with both, rank 2 is 2 ms late;
- under native (epoch 0) the buckets end at 50 and 70, and the step at 100;
- under ring (epoch 1, from step 10) they end at 40 and 66, and the step at 90.
"""

from collections.abc import Iterator, Sequence

from trainmesh.launcher.report.analysis import analyse
from trainmesh.launcher.report.analysis_types import RunAnalysis
from trainmesh.launcher.report.run_sample import collect
from trainmesh.types import (
    BucketTiming,
    Choice,
    ClassFit,
    Event,
    Hello,
    Hint,
    LinkCost,
    Plan,
    RecordLine,
    StepReport,
)

MS = 1_000_000
LATE_MS = (0, 4, 2, 0)
CLOCK_AHEAD_NS = (0, 0, 10**12, 10**12)
SWITCH_STEP = 10
NUM_STEPS = 20

CUT = ("a", "r0", "r1")
NATIVE = Plan(
    algorithm="native",
    world_size=4,
    order=(0, 1, 2, 3),
    nbytes=4_000_000,
    predicted_s=0.012,
    bound_s=0.004,
    bound_kind="cut",
    bound_cut=CUT,
    bottleneck=("a->b",),
    reason="the backend's own",
)
RING = Plan(
    algorithm="ring",
    world_size=4,
    order=(0, 1, 3, 2),
    nbytes=4_000_000,
    predicted_s=0.005,
    bound_s=0.004,
    bound_kind="cut",
    bound_cut=CUT,
    bottleneck=("a->b",),
    reason="ring 0-1-3-2 is predicted 2.40x as fast as native",
)
HINT = Hint(job="job", epoch=1, effective_step=9, plan=RING, reason=RING.reason)
CHOICE = Choice(
    graph_version=1,
    nbytes=4_000_000,
    chosen="ring",
    candidates=(RING, NATIVE),
    explain=("No all-reduce can take less than 4 ms.", "Chosen: ring."),
)
FIT = ClassFit(
    link_class="uplink",
    measured=LinkCost(alpha_s=1e-4, bandwidth_bytes_per_s=1e9),
    planned=LinkCost(alpha_s=1e-4, bandwidth_bytes_per_s=1e9),
    num_samples=9,
    residual=0.1,
)


def link(src: str, dst: str, source: str) -> dict[str, object]:
    return {
        "src": src,
        "dst": dst,
        "bandwidth_GBps": 1.0,
        "alpha_us": 10.0,
        "class": "ethernet",
        "source": source,
        "duplex": False,
    }


def graph(source: str = "declared") -> dict[str, object]:
    pairs = [("r0", "a"), ("r1", "a"), ("r2", "b"), ("r3", "b"), ("a", "b")]
    return {
        "version": 1,
        "graph_version": 1,
        "nodes": {f"r{rank}": {"kind": "rank", "rank": rank} for rank in range(4)}
        | {"a": {"kind": "switch"}, "b": {"kind": "switch"}},
        "links": [link(*ends, source) for a, b in pairs for ends in ((a, b), (b, a))],
    }


def hello(rank: int, *, world_size: int = 4, pid: int = 0, node: str | None = None) -> Hello:
    host = "host-a" if rank < 2 else "host-b"
    return Hello(
        rank=rank,
        local_rank=rank % 2,
        world_size=world_size,
        node_rank=rank // 2,
        node=node or host,
        pid=pid or 100 + rank,
        clock=f"clock of {host}",
        backend="gloo",
        device="cpu",
    )


def report(rank: int, step: int, *, module: int = 0, world_size: int = 4) -> StepReport:
    """The report of ``rank`` on ``step`` as the module's docstring describes it."""
    epoch = int(step >= SWITCH_STEP)
    begin_ms = 100 * min(step, SWITCH_STEP) + 90 * max(0, step - SWITCH_STEP)
    begin_ns = begin_ms * MS + (CLOCK_AHEAD_NS[rank] if world_size == 4 else 0)
    ends_ms = (40, 66) if epoch else (50, 70)

    def bucket(index: int, nbytes: int, ready_ms: int) -> BucketTiming:
        ready_ns = begin_ns + (ready_ms + LATE_MS[rank]) * MS
        return BucketTiming(index, nbytes, ready_ns, ready_ns, begin_ns + ends_ms[index] * MS)

    return StepReport(
        rank,
        module,
        step,
        epoch,
        begin_ns,
        begin_ns + (90 if epoch else 100) * MS,
        4.0 - step / 10 + rank,
        (bucket(0, 4_000_000, 30), bucket(1, 1_000_000, 60)),
    )


def event(kind: str, step: int, text: str) -> RecordLine:
    return RecordLine(event=Event(unix_s=1000.0 + step, step=step, kind=kind, text=text))


def steps(
    numbers: Sequence[int] = range(NUM_STEPS), ranks: Sequence[int] = range(4)
) -> Iterator[RecordLine]:
    for step in numbers:
        for rank in ranks:
            yield RecordLine(step=report(rank, step))


def lines() -> list[RecordLine]:
    """The whole record."""
    return [
        *(RecordLine(hello=hello(rank)) for rank in range(4)),
        RecordLine(graph=graph()),
        event("hello", 0, "4 ranks on host-a, host-b with gloo"),
        *steps(range(SWITCH_STEP)),
        RecordLine(fit=FIT),
        RecordLine(choice=CHOICE),
        RecordLine(hint=HINT),
        event("plan", 8, "plan of epoch 1 from step 9: ring"),
        event("switch", 10, "step 10: all 4 ranks switched to ring (epoch 1)"),
        *steps(range(SWITCH_STEP, NUM_STEPS)),
    ]


def analysed(record: Sequence[RecordLine] | None = None) -> RunAnalysis:
    return analyse(collect(lines() if record is None else record))
