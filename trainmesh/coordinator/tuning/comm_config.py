"""How all ranks reduce their buckets: the three knobs that a hint sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.coordinator.tuning.settings import NO_CODEC
from trainmesh.types import NOT_SENT, Algorithm, Hint, Plan
from trainmesh.units import size

__all__ = ["CommConfig", "grouped", "describe_comm_config", "same_way"]

PIECES = ("nbytes", "num_chunks")
"""The fields of a plan that set the size of the pieces in which bytes are sent."""
WAY = tuple(name for name in Plan.__struct_fields__ if name not in NOT_SENT and name not in PIECES)


@dataclass(frozen=True)
class CommConfig:
    """A plan, how many bytes are held back to be fused (0: none), and a codec."""

    plan: Plan
    fusion_bytes: int = 0
    codec: str = NO_CODEC

    @classmethod
    def native(cls, world_size: int) -> CommConfig:
        """What a job begins with."""
        order = tuple(range(world_size))
        return cls(Plan(algorithm=Algorithm.NATIVE, world_size=world_size, order=order))

    @classmethod
    def of(cls, hint: Hint) -> CommConfig:
        return cls(hint.plan, hint.fusion_bytes, hint.codec)

    @property
    def words(self) -> str:
        """As in ``ring, fused to 8.00 MB, bf16``."""
        return describe_comm_config(self.plan.algorithm, self.fusion_bytes, self.codec)

    def collectives(self, sizes: Sequence[int]) -> list[int]:
        """Bytes of each collective of a step whose buckets have ``sizes``."""
        return [sum(sizes[place] for place in group) for group in grouped(sizes, self.fusion_bytes)]


def describe_comm_config(algorithm: str, fusion_bytes: int, codec: str) -> str:
    """As in ``ring, fused to 8.00 MB, bf16``."""
    fused = f", fused to {size(fusion_bytes)}" if fusion_bytes else ""
    coded = f", {codec}" if codec != NO_CODEC else ""
    return f"{algorithm}{fused}{coded}"


def grouped(sizes: Sequence[int], fusion_bytes: int) -> list[list[int]]:
    """The places of the buckets that the ranks reduce together (``trainmesh.hooks.route.fusion``):
    until ``fusion_bytes`` are held back, or the last bucket has come."""
    groups: list[list[int]] = []
    held: list[int] = []
    held_bytes = 0
    for place, nbytes in enumerate(sizes):
        held.append(place)
        held_bytes += nbytes
        if held_bytes >= fusion_bytes or place == len(sizes) - 1:
            groups.append(held)
            held, held_bytes = [], 0
    return groups


def same_way(a: Plan, b: Plan) -> bool:
    """Whether two plans move the same bytes along the same paths, whatever their predictions and
    the sizes of their pieces."""
    return all(getattr(a, name) == getattr(b, name) for name in WAY)
