"""Install the hook into a process before its script runs, without importing torch.

A script that never imports torch pays nothing; one that does gets its DDP wrapped in the moment
``torch.nn.parallel.distributed`` has been imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

TARGET = "torch.nn.parallel.distributed"


def install() -> None:
    """Arrange that DDP is wrapped as soon as it is imported; never raises."""
    if TARGET in sys.modules:
        _wrap_ddp()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _wrap_ddp() -> None:
    try:
        from trainmesh.hooks.registration import wrap_ddp

        wrap_ddp()
    except Exception as error:  # another torch version may differ in any way; the script must run
        print(f"trainmesh: not active in this process: {error!r}", file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``TARGET`` as the import system would, and wraps DDP after it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _wrap_ddp()
