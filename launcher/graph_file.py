"""Write a link graph as a topology file; its name says whether as JSON or YAML."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from trainmesh.launcher.output_file import write_output
from trainmesh.topology.document import dump, load
from trainmesh.topology.graph import LinkGraph

__all__ = ["SUFFIXES", "write_graph"]

SUFFIXES = (".yaml", ".yml", ".json")


def write_graph(graph: LinkGraph, path: Path | None, *, what: str) -> None:
    """Write ``graph`` to ``path``, or to standard output.

    Args:
        what: The flag that named the file.

    Raises:
        ConfigError: it can't be written.
        GraphError: the document could not be read again.
    """
    document = dump(graph)
    if path is not None and path.suffix.lower() == ".json":
        text = json.dumps(document, indent=1) + "\n"
    else:
        text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=200)
    load(text, source=what)  # what is written can be read, or is not written
    if path is None:
        sys.stdout.write(text)
    else:
        write_output(path, text.encode(), what=what)
