"""The hints of one job: which one the store holds, which one the current world is to follow, and
the next epoch. Pure.

The store may lose a hint, keep one of an earlier start, or go back to an older one; ranks never go
back. So a new epoch is higher than every epoch that the store or a rank has ever shown, and a hint
that the store has lost is stored again.
"""

from __future__ import annotations

from msgspec.structs import replace

from trainmesh.types import MAX_INT, Hint

__all__ = ["Hints"]

MAX_HINTS = 8
"""How many hints are remembered: the one in force, and those that overtook it before all ranks had
switched."""


class Hints:
    """Hints that are seen in the store, and the epochs that ranks report."""

    def __init__(self, job: str) -> None:
        self.newest: Hint | None = None
        """The newest for the current world, whether or not the store still holds it."""
        self._job = job
        self._world: int | None = None
        self._stored: Hint | None = None
        self._known: dict[int, Hint] = {}
        self._highest = 0

    @property
    def next_epoch(self) -> int:
        """Above all epochs seen; more than MAX_INT if there is none left."""
        return self._highest + 1

    @property
    def are_used_up(self) -> bool:
        """Whether somebody has stored the last epoch that there is."""
        return self.next_epoch > MAX_INT

    def begin(self, world: int | None) -> bool:
        """``world`` is the current one now (None: none is).

        Returns:
            Whether the store holds a hint for it.
        """
        self._world, self.newest, self._known = world, None, {}
        return self._stored is not None and self._take(self._stored)

    def stored(self, hint: Hint | None) -> bool:
        """The store holds ``hint`` now, whoever put it there; None: nothing usable.

        Returns:
            Whether it is a new one for the current world.
        """
        self._stored = hint if hint is not None and hint.job == self._job else None
        if hint is None:
            return False
        self.see_epoch(hint.epoch)
        return self._stored is not None and self._take(hint)

    def see_epoch(self, epoch: int) -> None:
        """A rank, or the store, has shown ``epoch``."""
        self._highest = max(self._highest, epoch)

    def of_epoch(self, epoch: int) -> Hint | None:
        """The hint of ``epoch``, if it is known."""
        return self._known.get(epoch)

    def keep(self, in_force: int) -> None:
        """Forget the oldest, but not the one ``in_force``."""
        for old in sorted(self._known)[:-MAX_HINTS]:
            if old != in_force:
                del self._known[old]

    def to_store_again(self, in_force: int) -> Hint | None:
        """The newest hint if it must be stored again, else None. The store may have lost it, or the
        ranks, which run epoch ``in_force``, may be past it; then it gets a new epoch."""
        hint = self.newest
        if hint is None:
            return None
        if hint.epoch < in_force:
            return replace(hint, epoch=self.next_epoch)
        return None if self._stored == hint else hint

    def _take(self, hint: Hint) -> bool:
        if hint.world != self._world:
            return False
        if self.newest is not None and hint.epoch <= self.newest.epoch:
            return False
        self.newest = self._known[hint.epoch] = hint
        return True
