"""The three knobs, plan, fusion and codec: which to turn next, and how each is judged.

One knob is turned at a time, in this order, so that later measurements show its effect alone. A
setting that was tried in vain is not tried again before the links, or the plan, have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from trainmesh.coordinator.measure import MeasuredStep
from trainmesh.coordinator.tuning.acceptance import delivers, harm, quicker
from trainmesh.coordinator.tuning.calibration import Calibration
from trainmesh.coordinator.tuning.codec_choice import Sending, advice, better_codec
from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.coordinator.tuning.fusion_size import Overhead, fusion_size, overhead
from trainmesh.coordinator.tuning.replan import Planned, predicted_s, replan
from trainmesh.coordinator.tuning.settings import AUTO, NO_CODEC, Knob, Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import CALIBRATION, UNMEASURED
from trainmesh.types import Algorithm, CodecCost

__all__ = ["Knobs", "Trial"]

MAX_CODECS = 32
"""Names come from ranks; a job has a handful."""
DDP_BUCKETS = (2**20, 25 * 2**20)
"""The bytes of a step's buckets before any has been seen: DDP's first bucket, and its cap on the
others."""
SURPRISE = 1.5
"""If a measurement is off its prediction by this factor, the links may be the cause and not the
plan."""


@dataclass(frozen=True)
class Trial:
    """A change that is on trial: ``before`` was measured under ``previous``."""

    knob: Knob
    previous: CommConfig
    before: Sequence[MeasuredStep]


class Knobs:
    """What was learned about the knobs of one job."""

    def __init__(self, settings: Settings, backend: str) -> None:
        self._settings = settings
        self._backend = backend
        start = dict.fromkeys(CALIBRATION, UNMEASURED) if "nccl" in backend else CALIBRATION
        self._calibration = Calibration(start)
        self._overheads: dict[str, Overhead] = {}
        """When each algorithm's collectives were last measured one by one."""
        self._costs: dict[str, CodecCost] = {}
        self._refused: set[str] = set()
        """Algorithms, knobs and codecs."""
        self._advised = False

    def unblock(self) -> None:
        """The links have changed: what failed on them may do now."""
        self._refused.clear()

    def block(self, trial: Trial, tried: CommConfig) -> None:
        """Don't try this again on these links."""
        refused = {Knob.PLAN: tried.plan.algorithm, Knob.CODEC: tried.codec}
        self._refused.add(str(refused.get(trial.knob, trial.knob)))

    def see_cost(self, cost: CodecCost) -> bool:
        """Take a rank's measurement of a codec; the slowest rank counts. True if the codec is
        new."""
        known = self._costs.get(cost.codec)
        if known is None and len(self._costs) >= MAX_CODECS:
            return False
        same = known or cost
        self._costs[cost.codec] = CodecCost(
            cost.codec,
            max(same.encode_s_per_byte, cost.encode_s_per_byte),
            max(same.decode_s_per_byte, cost.decode_s_per_byte),
            max(same.num_collectives, cost.num_collectives),
            min(same.ratio, cost.ratio),
        )
        return known is None

    def asked_for(self, current: CommConfig) -> CommConfig:
        """``current`` with what the user has fixed of fusion and codec."""
        fixed = self._settings
        fusion = current.fusion_bytes if fixed.fusion_bytes is None else fixed.fusion_bytes
        codec = current.codec if fixed.compression == AUTO else fixed.compression
        return replace(current, fusion_bytes=fusion, codec=codec)

    def plan(
        self,
        steps: Sequence[MeasuredStep],
        current: CommConfig,
        graph: LinkGraph,
        *,
        degraded: bool,
    ) -> Planned:
        """The plan for ``graph``, in which a link may be known to be slow. Before any step was
        measured, it is made for DDP's usual buckets."""
        return replan(
            graph,
            self._wire_sizes(steps[-1].sizes if steps else DDP_BUCKETS, current),
            current.plan,
            self._calibration,
            self._settings,
            backend=self._backend,
            degraded=degraded,
            refused=self._refused,
        )

    def fusion(
        self, steps: Sequence[MeasuredStep], current: CommConfig, graph: LinkGraph
    ) -> tuple[CommConfig, str]:
        """``current`` with the best fusion size, and why."""
        cost = self._cost(steps, current, graph)
        if not self._settings.finds_fusion or Knob.FUSION in self._refused or cost is None:
            return current, ""
        nbytes, reason = fusion_size(steps, current.fusion_bytes, cost, self._settings.margin)
        return replace(current, fusion_bytes=nbytes), reason

    def codec(
        self, steps: Sequence[MeasuredStep], current: CommConfig, graph: LinkGraph
    ) -> tuple[CommConfig, str]:
        """``current`` with the best codec, and why."""
        if self._settings.compression != AUTO:
            return current, ""
        sending = self._sending(steps, current, graph)
        margin, refused = self._settings.margin, self._refused
        codec, reason = better_codec(self._costs, sending, current.codec, margin, refused)
        return replace(current, codec=codec), reason

    def advice(self, steps: Sequence[MeasuredStep], current: CommConfig, graph: LinkGraph) -> str:
        """Advice on a setting that only the user may choose; empty if there is none, or if it was
        given before."""
        if self._settings.compression != AUTO or self._advised:
            return ""
        sending = self._sending(steps, current, graph)
        words = advice(self._costs, sending, current.codec, self._settings.margin)
        self._advised = bool(words)
        return words

    def judge(
        self, trial: Trial, tried: CommConfig, after: Sequence[MeasuredStep]
    ) -> tuple[bool, str]:
        """Whether a change stays, and the numbers in words."""
        settings = self._settings
        least = settings.margin / 2
        if trial.knob is Knob.PLAN:
            harmful, words = harm(trial.before, after, settings)
            # Native costs nothing to keep, and a plan that the user asks for is used in any case.
            if tried.plan.algorithm != Algorithm.NATIVE:
                harmful = harmful or not delivers(trial.before, after, settings)
            return not harmful or settings.only is not None, words
        if trial.knob is Knob.FUSION:
            turned_down = tried.fusion_bytes < trial.previous.fusion_bytes
        else:
            turned_down = tried.codec == NO_CODEC
        return quicker(trial.before, after, least=-least if turned_down else least)

    def learn(
        self, trial: Trial, tried: CommConfig, after: Sequence[MeasuredStep], graph: LinkGraph
    ) -> tuple[str, bool]:
        """Correct later predictions by the time that a new plan took.

        Returns:
            What was learned, in words; and whether the plan took so much more or less time than
            predicted that the links may have changed meanwhile.
        """
        if trial.knob is not Knob.PLAN:
            return "", False
        before_ratio = self._miss(trial.before, trial.previous, graph)
        after_ratio = self._miss(after, tried, graph)
        old, new = trial.previous.plan.algorithm, tried.plan.algorithm
        if not before_ratio or not after_ratio:
            return "", False
        expected = self._calibration.factor(new) / self._calibration.factor(old)
        surprise = after_ratio / before_ratio / expected
        if surprise < 1 / SURPRISE:  # executors don't beat predictions: something else has changed
            return f"{1 / surprise:.2f} times as fast as predicted", True
        self._calibration = self._calibration.learn(old, before_ratio, new, after_ratio)
        changed = old if new == Algorithm.NATIVE else new
        factor = self._calibration.factor(changed)
        return f"{changed} counts {factor:.2f} times its prediction now", surprise > SURPRISE

    def _miss(
        self, steps: Sequence[MeasuredStep], comm_config: CommConfig, graph: LinkGraph
    ) -> float | None:
        """Measured / predicted time of a step's collectives."""
        predicted = predicted_s(
            comm_config.plan, graph, self._wire_sizes(steps[-1].sizes, comm_config)
        )
        return median(step.transfer_s for step in steps) / predicted if predicted else None

    def _wire_sizes(self, sizes: Sequence[int], comm_config: CommConfig) -> list[int]:
        """Bytes of each collective as they cross the links, for buckets of ``sizes``."""
        ratio = self._ratio(comm_config)
        return [max(1, round(nbytes / ratio)) for nbytes in comm_config.collectives(sizes)]

    def _sending(
        self, steps: Sequence[MeasuredStep], current: CommConfig, graph: LinkGraph
    ) -> Sending:
        whole = median(step.transfer_s / sum(step.sizes) for step in steps)
        cost = self._cost(steps, current, graph) or Overhead(0.0, whole)
        return Sending(
            sizes=current.collectives(steps[-1].sizes),
            plain=self._uncompressed(cost, current),
            step_s=median(step.step_time_s for step in steps),
            exposed_s=median(step.exposed_s for step in steps),
        )

    def _uncompressed(self, cost: Overhead, current: CommConfig) -> Overhead:
        """What a collective would cost without the codec in force, whose coding is in ``cost``."""
        codec = self._costs.get(current.codec)
        if codec is None:
            return cost
        on_links = cost.s_per_byte - codec.encode_s_per_byte - codec.decode_s_per_byte
        return Overhead(cost.seconds / codec.num_collectives, max(0.0, on_links) * codec.ratio)

    def _ratio(self, comm_config: CommConfig) -> float:
        return self._costs[comm_config.codec].ratio if comm_config.codec in self._costs else 1.0

    def _cost(
        self, steps: Sequence[MeasuredStep], current: CommConfig, graph: LinkGraph
    ) -> Overhead | None:
        """What a collective costs under ``current``."""
        known = self._overheads.get(current.plan.algorithm) if current.fusion_bytes else None
        believed = _s_per_byte(current, steps[-1], graph) / self._ratio(current)
        cost = overhead(steps, known, believed)
        if cost is not None and not current.fusion_bytes:
            self._overheads[current.plan.algorithm] = cost
        return cost


def _s_per_byte(comm_config: CommConfig, step: MeasuredStep, graph: LinkGraph) -> float:
    """What the plan's model says; 0 where it has none."""
    total = sum(step.sizes)
    predicted = predicted_s(comm_config.plan, graph, [total])
    empty = predicted_s(comm_config.plan, graph, [0])
    return (predicted - empty) / total if predicted and empty is not None else 0.0
