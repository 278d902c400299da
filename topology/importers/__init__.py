"""Outside descriptions of a cluster, read into link-graph pieces. Text in, data out, no I/O.

Each module reads one format and gives a ``fragment.Fragment``: nodes and links that need not be
a whole graph yet. ``trainmesh.topology.merge`` puts fragments together. What each one takes and
assumes is in docs/importing.md.
"""
