"""Spanning-tree packing: the trees that carry a collective at the largest rate a graph allows.

Pure graph algorithms on rank names and capacities, with no latencies and no plans.
"""

from trainmesh.topology.forest.allgather import Forest, allgather_forest
from trainmesh.topology.forest.allreduce import PairForest, allreduce_forest
from trainmesh.topology.forest.trees import OutTree, Pair, check, loads, reversed_hops

__all__ = [
    "Forest",
    "OutTree",
    "Pair",
    "PairForest",
    "allgather_forest",
    "allreduce_forest",
    "check",
    "loads",
    "reversed_hops",
]
