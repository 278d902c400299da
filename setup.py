"""Compiles the data path of ``trainmesh serve`` with mypyc where TRAINMESH_COMPILE=1 is set.

All metadata is in pyproject.toml, and the same sources run either way: compiled, a request takes
less than half the CPU in Python (docs/serving.md). mypyc is part of mypy.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

COMPILED = {
    "observe": "durations",
    "decide": "attempt_tracker budget choice client_errors decision_record demand endpoint "
    "endpoint_states health pool retry_budgets shared types",
    "decide/admission": "admission fair_queue quota",
    "decide/learn": "estimate forecast histogram outliers prefix prefix_cache_model token_ratio "
    "traffic_stats",
    "decide/policies": "affinity cost guard hybrid scorers shadow",
    "identity": "access authenticator keys refused",
    "proxy": "answer call client exchange framing recorder route router server upstream",
    "proxy/reading": "api first_event headers prompt request_ids upgrade usage",
    "proxy/replies": "answers catalogue cors local",
}
"""No module with a msgspec Struct: mypyc would drop its options."""


def extensions() -> list[Extension]:
    """The compiled modules; none unless asked for."""
    if os.environ.get("TRAINMESH_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    files = [
        f"trainmesh/serving/{folder}/{name}.py"
        for folder, names in COMPILED.items()
        for name in names.split()
    ]
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    return list(mypycify([*options, *files], opt_level="2", debug_level="0"))


setup(ext_modules=extensions())
