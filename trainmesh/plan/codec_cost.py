"""When compressing gradients pays: one rule, for the coordinator and for every rank."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ADVISED_CODEC",
    "FIRST_CODEC",
    "LATER_CODEC",
    "CodecChoice",
    "worth",
]

FIRST_CODEC = "bf16"
"""Halves the bytes and loses no range: tried before any other."""
LATER_CODEC = "int8"
"""Tried where the first one has paid."""
ADVISED_CODEC = "powersgd"
"""Costs more loss than another seed would (docs/compression.md): ``auto`` measures it and says what
it would gain, but using it is the user's choice."""


class CodecChoice(NamedTuple):
    """Whether to compress, and why in words."""

    pays: bool
    reason: str


def worth(
    nbytes: float,
    ratio: float,
    encode_s: float,
    decode_s: float,
    extra_latency_s: float,
    seconds_per_byte: float,
) -> CodecChoice:
    """Whether compressing a bucket of ``nbytes`` saves more time than it costs.

    It does if and only if s (1 - 1/r) beta' > t_enc + t_dec + extra latency, where beta' is what
    a byte of an all-reduced bucket takes: for a ring over N equal links of B bytes/s,
    2 (N-1) / (N B).

    Args:
        nbytes: s, the bucket's size uncompressed.
        ratio: r, its size over ``Codec.wire_bytes``.
        encode_s, decode_s: measured (``trainmesh.hooks.codecs.measure_cost``).
        extra_latency_s: the fixed cost of the collectives that are added
            (``CodecCost.num_collectives`` - 1 of them).
        seconds_per_byte: beta', measured as the slope of bucket times over bucket sizes.
    """
    saved_s = nbytes * (1 - 1 / ratio) * seconds_per_byte
    cost_s = encode_s + decode_s + extra_latency_s
    pays = saved_s > cost_s
    words = "pays" if pays else "does not pay"
    return CodecChoice(
        pays,
        f"{words}: a bucket of {nbytes / 1e6:.3g} MB would take {1e3 * saved_s:.3g} ms less on "
        f"the links at ratio {ratio:.3g}, and coding takes {1e3 * cost_s:.3g} ms",
    )
