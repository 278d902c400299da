"""Which start of the processes is the current one: every change of size, late words, bounds."""

import random
from collections import deque
from collections.abc import Iterator

import pytest

from trainmesh.coordinator.worlds import MAX_FORMING, MAX_OVER, Worlds, WorldStart
from trainmesh.types import Hello


def hello(world: int, size: int, rank: int, node: str, pid: int = 0) -> Hello:
    return Hello(
        rank=rank, local_rank=0, world_size=size, node_rank=0, node=node, pid=pid or 100 * world,
        clock=node, backend="gloo", device="cpu", world=world,
    )  # fmt: skip


def start(world: int, *nodes: str) -> list[Hello]:
    """One rank on each of ``nodes``, in their order."""
    return [hello(world, len(nodes), rank, node) for rank, node in enumerate(nodes)]


def current(worlds: Worlds) -> tuple[int, list[str]] | None:
    if worlds.current is None:
        return None
    return worlds.current.number, [one.node for _, one in sorted(worlds.current.hellos.items())]


CHANGES = [
    ("abcd", "ab"),
    ("ab", "abcd"),
    ("a", "ab"),
    ("ab", "a"),
    ("ab", "b"),
    ("ab", "ac"),  # a node is lost and replaced
    ("ab", "cd"),
    ("ab", "ba"),  # ranks are renumbered
    ("ab", "ab"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize("seed", range(6))
def test_every_change_of_the_world_is_followed(before: str, after: str, seed: int) -> None:
    """Each node's words come in their order; those of different nodes in any."""
    old, new = start(1, *before), start(2, *after)
    queues = {node: deque(one for one in (*old, *new) if one.node == node) for node in "abcd"}
    draw, worlds = random.Random(seed), Worlds()
    for one in old:
        worlds.greet(one)
    assert current(worlds) == (1, list(before))
    while nodes := [node for node, waiting in queues.items() if waiting]:
        worlds.greet(queues[draw.choice(nodes)].popleft())
        if worlds.current is not None:
            numbers = {one.world for one in worlds.current.hellos.values()}
            assert numbers == {worlds.current.number}
    for one in new:  # which go on speaking
        worlds.greet(one)
    assert current(worlds) == (2, list(after))
    for one in old:  # still later
        assert not worlds.greet(one) or one.node not in after
    for one in new:
        worlds.greet(one)
    assert current(worlds) == (2, list(after))


def test_a_world_goes_on_while_another_one_waits_for_its_ranks() -> None:
    worlds = Worlds()
    for one in start(1, "a", "b"):
        worlds.greet(one)
    worlds.greet(hello(2, 3, 2, "c"))
    assert current(worlds) == (1, ["a", "b"])
    assert worlds.greet(hello(1, 2, 0, "a"))
    worlds.greet(hello(2, 3, 0, "a"))
    assert current(worlds) is None
    assert worlds.newest is not None
    assert worlds.newest.number == 2
    assert not worlds.greet(hello(1, 2, 1, "b"))
    worlds.greet(hello(2, 3, 1, "b"))
    assert current(worlds) == (2, ["a", "b", "c"])


def world_of(worlds: Worlds) -> WorldStart | None:
    return worlds.current


def test_without_a_number_another_process_or_size_is_another_world() -> None:
    worlds = Worlds()
    for rank in range(2):
        worlds.greet(hello(0, 2, rank, "a", pid=10 + rank))
    first = worlds.current
    worlds.greet(hello(0, 2, 0, "a", pid=20))
    assert world_of(worlds) is None
    worlds.greet(hello(0, 2, 1, "a", pid=21))
    assert world_of(worlds) not in (None, first)
    worlds.greet(hello(0, 1, 0, "a", pid=30))
    assert worlds.current is not None
    assert worlds.current.size == 1
    for rank in range(2):
        worlds.greet(hello(0, 2, rank, "a", pid=40 + rank))
    assert worlds.current is not None
    assert worlds.current.size == 2


def test_ranks_learn_their_number_each_in_its_own_time() -> None:
    """What a rank has sent before it knew the number doesn't end the world that has it."""
    worlds = Worlds()
    early = [hello(0, 3, rank, "a", pid=10 + rank) for rank in range(3)]
    known = [hello(7, 3, rank, "a", pid=10 + rank) for rank in range(3)]
    for one in (*early, known[0], early[1], known[1], early[2], early[0], known[2], early[1]):
        worlds.greet(one)
    assert current(worlds) == (7, ["a", "a", "a"])
    for rank in range(3):  # others than those, who know no number: a new start
        worlds.greet(hello(0, 3, rank, "a", pid=20 + rank))
    assert current(worlds) == (0, ["a", "a", "a"])


def test_a_rank_beyond_its_world_is_no_rank() -> None:
    worlds = Worlds()
    assert not worlds.greet(hello(1, 2, 2, "a"))
    assert worlds.newest is None


def held(value: object) -> Iterator[int]:
    """Sizes of all containers of an object."""
    for one in vars(value).values():
        if hasattr(one, "__len__"):
            yield len(one)


def test_starts_without_end_take_bounded_room() -> None:
    worlds = Worlds()
    for number in range(1, 3 * MAX_OVER):
        worlds.greet(hello(number, 2, 0, "a"))
        worlds.greet(hello(10**6 + number, 2, 1, f"late{number % 10}"))
    assert max(held(worlds)) <= max(MAX_OVER, MAX_FORMING + 1)
