"""What one rank does in a plan's trees."""

from itertools import pairwise

from trainmesh.hooks.executors.trees import PeerStream, PieceLayout, hops, parts
from trainmesh.plan.schedule import trees
from trainmesh.types import Hop, Plan, Tree

SLOW = Plan(  # rank 3 is slow: it is next to the root of one tree, and the root of the other
    algorithm="hierarchical",
    world_size=4,
    order=(0, 1, 2, 3),
    trees=(
        Tree(3, 0.5, (Hop(2, 1), Hop(1, 0), Hop(0, 3)), (Hop(3, 0), Hop(0, 1), Hop(1, 2))),
        Tree(0, 0.5, (Hop(2, 1), Hop(1, 0), Hop(3, 0)), (Hop(0, 3), Hop(0, 1), Hop(1, 2))),
    ),
)


def test_all_trees_progress_alike_on_a_lane() -> None:
    """A lane once took nearly all pieces of one tree before the first one of the other, which
    arrived meanwhile and waited."""
    layout = PieceLayout.of(SLOW.trees, 1, 1000, 10)
    for stream in (PeerStream(0, is_up=False), PeerStream(2, is_up=True)):
        items = layout.expected[stream]
        assert len(items) == 100
        ahead = 0
        for item in items:
            ahead += 1 if item.tree else -1
            assert abs(ahead) <= 4  # the ways of the two differ by two hops
        for number in range(2):
            pieces = [item.piece for item in items if item.tree == number]
            assert pieces == list(range(50))


def test_pieces_of_unequal_trees_come_in_proportion() -> None:
    chain = (Hop(2, 1), Hop(1, 0)), (Hop(0, 1), Hop(1, 2))
    found = (Tree(0, 0.8, *chain), Tree(0, 0.2, *chain))
    items = PieceLayout.of(found, 0, 1000, 10).expected[PeerStream(1, is_up=True)]
    small = [place for place, item in enumerate(items) if item.tree == 1]
    assert {b - a for a, b in pairwise(small)} == {5}


def test_hops_come_after_those_they_wait_for() -> None:
    for plan in (
        SLOW,
        Plan(algorithm="sharded", world_size=3, order=(0, 1, 2), shares=(0.5, 0.5, 0.0)),
    ):
        for tree in trees(plan) if plan is not SLOW else plan.trees:
            brought: dict[int, int] = {}
            for src, dst, depth, is_up in hops(tree):
                assert depth >= brought.get(src, 0)
                brought[dst] = max(brought.get(dst, 0), depth + 1)
                assert is_up == (Hop(src, dst) in tree.up)


def test_a_childs_lag_is_how_long_it_waits_for_the_others() -> None:
    up = (Hop(3, 2), Hop(2, 1), Hop(1, 0), Hop(4, 0))
    tree = Tree(0, 1.0, up, tuple(Hop(hop.dst, hop.src) for hop in reversed(up)))
    (root,) = parts((tree,), 0)
    assert dict(zip(root.children, root.lags, strict=True)) == {1: 1, 4: 3}
