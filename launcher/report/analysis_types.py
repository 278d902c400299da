"""The numbers of a report: the fields of ``report.json`` (docs/report.md).

Times are seconds of the ranks' monotonic clocks; every mean or median is over the steps that the
record kept (``num_samples``), without the first two (``trainmesh.coordinator.measure.FIRST_STEP``).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from trainmesh.coordinator.tuning.comm_config import describe_comm_config
from trainmesh.types import Asked, Choice, ClassFit, Event, LinkOrigin, Outcome, Plan
from trainmesh.units import percent, quotient

__all__ = [
    "BucketStats",
    "NodeRanks",
    "PlanOutcome",
    "RankSkew",
    "RankSplit",
    "RunAnalysis",
    "SeriesPoint",
    "Spread",
    "SwitchEffect",
    "TimeSplit",
    "UNKNOWN",
    "describe_measured_efficiency",
    "describe_predicted_efficiency",
]


class Spread(Struct, frozen=True, kw_only=True):
    """Median, 5th and 95th percentile (linear interpolation) of ``num_samples`` values."""

    median_s: float
    p5_s: float
    p95_s: float
    num_samples: int

    @classmethod
    def of(cls, values_s: Sequence[float]) -> Spread:
        """Of one value or more."""
        ordered = sorted(values_s)
        return cls(
            median_s=_percentile(ordered, 0.5),
            p5_s=_percentile(ordered, 0.05),
            p95_s=_percentile(ordered, 0.95),
            num_samples=len(ordered),
        )


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


class TimeSplit(Struct, frozen=True, kw_only=True):
    """Where the step time went; means, so that the four parts add up to the mean step time.

    ``compute_s``: from the first forward to the last ready gradient, while no bucket was being
    communicated. ``hidden_s``: the same, while one was (communication hidden behind backward).
    ``exposed_s``: from the last ready gradient to the last bucket's result. ``rest_s``: from
    there to the next step's first forward (optimizer, data loading, logging).
    """

    compute_s: float
    hidden_s: float
    exposed_s: float
    rest_s: float
    num_samples: int

    @property
    def step_s(self) -> float:
        """Mean step time."""
        return self.compute_s + self.hidden_s + self.exposed_s + self.rest_s

    @property
    def exposed_share(self) -> float:
        """Share of the step spent with nothing to do but wait for communication."""
        return self.exposed_s / self.step_s if self.step_s else 0.0


class RankSplit(Struct, frozen=True, kw_only=True):
    """The split of one rank."""

    rank: int
    split: TimeSplit


class BucketStats(Struct, frozen=True, kw_only=True):
    """One bucket under the plan of one epoch. ``transfer_s``: median over steps of the least
    ``end - start`` of any rank, so that waiting for late ranks is not counted. algbw = bytes /
    time; busbw = algbw * 2 (N - 1) / N as in nccl-tests."""

    epoch: int
    index: int
    nbytes: int
    transfer_s: float
    algbw_bytes_per_s: float
    busbw_bytes_per_s: float
    num_samples: int


class RankSkew(Struct, frozen=True, kw_only=True):
    """How much later than the earliest rank one rank's gradients were ready, over all steps and
    buckets; ``last_share``: the share of these at which it was the last."""

    rank: int
    node: str
    median_s: float
    p95_s: float
    last_share: float = 0.0


class SwitchEffect(Struct, frozen=True, kw_only=True):
    """Medians of the last ``num_before`` steps before a switch and the first ``num_after`` ones
    after it: close to the switch, so that little else has changed."""

    num_before: int
    num_after: int
    transfer_before_s: float
    """All buckets of a step."""
    transfer_after_s: float
    step_before_s: float
    step_after_s: float

    @property
    def transfer_speedup(self) -> float:
        """Above 1: communication is faster than before; 1 if nothing was timed."""
        return quotient(self.transfer_before_s, self.transfer_after_s)


UNKNOWN = "not known"
"""The algorithm of an epoch whose hint the record does not hold."""


class PlanOutcome(Struct, frozen=True, kw_only=True):
    """A plan that was in force with a fusion size and a codec, predicted and measured.

    ``plan`` is None where nothing was predicted. ``measured_s`` is the median time of collectives
    of the plan's size, to be compared with ``plan.predicted_s``; None with a codec, of whose time
    the prediction knows nothing. ``step_transfer_s`` is the median over steps of all their buckets'
    transfers. ``switch`` is None for the first plan and where there were no complete steps.
    ``exceeds_bound``: collectives took less time than the bound, so the link costs (of ``origin``)
    that it was computed from are wrong. ``is_bound_refuted``: that was so of this plan, or of
    another one on the same link graph; ``measured_efficiency`` is None then.
    """

    epoch: int
    algorithm: str
    fusion_bytes: int = 0
    codec: str = "none"
    plan: Plan | None
    first_step: int
    last_step: int
    num_samples: int
    step_time_s: float
    split: TimeSplit | None = None
    step_transfer_s: float | None = None
    measured_s: float | None = None
    measured_efficiency: float | None = None
    exceeds_bound: bool = False
    is_bound_refuted: bool = False
    origin: LinkOrigin = LinkOrigin.GIVEN
    switch: SwitchEffect | None = None

    @property
    def name(self) -> str:
        """As in ``ring, fused to 8.00 MB, bf16``."""
        if self.algorithm == UNKNOWN:
            return "a plan that the record does not hold"
        return describe_comm_config(self.algorithm, self.fusion_bytes, self.codec)


def describe_predicted_efficiency(outcome: PlanOutcome) -> str:
    """For a table's cell."""
    plan = outcome.plan
    if plan is None or not plan.predicted_s or outcome.is_bound_refuted:
        return "-"
    return percent(plan.efficiency)


