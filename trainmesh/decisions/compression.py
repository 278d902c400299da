"""Whether a codec pays, by what its encoding was measured to cost. Pure.

The rule is ``trainmesh.compression.worth``; and a codec can't save more than the step waits for
communication.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainmesh.compression import Verdict, worth
from trainmesh.decisions.settings import NO_CODEC
from trainmesh.format import duration

__all__ = ["CodecCost", "better_codec", "codec_cost"]

FIRST = "bf16"
"""Halves the bytes and loses no range: tried before any other."""
LATER = ("int8", "powersgd")
MAX_RATIO = 1e6


@dataclass(frozen=True)
class CodecCost:
    """What the ranks measured of a codec (``"powersgd:4"``); ``ratio`` is bytes before / after."""

    codec: str
    encode_s_per_byte: float
    decode_s_per_byte: float
    extra_latency_s: float
    ratio: float

    @property
    def name(self) -> str:
        return self.codec.partition(":")[0]


def codec_cost(text: str) -> CodecCost | None:
    """A rank's note ``NAME encode_s_per_byte decode_s_per_byte extra_latency_s ratio``; None if it
    isn't one."""
    codec, *rest = text.split() or [""]
    try:
        numbers = [float(word) for word in rest]
    except ValueError:
        return None
    if len(numbers) != 4 or not all(0 <= n < math.inf for n in numbers):
        return None
    return CodecCost(codec, *numbers) if 1 <= numbers[3] <= MAX_RATIO else None


def better_codec(
    costs: Mapping[str, CodecCost],
    sizes: Sequence[int],
    s_per_byte: float,
    current: str,
    *,
    step_s: float,
    exposed_s: float,
    margin: float,
    refused: Collection[str] = (),
) -> tuple[str, str]:
    """The codec for a step whose collectives have ``sizes``, and the reason.

    bf16 first; those that lose more only from there, if they are predicted to shorten the step by
    the margin once more. Back to none as soon as the one in force doesn't pay.

    Args:
        costs: What is known, by codec.
        s_per_byte: Seconds a byte takes uncompressed.
        current: The codec in force.
        exposed_s: How long the step waits for communication.
        refused: Codecs that were tried in vain.
    """
    if current != NO_CODEC and current in costs:
        verdict = _worth(costs[current], sizes, s_per_byte)
        if not verdict.pays:
            return NO_CODEC, f"{current} {verdict.reason}"
    allowed = (FIRST,) if current == NO_CODEC else LATER
    known = [cost for cost in costs.values() if cost.name in allowed and cost.codec not in refused]
    paying = [
        cost for cost in known if cost.codec != current and _worth(cost, sizes, s_per_byte).pays
    ]
    if not paying:
        return current, f"no {'codec' if current == NO_CODEC else 'better codec'} pays"
    best = max(paying, key=lambda cost: (_net_s(cost, sizes, s_per_byte), cost.codec))
    now_s = _net_s(costs[current], sizes, s_per_byte) if current in costs else 0.0
    gain_s = min(exposed_s, _net_s(best, sizes, s_per_byte) - now_s)
    if gain_s <= margin * step_s:
        return current, f"{best.codec} would gain {duration(max(0.0, gain_s))} at most"
    verdict = _worth(best, sizes, s_per_byte)
    return best.codec, f"{best.codec} {verdict.reason}; predicted to save {duration(gain_s)}"


def _worth(cost: CodecCost, sizes: Sequence[int], s_per_byte: float) -> Verdict:
    """Break-even of all the step's bytes at once."""
    total = sum(sizes)
    return worth(
        nbytes=total,
        ratio=cost.ratio,
        encode_s=total * cost.encode_s_per_byte,
        decode_s=total * cost.decode_s_per_byte,
        extra_latency_s=len(sizes) * cost.extra_latency_s,
        seconds_per_byte=s_per_byte,
    )


def _net_s(cost: CodecCost, sizes: Sequence[int], s_per_byte: float) -> float:
    """Seconds a step is predicted to gain."""
    coding_s_per_byte = cost.encode_s_per_byte + cost.decode_s_per_byte
    saved_s = sum(sizes) * ((1 - 1 / cost.ratio) * s_per_byte - coding_s_per_byte)
    return saved_s - len(sizes) * cost.extra_latency_s
