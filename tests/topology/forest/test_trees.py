"""The proof of a forest finds every fault."""

from fractions import Fraction

import pytest

from trainmesh.errors import PlanError
from trainmesh.topology.forest import OutTree, Pair, check, loads, reversed_hops
from trainmesh.types import Hop

RANKS = ["a", "b", "c"]
CAPACITIES = {
    (pair[0], pair[1]): Fraction(1)
    for pair in ["as", "sa", "bs", "sb", "cs", "sc", "st", "ts", "tc", "ab", "ba"]
}
DOWN = (Hop(0, 1), Hop(1, 2, ("s", "t")))
UP = (Hop(2, 1, ("s",)), Hop(1, 0))


def test_good_trees_and_their_loads() -> None:
    trees: list[OutTree | Pair] = [
        OutTree(0, Fraction(1, 2), DOWN),
        Pair(0, Fraction(1, 3), UP, DOWN),
    ]
    check(RANKS, CAPACITIES, trees)
    assert loads(RANKS, trees) == {
        ("a", "b"): Fraction(5, 6),
        ("b", "s"): Fraction(5, 6),
        ("s", "t"): Fraction(5, 6),
        ("t", "c"): Fraction(5, 6),
        ("c", "s"): Fraction(1, 3),
        ("s", "b"): Fraction(1, 3),
        ("b", "a"): Fraction(1, 3),
    }
    assert reversed_hops(DOWN) == (Hop(2, 1, ("t", "s")), Hop(1, 0))


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        (OutTree(0, 0, DOWN), "weight 0 must be above 0"),
        (OutTree(0, float("nan"), DOWN), "weight nan"),
        (OutTree(0, 1, DOWN[:1]), r"ranks \[0, 1\] are not 0..2"),
        (OutTree(0, 1, DOWN[::-1]), "hop 1->2 sends what has not come yet"),
        (OutTree(0, 1, (*DOWN, Hop(2, 1, ("s",)))), "rank 1 is reached twice"),
        (OutTree(1, 1, (Hop(1, 0), Hop(0, 2))), "needs link a->c"),
        (OutTree(0, 1, (Hop(0, 1), Hop(1, 2, ("u",)))), "needs link b->u"),
        (OutTree(0, 1, (Hop(0, 1), Hop(0, 2, ("b", "s")))), "goes through rank b"),
        (OutTree(0, 1, (Hop(0, 1), Hop(1, 2, ("s", "t", "s")))), "goes through a switch twice"),
        (OutTree(0, Fraction(10**30 + 1, 10**30), DOWN), "link a->b: load .* above capacity 1"),
        (Pair(0, 1, UP[::-1], DOWN), "hop 1->2 sends what has not come yet"),
        (Pair(0, 1, UP[1:], DOWN), "are not 0..2"),
        (Pair(1, 1, UP, DOWN), "sends what has not come yet"),
    ],
)
def test_faults(tree: OutTree | Pair, fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        check(RANKS, CAPACITIES, [tree])


def test_loads_of_all_trees_add_up() -> None:
    trees = [OutTree(0, Fraction(1, 2), DOWN)] * 2
    check(RANKS, CAPACITIES, trees)
    with pytest.raises(PlanError, match="above capacity"):
        check(RANKS, CAPACITIES, [*trees, OutTree(0, Fraction(1, 10**9), DOWN)])
