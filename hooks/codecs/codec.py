"""The plug-in surface of compression: a codec sums one bucket over all ranks, with loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs.cast import Bf16, Fp16, Plain
from trainmesh.hooks.codecs.exchange import CodecCollectives
from trainmesh.hooks.codecs.gradient import Gradient
from trainmesh.hooks.codecs.int8 import Int8
from trainmesh.hooks.codecs.memory import ErrorFeedback
from trainmesh.hooks.codecs.powersgd import PowerSGD
from trainmesh.hooks.codecs.topk import TopK

__all__ = ["CODECS", "Codec", "codec"]

GROUP = "trainmesh.hooks"
PREFIX = "codec."


class Codec(Protocol):
    """Compresses buckets. A third party adds one by the entry-point group ``trainmesh.hooks``,
    named ``codec.NAME``. Its contract, which ``trainmesh.hooks.testing.check_codec`` checks:

    - All ranks make it at the same step, from the same ``options``.
    - After ``reduce`` all ranks' buffers are the same, bit for bit.
    - The part that it does not send goes to ``memory``, or its documentation says that this part is
    lost for good.
    - A NaN or infinity in any rank's gradient makes the result of every rank non-finite
      somewhere, and nothing of it is left in the next step's.
    - Nothing on the way waits for a GPU (no ``.item()``, no ``.cpu()``).
    """

    max_world_size: int
    """In larger jobs it is refused."""
    num_exchanges: int
    """Collectives that wait for each other in one ``reduce``; an uncompressed bucket needs one."""

    def __init__(self, options: str) -> None:
        """``options`` is what follows the colon, as in ``powersgd:4``; empty if nothing does.

        Raises:
            ConfigError: they can't be used.
        """
        ...

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        """Sum ``gradient.buffer`` over all ranks in place; it has been divided by the number of
        ranks already. Called by one thread, for the same buckets in the same order on every rank;
        may wait for the exchange."""
        ...

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        """For a bucket of tensors of ``shapes`` with ``itemsize`` bytes an element: the size of
        the plain all-reduce that would put as many bytes on the links."""
        ...


CODECS: dict[str, Callable[[str], Codec]] = {
    "none": Plain,
    "bf16": Bf16,
    "fp16": Fp16,
    "int8": Int8,
    "powersgd": PowerSGD,
    "topk": TopK,
}
"""The codecs that trainmesh brings, by name."""


def codec(text: str, world_size: int = 1) -> Codec:
    """The codec that ``text`` (``name`` or ``name:options``) asks for, in a job of that size.

    Raises:
        ConfigError: there is none of that name, it can't be loaded, the options are wrong, or the
            job is too large for it.
    """
    name, _, options = text.partition(":")
    made = _factory(name)(options)
    if world_size > made.max_world_size:
        raise ConfigError(
            f"codec {name}: the job has {world_size} ranks, it can serve {made.max_world_size}"
        )
    return made


def _factory(name: str) -> Callable[[str], Codec]:
    if name in CODECS:
        return CODECS[name]
    for point in entry_points(group=GROUP, name=PREFIX + name):
        try:
            loaded: Callable[[str], Codec] = point.load()
        except Exception as error:  # third-party code may fail in any way
            raise ConfigError(f"codec {name!r} can't be loaded: {error}") from error
        return loaded
    raise ConfigError(f"unknown codec {name!r}; known are {', '.join(CODECS)}")
