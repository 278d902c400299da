"""Which endpoint probably holds which prompt's prefix in its cache, and whether that pays.

A prompt is a chain of hashes, each of a block and all before it, so one dictionary from hash to
the set of endpoints that were sent it is a radix tree without nodes. The set is an int's bits; an
endpoint whose cache is lost takes a new bit, and its old ones fade with the blocks that bear them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import log
from typing import Final

from trainmesh.serving.decide.learn.estimate import Shape

__all__ = ["BLOCK_TOKENS", "PrefixIndex", "PrefixValue"]

BLOCK_TOKENS: Final = 128
"""Tokens of a block of 512 bytes, at four bytes a token."""
MAX_BLOCKS: Final = 1 << 16


class PrefixIndex:
    """Blocks that endpoints were sent lately, at most ``max_blocks``; the longest unused go."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._max_blocks = max_blocks
        self.bits = 0
        """Those given out."""

    def __len__(self) -> int:
        return len(self._blocks)

    def new_bit(self) -> int:
        """A mask with one bit that no block has."""
        bit = 1 << self.bits
        self.bits += 1
        return bit

    def add(self, blocks: Sequence[int], bit: int) -> None:
        """Notes that the endpoint of ``bit`` was sent these blocks."""
        held = self._blocks
        for block in reversed(blocks):  # the first one last: a chain loses its end before its head
            held[block] = held.get(block, 0) | bit
            held.move_to_end(block)
        while len(held) > self._max_blocks:
            held.popitem(last=False)

    def find(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """``(mask, n)``: the endpoints in ``mask`` hold the first ``n`` blocks and no more."""
        found: list[tuple[int, int]] = []
        held = self._blocks
        alive = -1
        depth = 0
        for block in blocks:
            mask = held.get(block, 0) & alive
            if mask != alive:
                if depth:
                    found.append((alive & ~mask, depth))
                alive = mask
                if not mask:
                    return found
            depth += 1
        if depth:
            found.append((alive, depth))
        return found


MIN_REUSE: Final = 0.05
"""Share of prompt tokens that must have been seen before."""
MIN_GAIN: Final = 0.9
"""Going by prompts' full lengths must miss by this much less to be believed."""
MIN_SAMPLES: Final = 20.0
KEEP_A_SECOND: Final = 0.97
"""Half-life of 23 s."""


class PrefixValue:
    """Whether sending a prompt where its prefix is makes its first byte come sooner.

    It does not where nothing is asked twice, nor where engines keep no cache: there it costs
    balance (NVIDIA/aicr#1374). So TTFTs are predicted twice, once with the tokens that should be
    cached and once without, and the prediction that misses by less is believed.
    """

    __slots__ = (
        "_forgot_s",
        "_full",
        "_misses",
        "_reused",
        "_samples",
        "_seen",
        "_uncached",
        "pays",
    )

    def __init__(self) -> None:
        self.pays = True  # until it is refuted, or nothing is asked twice
        self._seen = 0.0
        self._reused = 0.0
        self._full = Shape()
        self._uncached = Shape()
        self._misses = [0.0, 0.0]
        """Sums of squared logarithms of the measured over the predicted: full, uncached."""
        self._samples = 0.0
        self._forgot_s = 0.0

    @property
    def prefix_cache(self) -> float:
        """Share of prompt tokens that some endpoint had been sent before, lately."""
        return self._reused / self._seen if self._seen else 0.0

    def asked(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt of which the best endpoint holds ``cached_tokens``."""
        self._seen += prompt_tokens
        self._reused += cached_tokens

    def answered(self, work: float, cached_tokens: int, nominal_s: float, now_s: float) -> None:
        """A measured TTFT; ``work``: with the whole prompt, ``cached_tokens`` included."""
        uncached = work - cached_tokens
        if self._samples:
            self._misses[0] += log(nominal_s / self._full.predict_s(work)) ** 2
            self._misses[1] += log(nominal_s / self._uncached.predict_s(uncached)) ** 2
        self._samples += 1
        self._full.add(work, nominal_s, now_s)
        self._uncached.add(uncached, nominal_s, now_s)

    def tick(self, now_s: float) -> None:
        """Forgets and judges again, once a second."""
        if now_s - self._forgot_s < 1.0:
            return
        self._forgot_s = now_s
        refuted = self._samples >= MIN_SAMPLES and self._misses[0] < MIN_GAIN * self._misses[1]
        self.pays = self.prefix_cache >= MIN_REUSE and not refuted
        self._seen *= KEEP_A_SECOND
        self._reused *= KEEP_A_SECOND
        self._samples *= KEEP_A_SECOND
        self._misses = [KEEP_A_SECOND * miss for miss in self._misses]
