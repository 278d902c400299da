"""The state, in a running job, of what the user asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from trainmesh.coordinator.tuning import asked, refusals
from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Asked, Hint, Note

__all__ = ["AskedState"]


class AskedState:
    """Args: ``before``: what an earlier coordinator of the job has seen of it."""

    def __init__(self, settings: Settings, before: Iterable[Asked]) -> None:
        wanted = asked.asked_for(settings.only, settings.fusion_bytes, settings.compression)
        self.items = asked.with_past(wanted, before)
        self._told: tuple[Asked, ...] = ()

    def news(self) -> tuple[Asked, ...] | None:
        """All items, if one has changed since the last call; else None."""
        if self.items == self._told:
            return None
        self._told = self.items
        return self.items

    def begin_again(self) -> None:
        """The processes are started again."""
        self.items = asked.anew(self.items)

    def in_force(self, hint: Hint, step: int) -> None:
        """A rank runs ``hint`` from ``step`` on, and so do all ranks, because they have voted for
        it. The other ranks' reports may be lost, or come after the end."""
        self.items = asked.in_force(self.items, CommConfig.of(hint), step)

    def refused(self, note: Note, hint: Hint | None) -> None:
        """A rank can't carry out one ``hint`` (None: not known which), or no hint at all."""
        if note.kind == "rejected" and hint is not None:
            self.items = asked.refused(self.items, note.text, CommConfig.of(hint))
        elif note.kind == "hook_kept":
            why = f"the script's own communication hook {note.text} is kept"
            self.items = asked.refused(self.items, why)
        elif note.kind == "unplanned":
            self.items = asked.refused(self.items, note.text)

    def judged(self, replicas: Replicas, graph: LinkGraph, backend: str) -> list[str]:
        """A sentence, once each, for everything that turns out to be impossible on these links."""
        known = {"", *(item.refusal for item in self.items)}
        self.items = refusals.judged(self.items, replicas, graph, backend)
        return [asked.sentence(item) for item in self.items if item.refusal not in known]

    def unmet(self, num_steps: int) -> tuple[str, ...]:
        """The last words, in a job that ended after ``num_steps``."""
        return asked.unmet(self.items, num_steps)
