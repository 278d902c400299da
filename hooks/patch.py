"""Install the hook into a process before its script runs, without importing torch.

A script that never imports torch pays nothing; one that does gets its DDP wrapped in the moment
``torch.nn.parallel.distributed`` has been imported, and FSDP2 when ``torch.distributed.fsdp`` is.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

__all__ = ["install"]

Wrap = Callable[[], None]


def install() -> None:
    """Arrange that DDP and FSDP2 are wrapped as soon as they are imported; never raises."""
    for target, wrap in TARGETS.items():
        if target in sys.modules:
            _try(target, wrap)
        elif not any(isinstance(f, _Finder) and f.target == target for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder(target, wrap))


def _wrap_ddp() -> None:
    from trainmesh.hooks.registration import wrap_ddp

    wrap_ddp()


def _wrap_fsdp() -> None:
    from trainmesh.hooks.fsdp.install import wrap_fsdp

    wrap_fsdp()


TARGETS: dict[str, Wrap] = {
    "torch.nn.parallel.distributed": _wrap_ddp,
    "torch.distributed.fsdp": _wrap_fsdp,
}


def _try(target: str, wrap: Wrap) -> None:
    try:
        wrap()
    except Exception as error:  # another torch version may differ in any way; the script must run
        print(f"trainmesh: not active for {target} in this process: {error!r}", file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``target`` as the import system would, and calls ``wrap`` after it was executed."""

    def __init__(self, target: str, wrap: Wrap) -> None:
        self.target = target
        self._wrap = wrap

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, functools.partial(_try, name, self._wrap))
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, after: Wrap) -> None:
        self._loader = loader
        self._after = after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._after()