def describe_measured_efficiency(outcome: PlanOutcome) -> str:
    """For a table's cell."""
    if outcome.exceeds_bound:
        return "bound exceeded"
    efficiency = outcome.measured_efficiency
    return percent(efficiency) if efficiency is not None else "-"


class SeriesPoint(Struct, frozen=True, array_like=True):
    """One step: its number, epoch, time (median over ranks), and mean loss over ranks."""

    step: int
    epoch: int
    step_time_s: float
    loss: float | None


class NodeRanks(Struct, frozen=True, kw_only=True):
    """A node and its ranks."""

    node: str
    ranks: tuple[int, ...]


class RunAnalysis(Struct, frozen=True, kw_only=True):
    """Everything a report shows."""

    world_size: int
    nodes: tuple[NodeRanks, ...]
    backend: str
    device: str
    job: str
    num_starts: int
    """How often the job's processes were started; the figures are of the last start with steps."""
    outcome: Outcome | None = None
    """How the launch has ended on this node; None: the record doesn't say."""
    num_modules: int
    """DDP modules seen."""
    module: int
    """The one that is analysed, which did the most steps, in the order in which they first
    communicated, from 0."""
    num_steps: int
    """Steps of that module that were recorded."""
    num_known_steps: int = 0
    """Steps that the job was last known to have done in its newest start, recorded or not."""
    last_step: int
    duration_s: float
    step_time: Spread | None
    split: TimeSplit | None
    rank_splits: tuple[RankSplit, ...]
    buckets: tuple[BucketStats, ...]
    skew: tuple[RankSkew, ...]
    num_clocks: int
    """Host clocks; where there are more than one they were aligned by the ends of all-reduces."""
    plans: tuple[PlanOutcome, ...]
    choice: Choice | None
    asked: tuple[Asked, ...] = ()
    """The settings that the user asked for, and since when each was in force or why it can't be
    had."""
    unmet: tuple[str, ...] = ()
    """A sentence for each of these that was never in force."""
    fits: tuple[ClassFit, ...]
    graph: dict[str, object] | None
    link_sources: dict[str, int]
    """Number of links of the last graph by where their cost comes from."""
    measured_by: LinkOrigin = LinkOrigin.GIVEN
    """What the costs of its measured links are taken from."""
    events: tuple[Event, ...]
    events_omitted: int
    series: tuple[SeriesPoint, ...]
    lines: int
    corrupt_lines: int
    missing: tuple[str, ...]
    """What is not in this report, and why; a sentence each."""
