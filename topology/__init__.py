"""Graph in, plan out: the link graph, the bound, the planners, the proof. No torch, no I/O.

Reading order: ``graph``, ``routes``, ``bounds``, ``cost``, ``planners``, ``validate``,
``planner``, ``answer``. Graphs come from ``document``, ``importers`` and ``measure``.

A *link* is a directed edge with alpha (s), bandwidth (bytes/s) and a class. A *cut* is a set of
nodes that separates some rank from another; what leaves it bounds every all-reduce. *bound* is
the least time any algorithm needs; *efficiency* is bound / predicted time, in (0, 1].
"""
