"""A pool's prefix cache: what its endpoints hold of a prompt, and whether to go by that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.learn.prefix import BLOCK_TOKENS, PrefixIndex, PrefixValue
from trainmesh.serving.decide.types import (
    RequestFacts,
)

__all__ = ["PrefixCacheModel"]

MAX_BITS: Final = 512
"""Beyond these the index begins anew, so that its masks stay small."""


class PrefixCacheModel:
    """Sets ``cached_tokens`` of endpoints, and learns from what attempts took."""

    __slots__ = ("_facts", "_held_tokens", "_index", "value")

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self.value = PrefixValue()
        self._facts: RequestFacts | None = None
        """Whose ``cached_tokens`` the endpoints have; None: all have 0."""
        self._held_tokens = 0
        """What the best of all has of it."""

    @property
    def set(self) -> bool:
        """Whether the endpoints' ``cached_tokens`` are of some request."""
        return self._facts is not None

    def new_bit(self) -> int:
        return self._index.new_bit()

    def forget(self, endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> None:
        """The endpoint's server went, and its cache with it."""
        endpoint.bit = self.new_bit()
        if self._index.bits > MAX_BITS + len(endpoints):
            self._index = PrefixIndex()
            for other in endpoints:
                other.bit = self.new_bit()

    def prepare(self, facts: RequestFacts, endpoints: Sequence[Endpoint]) -> None:
        """Makes ``cached_tokens`` of the endpoints those for this request."""
        if facts is self._facts:
            return
        found = self._index.find(facts.blocks) if facts.blocks else []
        if not found and self._facts is None:
            return
        for endpoint in endpoints:
            cached = 0
            for mask, blocks in found:
                if endpoint.bit & mask:
                    cached = min(blocks * BLOCK_TOKENS, facts.prompt_tokens)
            endpoint.cached_tokens = cached
        self._facts = facts if found else None
        self._held_tokens = found[-1][1] * BLOCK_TOKENS if found else 0

    def sent(self, endpoint: Endpoint, facts: RequestFacts, *, first: bool) -> None:
        """A prompt with blocks goes to the endpoint, after ``prepare`` for it; ``first``: it is
        no copy of another."""
        if first:
            held = self._held_tokens if facts is self._facts else 0
            self.value.asked(facts.prompt_tokens, min(held, facts.prompt_tokens))
        self._index.add(facts.blocks, endpoint.bit)

    def answered(self, attempt: Attempt, nominal_s: float, now_s: float) -> None:
        """``nominal_s``: the measured TTFT without the network."""
        self.value.answered(attempt.full_work_tokens, attempt.cached_tokens, nominal_s, now_s)
