"""Carries out trees over gloo's point-to-point messages, piece by piece.

Every peer stream (one peer, one direction) has a thread that waits for its messages, adds or stores
them, and sends on what has become ready; gloo's own threads move the bytes meanwhile. Receives are
posted ahead of the data, because gloo sends only after the receiver's notification. Those
notifications don't queue behind our own bulk data, because messages to higher and to lower ranks
have separate groups (sockets).

The contributions of a tree's children are added in a fixed order, whichever arrives first, and all
ranks store the root's sum, so results are the same on every rank and in every run.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import islice

import torch
import torch.distributed as dist
from torch.futures import Future

from trainmesh.hooks.ending import PREFIX
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.executors.promise import Promise
from trainmesh.hooks.executors.trees import PeerStream, PieceId, PieceLayout, TreeRole, parts
from trainmesh.hooks.timing import Mark
from trainmesh.plan.schedule import trees
from trainmesh.types import Plan

__all__ = ["PipelinedExecutor"]

AHEAD_BYTES = 500_000
"""As ``AHEAD_PIECES``, where pieces are small."""
AHEAD_PIECES = 4
"""How many receives a stream has posted ahead: enough for the notifications to overtake the data in
flight, and not so many that messages which nobody waits for yet fill the queues of the links."""
MIN_PIECE_BYTES = 128 * 1024
"""Below, the fixed cost of a message (some 100 us of Python) counts for more than what a longer
pipeline saves."""
MAX_PIECE_BYTES = 512 * 1024
"""A plan of one chunk still overlaps adding with sending."""
MAX_LAYOUTS = 64
"""Of bucket sizes that are remembered: more are of models that went."""
TAGS = 2**31
"""Gloo's tags are 32 bits with a sign."""
END_S = 1.0
"""For all threads together: after an error one may wait for a rank that is lost."""
LOOK_S = 0.5
"""Between two looks whether the bucket has failed, while all its storage is in use."""
GRACE_S = 0.3
"""How long to wait, after an error, for others that say more: all time out at about the same
time."""


