"""Topology documents: YAML or JSON to a link graph, and back."""

from trainmesh.topology.document.format import (
    MAX_BYTES,
    dump,
    load,
    load_file,
    load_file_with_timeline,
)
from trainmesh.topology.document.timeline import LinkChange

__all__ = ["MAX_BYTES", "LinkChange", "dump", "load", "load_file", "load_file_with_timeline"]
