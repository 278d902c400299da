"""A module moves from plan to plan, at the same step on every rank or not at all.

DDP and FSDP2 carry a plan out differently (``Carrier``: DDP's route, FSDP2's replicas), but switch
by the same protocol. If anything fails here on one rank, the plan in force stays on all of them: a
rank that can't go on closes its channel, which the others notice at their next round.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.agreement import Agreement
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.hooks.probing import PairProbes
from trainmesh.hooks.world import Handshake, World
from trainmesh.types import Hint

__all__ = ["Carrier", "Switching"]

Built = TypeVar("Built")


class Carrier(Protocol[Built]):
    """What carries plans out."""

    def check(self, hint: Hint) -> bool:
        """Whether this rank could carry ``hint`` out now; False: not yet.

        Raises:
            PlanError: it could not; the message says why.
        """
        ...

    def build(self, hint: Hint) -> Built:
        """Make everything that ``hint`` needs; all ranks do it together. May raise anything."""
        ...

    def put_in_force(self, built: Built) -> None:
        """Use it from now on, and release what it takes the place of."""
        ...

    def discard(self, built: Built) -> None:
        """Another rank could not build it."""
        ...


class Switching(Generic[Built]):
    """The plan in force for one module. ``world`` is None where no plan can be carried out.

    ``gap``: as in ``Handshake``.
    """

    def __init__(
        self, world: World | None, observer: ModuleObserver, carrier: Carrier[Built], gap: int
    ) -> None:
        self.epoch = 0
        self._world = world
        self._observer = observer
        self._carrier = carrier
        self._gap = gap
        self._handshake: Handshake | None = None
        self._agreement: Agreement | None = None
        self._probes: PairProbes | None = None
        self._step = 0
        self._rejected = 0
        """Epoch of the newest hint that all ranks held and some rank could not carry out."""
        self._unusable: Hint | None = None
        """The newest hint that only this rank refused; a good one of its epoch may follow."""

    @property
    def is_meeting(self) -> bool:
        """Whether it is not known yet if all ranks take part."""
        return self._world is not None and self._agreement is None

    def begin_step(
        self, step: int, device: torch.device, before: Future[torch.Tensor] | None = None
    ) -> None:
        """Switch if all ranks agreed to, and take part in the next round; never raises.

        Args:
            before: A sum of the step before that may not be there yet, as after a backward pass
                that the script gave up.
        """
        if self._world is None:
            return
        self._step = step
        try:
            if before is not None:
                before.wait()
            agreement = self._agreement or self._meet(self._world, device)
            if agreement is not None:
                self._agree(agreement)
        except Exception as error:  # a rank gone or silent, or a fault of ours: training goes on
            self._world.leave()
            now = "the plan in force stays" if self.epoch else "no plan is followed"
            self._end(f"agreement broke, {now}: {error}")

    def stop(self) -> None:
        """No plan any more: the script's own hook takes over, on all ranks."""
        self._world = self._agreement = None

    def _meet(self, world: World, device: torch.device) -> Agreement | None:
        """The agreement, as soon as all ranks are there."""
        if not world.is_settled:
            if self._handshake is None:
                self._handshake = Handshake(world, self._observer.settings, self._gap)
            self._handshake.begin_step(device)
            if world.number:
                self._observer.join_world(world.number)
            if not world.is_settled:
                return None
        if self._handshake is not None:
            self._handshake.close()
            self._handshake = None
        if world.channel is None:
            self._end(f"no plan is followed: {world.why}")
            return None
        observer = self._observer
        self._agreement = Agreement(world, observer.cadence, counts_steps=observer.is_first)
        return self._agreement

    def _end(self, why: str) -> None:
        self.stop()
        self._observer.warn(why, step=self._step)

    def _agree(self, agreement: Agreement) -> None:
        verdict = agreement.result()
        if verdict is not None and verdict.hint is not None:
            self._switch(agreement, verdict.hint)
        elif verdict is not None and verdict.split:
            self._observer.note_split(self._step)
        if agreement.is_round(self._step):
            agreement.propose(self._step, self._candidate())

    def _candidate(self) -> Hint | None:
        """The newest hint, if this rank could carry it out."""
        hint = self._observer.newest_hint()
        if hint is None or hint.epoch <= max(self.epoch, self._rejected):
            return None
        try:
            is_ready = self._carrier.check(hint)
        except PlanError as error:
            if hint is not self._unusable:
                self._unusable = hint
                self._note_rejected(hint, str(error))
            return None
        return hint if is_ready else None

    def _switch(self, agreement: Agreement, hint: Hint) -> None:
        """Every rank holds ``hint``: carry it out, if every rank can."""
        built: list[Built] = []
        try:
            built.append(self._carrier.build(hint))
        except Exception as error:  # a plug-in may fail in any way; the vote must still be cast
            self._note_rejected(hint, f"can't be carried out: {error}")
        if not agreement.vote(bool(built)):
            self._rejected = hint.epoch
            if built:
                self._note_rejected(hint, "another rank can't carry it out")
                self._carrier.discard(built[0])
            return
        self.epoch = hint.epoch
        self._carrier.put_in_force(built[0])
        self._note("switched", hint, hint.plan.algorithm)
        if hint.probe_bytes:
            self._probe(agreement.group, hint)

    def _probe(self, group: dist.ProcessGroup, hint: Hint) -> None:
        """All ranks have switched: measure the links between them, while nothing else runs."""
        if self._probes is None:
            self._probes = PairProbes(self._observer.node)
        for pair in self._probes.measure(group, hint.epoch, hint.probe_bytes):
            self._observer.pair(pair)

    def _note_rejected(self, hint: Hint, why: str) -> None:
        self._note("rejected", hint, f"plan {hint.plan.algorithm} of epoch {hint.epoch}: {why}")

    def _note(self, kind: str, hint: Hint, text: str) -> None:
        self._observer.note(kind, text, step=self._step, epoch=hint.epoch)
