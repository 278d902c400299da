"""Finds out whether every rank of the job takes part, without a collective of ours.

A rank may lack trainmesh, have another version of it or other settings, or fail to make a group. In
a collective the others would wait for it, or pair ours with one of the training's own. So each rank
leaves marks in the job's store *before* a collective that the training makes anyway, and reads them
*after* it: by then the marks of all ranks are there, and every rank reads the same. The store may
still hold the marks of earlier processes (torchrun keeps it when it restarts them), so rank 0 first
draws a number for this start, under which all other marks are left. The group for agreement is made
beside the training, on a thread, and comes into use at the same step on every rank. Until then, and
if anything is missing, the job runs native.
"""

from __future__ import annotations

import atexit
import secrets
import threading
import weakref
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

import trainmesh
from trainmesh.hooks.ending import PREFIX
from trainmesh.hooks.groups import gloo_devices, small_gloo_group, timeout_of

__all__ = ["Handshake", "World", "current", "leave_all"]

CONNECT = timedelta(seconds=30)
"""All ranks begin to connect at the same step; only a lost one takes longer."""
DENSE_LOOKS = 32
"""How many looks at the marks follow each other closely; after them only one in so many, up to the
last."""
LAST_LOOK = 10_000
"""If a rank has not made its group after so many looks, it never will, and is given up."""
_LIKE_THIS = f"trainmesh {trainmesh.__version__} with the same settings as this one"
FAILED = 1 << 32
"""Added to a counter by a rank that could not make the group; 1 by one that could."""


class World:
    """One life of the job's default process group, as this rank sees it.

    Attributes:
        channel: The gloo group of all ranks for agreement; None until all ranks have it.
        number: What rank 0 has drawn for it, as in a Hello; 0 until all ranks are known to be
            there.
        is_settled: Whether it is known if there will be a channel. why: Why there is no channel,
        once that is settled.
    """

    def __init__(self, group: dist.ProcessGroup, store: Store, life: int) -> None:
        self.rank = group.rank()
        self.size = group.size()
        self.timeout = timeout_of(group) or CONNECT
        self.devices = gloo_devices(group)
        self.channel: dist.ProcessGroup | None = None
        self.number = 0
        self.is_settled = False
        self.why = ""
        # A connection of our own: the job's may be held by a thread of the script that waits.
        self.store = PrefixStore(f"trainmesh/{life}", _connection(store))
        self._num_handshakes = 0

    def next_number(self) -> int:
        """The next module's whose handshake begins, the same on every rank: modules that span
        the job begin to reduce in the same order everywhere."""
        self._num_handshakes += 1
        return self._num_handshakes

    def settle(self, channel: dist.ProcessGroup | None, why: str = "") -> None:
        self.channel, self.is_settled, self.why = channel, True, why

    def leave(self) -> None:
        """Agreement failed on this rank; closing the sockets tells the others at once."""
        self.settle(None, "agreement broke")


