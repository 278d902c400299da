"""Topology documents: YAML or JSON to a link graph, and back."""

from trainmesh.topology.document.format import MAX_BYTES, dump, load, load_file

__all__ = ["MAX_BYTES", "dump", "load", "load_file"]
