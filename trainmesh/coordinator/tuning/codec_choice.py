"""Whether a codec pays, given the measured cost of its encoding. Pure.

The rule is ``trainmesh.plan.codec_cost.worth``; and a codec can't save more than the step waits for
communication.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainmesh.coordinator.tuning.fusion_size import Overhead
from trainmesh.coordinator.tuning.settings import NO_CODEC
from trainmesh.plan.codec_cost import (
    ADVISED_CODEC,
    FIRST_CODEC,
    LATER_CODEC,
    CodecChoice,
    worth,
)
from trainmesh.units import duration

__all__ = ["Sending", "advice", "better_codec"]
from trainmesh.types import CodecCost

Costs = Mapping[str, CodecCost]


@dataclass(frozen=True)
class Sending:
    """The traffic of a step: collectives of ``sizes`` bytes, each of which would take ``plain``
    without a codec; and how long the step takes, and waits for communication."""

    sizes: Sequence[int]
    plain: Overhead
    step_s: float
    exposed_s: float


def better_codec(
    costs: Costs, sending: Sending, current: str, margin: float, refused: Collection[str] = ()
) -> tuple[str, str]:
    """The codec for ``sending``, and the reason.

    bf16 first; int8, which loses more, only from there, if it is predicted to shorten the step by
    the margin once more. Back to none as soon as the one in force doesn't pay.

    Args:
        costs: What is known, by codec.
        current: The codec in force.
        refused: Codecs that were tried in vain, and ``none`` if leaving one was.
    """
    if current != NO_CODEC and current in costs and NO_CODEC not in refused:
        verdict = _worth(costs[current], sending)
        if not verdict.pays:
            return NO_CODEC, f"{current} {verdict.reason}"
    name = FIRST_CODEC if current == NO_CODEC else LATER_CODEC
    best = _best({key: cost for key, cost in costs.items() if key not in refused}, name, sending)
    if best is None or best.codec == current:
        return current, f"no {'codec' if current == NO_CODEC else 'better codec'} pays"
    gain_s = _gain_s(best, costs.get(current), sending)
    if gain_s <= margin * sending.step_s:
        return current, f"{best.codec} would gain {duration(max(0.0, gain_s))} at most"
    reason = _worth(best, sending).reason
    return best.codec, f"{best.codec} {reason}; predicted to save {duration(gain_s)}"


def advice(costs: Costs, sending: Sending, current: str, margin: float) -> str:
    """The gain, in words, of a codec that is used only if it is asked for; empty if it is too
    small."""
    best = _best(costs, ADVISED_CODEC, sending)
    if best is None or best.name == current.partition(":")[0]:
        return ""
    gain_s = _gain_s(best, costs.get(current), sending)
    if gain_s <= margin * sending.step_s:
        return ""
    return (
        f"--compression {best.codec} is predicted to save {duration(gain_s)} of "
        f"{duration(sending.step_s)} a step; it costs loss, so auto does not choose it"
    )


def _best(costs: Costs, name: str, sending: Sending) -> CodecCost | None:
    """The codec called ``name`` that gains most, whatever its options; None if none pays."""
    paying = [cost for cost in costs.values() if cost.name == name and _worth(cost, sending).pays]
    return max(paying, key=lambda cost: (_net_s(cost, sending), cost.codec), default=None)


def _gain_s(cost: CodecCost, current: CodecCost | None, sending: Sending) -> float:
    """How much shorter a step is predicted to be with ``cost`` than with ``current``."""
    now_s = _net_s(current, sending) if current is not None else 0.0
    return min(sending.exposed_s, _net_s(cost, sending) - now_s)


def _worth(cost: CodecCost, sending: Sending) -> CodecChoice:
    """Break-even of all the step's bytes at once."""
    total = sum(sending.sizes)
    return worth(
        nbytes=total,
        ratio=cost.ratio,
        encode_s=total * cost.encode_s_per_byte,
        decode_s=total * cost.decode_s_per_byte,
        extra_latency_s=_extra_latency_s(cost, sending),
        seconds_per_byte=sending.plain.s_per_byte,
    )


def _net_s(cost: CodecCost, sending: Sending) -> float:
    """Seconds a step is predicted to gain over one without a codec."""
    coding_s_per_byte = cost.encode_s_per_byte + cost.decode_s_per_byte
    saved_s_per_byte = (1 - 1 / cost.ratio) * sending.plain.s_per_byte - coding_s_per_byte
    return sum(sending.sizes) * saved_s_per_byte - _extra_latency_s(cost, sending)


def _extra_latency_s(cost: CodecCost, sending: Sending) -> float:
    """The cost, beside their bytes, of the collectives that a codec adds."""
    return len(sending.sizes) * (cost.num_collectives - 1) * sending.plain.seconds
