"""Compiles the data path of ``trainmesh serve`` with mypyc where TRAINMESH_COMPILE=1 is set.

All metadata is in pyproject.toml, and the same sources run either way: compiled, a request takes
less than half the CPU in Python (docs/serving.md). mypyc is part of mypy.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

COMPILED = {
    "decide": "admission affinity books budget choice client_errors cost demand endpoint "
    "estimate extras forecast guard health histogram hybrid line noted outliers "
    "pool prefix quota reuse roster scorers shadow shared token_ratio trend types",
    "identity": "access gate keys refused",
    "proxy": "answer answers api call catalogue client cors exchange first_event framing headers "
    "local prompt recorder request_ids route router server upgrade upstream usage",
}
"""No module with a msgspec Struct: mypyc would drop its options."""


def extensions() -> list[Extension]:
    """The compiled modules; none unless asked for."""
    if os.environ.get("TRAINMESH_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    files = ["trainmesh/serving/durations.py"]
    for folder, names in COMPILED.items():
        files += [f"trainmesh/serving/{folder}/{name}.py" for name in names.split()]
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    return list(mypycify([*options, *files], opt_level="2", debug_level="0"))


setup(ext_modules=extensions())