class PipelinedExecutor:
    """See the module. Buffers are CPU tensors of any dtype that can be added."""

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        self._group_factory = group_factory
        self._trees = trees(plan)
        self._parts = parts(self._trees, group_factory.rank)
        self._piece_bytes = _piece_bytes(plan)
        self._layouts: dict[tuple[int, int], PieceLayout] = {}
        self._next_tag = 0
        # Messages to higher ranks have the first group, those to lower ranks the second.
        everyone = range(group_factory.world_size)
        self._groups = [group_factory.new_group(everyone), group_factory.new_group(everyone)]
        window = max(AHEAD_PIECES, AHEAD_BYTES // self._piece_bytes)
        self._streams = {
            stream: _Receiver(
                stream, self._parts, self._group(stream.src, group_factory.rank), self, window
            )
            for stream in sorted({stream for part in self._parts for stream in part.streams()})
        }
        self._ender = _Completer()

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        layout = self._layout(buffer)
        bucket = _Bucket(buffer, mark, layout, layout.num_events(self._parts), self._next_tag)
        self._next_tag = (self._next_tag + 2 * len(layout.sizes)) % TAGS
        for stream in layout.expected:
            self._streams[stream].take(bucket)
        # What comes back must not be awaited before it can be asked for: receivers first.
        try:
            for item in layout.by_piece(is_up=True):
                part = self._parts[item.tree]
                if not part.children:
                    self.reduced(bucket, item, part)
        except _UndeliveredError as error:
            bucket.fail(str(error))
        self._ender.take(bucket)
        return bucket.future

    def close(self) -> None:
        for worker in (*self._streams.values(), self._ender):
            worker.stop()
        until_s = time.monotonic() + END_S
        for worker in (*self._streams.values(), self._ender):
            worker.join(until_s)
        self._group_factory.release(*self._groups)
        self._streams, self._groups = {}, []  # a stream holds this executor and its groups

    def reduced(self, bucket: _Bucket, item: PieceId, part: TreeRole) -> None:
        """The piece has the contributions of this rank and of all below it."""
        if part.parent is None:
            self.complete(bucket, item, part)
        else:
            self._send(bucket, item, part.parent)

    def complete(self, bucket: _Bucket, item: PieceId, part: TreeRole) -> None:
        """The piece is the sum over all ranks."""
        for target in part.targets:
            self._send(bucket, item._replace(is_up=False), target)
        bucket.count_down()

    def _send(self, bucket: _Bucket, item: PieceId, dst: int) -> None:
        group = self._group(self._group_factory.rank, dst)
        try:
            work = group.send([bucket.piece(item)], dst, bucket.tag(item))
        except RuntimeError as error:  # the connection is known to be closed
            raise _UndeliveredError(dst, error) from error
        bucket.sends[item.tree, item.is_up].append((dst, work))
        bucket.count_down()

    def _group(self, src: int, dst: int) -> dist.ProcessGroup:
        group = self._groups[src > dst]
        assert group is not None  # noqa: S101 - every rank is in it
        return group

    def _layout(self, buffer: torch.Tensor) -> PieceLayout:
        key = (buffer.numel(), buffer.element_size())
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            piece_numel = max(1, self._piece_bytes // buffer.element_size())
            layout = PieceLayout.of(
                self._trees, self._group_factory.rank, buffer.numel(), piece_numel
            )
            self._layouts[key] = layout
        return layout


class _UndeliveredError(RuntimeError):
    """A message could not be sent."""

    def __init__(self, dst: int, error: RuntimeError) -> None:
        super().__init__(f"rank {dst} took no more gradients: {_first_line(error)}")


class _Bucket:
    """One buffer on its way through the trees."""

    def __init__(
        self, buffer: torch.Tensor, mark: Mark, layout: PieceLayout, num_events: int, first_tag: int
    ) -> None:
        self._buffer = buffer
        self._mark = mark
        self._first_tag = first_tag
        self._pieces = torch.split(buffer, list(layout.sizes))
        self._missing = num_events
        self._promise = Promise(buffer.device)
        self.layout = layout
        self.adding = [threading.Lock() for _ in layout.first]
        self.early: dict[PieceId, dict[int, _Arrival]] = {}
        """What has arrived from children whose turn has not come."""
        self.turns: dict[PieceId, int] = {}
        self._lock = threading.Lock()
        self.sends: dict[tuple[int, bool], deque[tuple[int, dist.Work]]] = {
            (tree, is_up): deque() for tree in range(len(layout.first)) for is_up in (True, False)
        }
        """By tree and direction, what nobody has waited for yet. Each can be waited for once."""
        self._errors: list[tuple[int, str]] = []
        self.done = threading.Event()
        if not self._missing:
            self.done.set()

    @property
    def future(self) -> Future[torch.Tensor]:
        return self._promise.future

    def piece(self, item: PieceId) -> torch.Tensor:
        return self._pieces[self.layout.number(item)]

    def tag(self, item: PieceId) -> int:
        return (self._first_tag + 2 * self.layout.number(item) + item.is_up) % TAGS

    def wait_for_sends(self, tree: int, is_up: bool, *, left: int) -> None:
        """Until only so many are on their way.

        Raises:
            _UndeliveredError: one can't be sent.
        """
        sends = self.sends[tree, is_up]
        while len(sends) > left:
            try:
                dst, work = sends.popleft()
            except IndexError:  # another stream was quicker
                return
            try:
                work.wait()
            except RuntimeError as error:
                raise _UndeliveredError(dst, error) from error

    def count_down(self) -> None:
        """A message has been sent, or a piece is complete."""
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self.done.set()

    def fail(self, error: str, *, blame: int = 0) -> None:
        """``blame``: how sure it is that the rank that the error names is the one that failed."""
        with self._lock:
            self._errors.append((-blame, error))
            self.done.set()

    @property
    def error(self) -> str | None:
        """The error that most likely names the culprit; None if there is none."""
        return min(self._errors)[1] if self._errors else None

    def end(self) -> None:
        """Nothing reads or writes the buffer any more."""
        if (error := self.error) is not None:
            self._promise.break_(error)
            return
        self._mark.end()
        self._promise.keep(self._buffer)


class _Worker(ABC):
    """A thread that takes buckets in turn until it is stopped."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Bucket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}{name}", daemon=True)
        self._thread.start()

    def take(self, bucket: _Bucket) -> None:
        self._jobs.put(bucket)

    def stop(self) -> None:
        self._jobs.put(None)

    def join(self, until_s: float) -> None:
        self._thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self) -> None:
        while (bucket := self._jobs.get()) is not None:
            self._carry_out(bucket)

    @abstractmethod
    def _carry_out(self, bucket: _Bucket) -> None: ...


class _Completer(_Worker):
    """Completes buckets in their order, when nothing of them is on its way any more."""

    def __init__(self) -> None:
        super().__init__("end")

    def _carry_out(self, bucket: _Bucket) -> None:
        bucket.done.wait()  # the streams' messages time out, so this ends
        if bucket.error is not None:
            time.sleep(GRACE_S)
        for tree, is_up in bucket.sends:
            if bucket.error is not None:
                break
            try:
                bucket.wait_for_sends(tree, is_up, left=0)
            except _UndeliveredError as error:
                bucket.fail(str(error))
        bucket.end()


class _Arrival:
    """A received piece; ``storage`` goes back to the receiver's ``free`` when it has been added."""

    __slots__ = ("_free", "_storage", "value", "work")

    def __init__(
        self,
        value: torch.Tensor,
        work: dist.Work,
        storage: torch.Tensor | None = None,
        free: queue.SimpleQueue[torch.Tensor] | None = None,
    ) -> None:
        self.value = value
        self.work = work
        self._storage = storage
        self._free = free

    def release(self) -> None:
        if self._free is not None and self._storage is not None:
            self._free.put(self._storage)


class _Receiver(_Worker):
    """Receives the messages of one peer stream."""

    def __init__(
        self,
        stream: PeerStream,
        own: tuple[TreeRole, ...],
        group: dist.ProcessGroup,
        executor: PipelinedExecutor,
        window: int,
    ) -> None:
        self._stream = stream
        self._parts = own
        self._group = group
        self._executor = executor
        self._window = window
        self._error: str | None = None
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        for _ in range(window):
            self._free.put(torch.empty(0, dtype=torch.uint8))
        super().__init__(f"from {stream.src}")

    def _carry_out(self, bucket: _Bucket) -> None:
        if self._error is None:
            try:
                self._receive(bucket, iter(bucket.layout.expected[self._stream]))
            except _UndeliveredError as error:
                self._error = str(error)
            except RuntimeError as error:
                self._error = f"rank {self._stream.src} sends no gradients: {_first_line(error)}"
        if self._error is not None:
            # What comes down may be late because of any rank, what comes up only because of those
            # below; and who closes a connection has had an error itself.
            blame = self._stream.is_up + 2 * ("Timed out" in self._error)
            bucket.fail(self._error, blame=blame)

    def _receive(self, bucket: _Bucket, items: Iterator[PieceId]) -> None:
        posted = deque(self._post(bucket, item) for item in islice(items, self._window))
        while posted:
            item, arrival = posted.popleft()
            arrival.work.wait()
            part = self._parts[item.tree]
            if not item.is_up:
                self._executor.complete(bucket, item, part)
            elif self._add(bucket, item, arrival):
                self._executor.reduced(bucket, item, part)
            for following in islice(items, 1):
                self._hold_back(bucket, following)
                posted.append(self._post(bucket, following))

    def _hold_back(self, bucket: _Bucket, item: PieceId) -> None:
        """Wait until the messages that follow from ``item`` are not far behind: a tree that runs
        ahead takes bandwidth from messages that others wait for. The awaited message comes before
        ``item`` in the order of all messages (see PieceLayout), because its piece is earlier by
        more than the lag."""
        part = self._parts[item.tree]
        goes_up = item.is_up and part.parent is not None
        sends_per_piece = 1 if goes_up else len(part.targets)
        lag = part.lags[part.children.index(self._stream.src)] if item.is_up else 1
        bucket.wait_for_sends(item.tree, goes_up, left=sends_per_piece * max(AHEAD_PIECES, lag))

    def _post(self, bucket: _Bucket, item: PieceId) -> tuple[PieceId, _Arrival]:
        """Request ``item``: a sum goes directly to its place, a contribution into the scratch
        buffer."""
        piece, tag = bucket.piece(item), bucket.tag(item)
        if not item.is_up:
            return item, _Arrival(piece, self._group.recv([piece], self._stream.src, tag))
        storage = self._storage(bucket)
        if storage.numel() < piece.nbytes:
            storage = torch.empty(piece.nbytes, dtype=torch.uint8)
        value = storage[: piece.nbytes].view(piece.dtype)
        work = self._group.recv([value], self._stream.src, tag)
        return item, _Arrival(value, work, storage, self._free)

    def _storage(self, bucket: _Bucket) -> torch.Tensor:
        while bucket.error is None:
            try:
                return self._free.get(timeout=LOOK_S)
            except queue.Empty:
                continue  # all wait for the turn of another child, whose receiver may have failed
        raise RuntimeError(bucket.error)

    def _add(self, bucket: _Bucket, item: PieceId, arrival: _Arrival) -> bool:
        """Add what has arrived, and what it was waited for; True if all children have been."""
        piece, children = bucket.piece(item), bucket.layout.turns[item]
        if len(children) == 1:
            piece.add_(arrival.value)
            arrival.release()
            return True
        with bucket.adding[item.tree]:
            early = bucket.early.setdefault(item, {})
            early[self._stream.src] = arrival
            turn = bucket.turns.get(item, 0)
            while turn < len(children) and children[turn] in early:
                following = early.pop(children[turn])
                piece.add_(following.value)
                following.release()
                turn += 1
            bucket.turns[item] = turn
            return turn == len(children)


def _piece_bytes(plan: Plan) -> int:
    """What the plan's chunks are, for all bucket sizes."""
    if not plan.num_chunks or not plan.nbytes:
        return MIN_PIECE_BYTES
    largest = max(tree.share for tree in trees(plan))
    ideal = round(plan.nbytes * largest / plan.num_chunks)
    return max(MIN_PIECE_BYTES, min(MAX_PIECE_BYTES, ideal))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
