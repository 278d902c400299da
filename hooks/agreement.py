"""All ranks switch at the same step, or none does.

Every ``cadence`` steps, and sooner in the first of them (``is_round``), each rank contributes
(epoch, digest, -epoch, -digest) of the newest hint that it has checked and that is due to one MAX
all-reduce on the world's channel; a rank without one contributes zeros. The result is read at the
next step's first bucket, the same step on every rank. If the maxima equal the negated minima, every
rank holds the same hint, to the last field that changes what is sent. No rank ever skips its turn,
so a rank that has not seen the hint costs a delay and never a hang.

Carrying the hint out (making process groups) may still fail on one rank, so it is followed by a
vote: only if every rank is ready does any rank use it.
(KungFu, OSDI 2020, agrees on digests like this; etcd's raft calls the due hint a proposal.)
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from trainmesh.hooks.world import World
from trainmesh.types import Hint
from trainmesh.wire import hint_digest

__all__ = ["Agreement", "AgreementResult", "is_round"]


def is_round(step: int, cadence: int) -> bool:
    """Whether a round of agreement begins at ``step``: at every multiple of ``cadence``, and before
    the first one at 1, 2, 4, 8, ..., so that the launch's own settings need not wait. It depends on
    the step alone, and so is the same on every rank."""
    return step % cadence == 0 or (step < cadence and step & (step - 1) == 0)


class AgreementResult:
    """Outcome of one round. ``hint`` is set if all ranks hold it; ``split`` says that some rank
    had a hint that another one lacked or had differently."""

    __slots__ = ("hint", "split")

    def __init__(self, hint: Hint | None = None, *, split: bool = False) -> None:
        self.hint = hint
        self.split = split


class Agreement:
    """The rounds of one module on one rank. The modules of a world share its channel: they begin
    their steps in the same order on every rank.

    ``counts_steps``: the module's steps are those that a hint's ``effective_step`` counts. To
    another one, which may have been made much later, every hint is due at once.
    """

    def __init__(self, world: World, cadence: int, *, counts_steps: bool = True) -> None:
        self._world = world
        self._counts_steps = counts_steps
        self._cadence = cadence
        self._round: tuple[dist.Work, torch.Tensor, Hint | None] | None = None

    @property
    def group(self) -> dist.ProcessGroup:
        """The world's channel. Not to be kept: its sockets close with the last reference to it.

        Raises:
            RuntimeError: this rank has left it.
        """
        if self._world.channel is None:
            raise RuntimeError(self._world.why)
        return self._world.channel

    def is_round(self, step: int) -> bool:
        return is_round(step, self._cadence)

    def propose(self, step: int, candidate: Hint | None) -> None:
        """Take part in the round that ``step`` has; returns at once."""
        if candidate is not None and self._counts_steps and candidate.effective_step > step:
            candidate = None
        own = (candidate.epoch, hint_digest(candidate)) if candidate is not None else (0, 0)
        vector = torch.tensor([*own, -own[0], -own[1]], dtype=torch.int64)
        work = self.group.allreduce([vector], dist.ReduceOp.MAX)
        self._round = (work, vector, candidate)

    def result(self) -> AgreementResult | None:
        """The verdict of the round that is under way, the same on every rank; None without one.

        Raises:
            RuntimeError: a rank is gone or has left, or the group timed out.
        """
        if self._round is None:
            return None
        (work, vector, candidate), self._round = self._round, None
        work.wait()
        highest_epoch, highest_digest, lowest_epoch, lowest_digest = vector.tolist()
        if highest_epoch == -lowest_epoch and highest_digest == -lowest_digest:
            return AgreementResult(candidate)
        return AgreementResult(split=True)

    def vote(self, ready: bool) -> bool:
        """True if every rank is ready. Blocks until all have voted."""
        ballot = torch.tensor([int(ready)], dtype=torch.int64)
        self.group.allreduce([ballot], dist.ReduceOp.MIN).wait()
        return bool(ballot.item())