class Handshake:
    """One module's steps up to a channel. ``gap``: after so many steps of the module every rank
    of the job is known to have begun the first of them."""

    def __init__(self, world: World, settings: str, gap: int) -> None:
        self._world = world
        self._gap = gap
        self._step = -1
        self._marks = f"{world.next_number()}/{trainmesh.__version__}/{settings}"
        self._connecting: _Connecting | None = None
        self._is_told = False
        self._num_ready = 0
        self._number = 0

    def begin_step(self, device: torch.device) -> None:
        """Go on with it; on return the world may be settled.

        Raises:
            RuntimeError: the store can't be reached.
        """
        self._step += 1
        number, rest = divmod(self._step, self._gap)
        if rest:
            return
        if number == 0:
            if self._world.rank == 0:
                self._world.store.set(f"{self._marks}/world", str(secrets.randbits(62) + 1))
        elif number == 1:
            self._join(device)
        elif number == 2:
            self._see_who_is_here(device)
        elif self._connecting is not None and _is_look(number):
            self._look(self._connecting, number, device)

    def close(self) -> None:
        """The world is settled, perhaps by another module."""
        if self._connecting is not None:
            self._connecting.abandon()

    def _join(self, device: torch.device) -> None:
        _wait_for_collective(device)
        name = f"{self._marks}/world"
        if not self._world.store.check([name]):
            self._world.settle(None, f"rank 0 does not run {_LIKE_THIS}")
            return
        self._number = int(self._world.store.get(name))
        self._marks = f"{self._marks}/{self._number}"
        self._add("here", 1)

    def _see_who_is_here(self, device: torch.device) -> None:
        found = self._read("here", device)
        size = self._world.size
        if found == size:
            self._world.number = self._number
            self._connecting = _Connecting(self._world, self._marks)
            return
        self._world.settle(None, f"{found} of {size} ranks run {_LIKE_THIS}")

    def _look(self, connecting: _Connecting, number: int, device: torch.device) -> None:
        if not self._is_told and connecting.is_over:
            self._is_told = True
            self._add(f"ready{number}", 1 if connecting.group is not None else FAILED)
        before = _look_before(number)
        if before > 1:
            self._num_ready += self._read(f"ready{before}", device)
        if self._num_ready == self._world.size:
            self._world.settle(connecting.group)
        elif self._num_ready >= FAILED or number >= LAST_LOOK:
            why = "not every rank could connect to the others"
            self._world.settle(None, why + (f": {connecting.error}" if connecting.error else ""))

    def _add(self, mark: str, amount: int) -> None:
        self._world.store.add(f"{self._marks}/{mark}", amount)

    def _read(self, mark: str, device: torch.device) -> int:
        _wait_for_collective(device)
        return self._world.store.add(f"{self._marks}/{mark}", 0)


def _wait_for_collective(device: torch.device) -> None:
    """The collective before which the marks were left, and which may only have been enqueued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _connection(store: Any) -> Store:
    """One more to the same store."""
    return cast(Store, store.clone())


def _is_look(number: int) -> bool:
    return number <= DENSE_LOOKS or number % DENSE_LOOKS == 0


def _look_before(number: int) -> int:
    return number - 1 if number <= DENSE_LOOKS else number - DENSE_LOOKS


class _Connecting:
    """Makes the channel on a thread."""

    def __init__(self, world: World, name: str) -> None:
        self.group: dist.ProcessGroup | None = None
        self.error: Exception | None = None
        self._is_abandoned = False
        self._world = world
        self._name = name
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}connect", daemon=True)
        # A thread that is within torch when the interpreter ends would abort the process.
        atexit.register(self._thread.join, CONNECT.total_seconds())
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def abandon(self) -> None:
        self._is_abandoned = True
        self.group = None

    def _run(self) -> None:
        try:
            # Again a connection of its own: this one waits, while the training leaves marks.
            store = PrefixStore(self._name, _connection(self._world.store))
            rank, size = self._world.rank, self._world.size
            group = small_gloo_group(store, rank, size, CONNECT, self._world.devices)
            group._set_default_timeout(self._world.timeout)
        except Exception as error:  # whatever it is, the marks tell the other ranks
            self.error = error
            return
        if not self._is_abandoned:
            self.group = cast(dist.ProcessGroup, group)  # it has what we call


_worlds: weakref.WeakKeyDictionary[dist.ProcessGroup, World] = weakref.WeakKeyDictionary()
_num_lives = 0


def current() -> World:
    """That of the default process group there is now.

    Raises:
        ValueError, RuntimeError, ...: there is none, or its store can't be reached.
    """
    global _num_lives
    group = dist.distributed_c10d._get_default_group()
    world = _worlds.get(group)
    if world is None:
        _num_lives += 1
        world = World(group, dist.distributed_c10d._get_default_store(), _num_lives)
        _worlds[group] = world
    return world


def leave_all() -> None:
    """The process ends: close the channels while the interpreter still works."""
    for world in list(_worlds.values()):
        world.leave()
