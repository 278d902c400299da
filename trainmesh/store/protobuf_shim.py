"""Make the unmodified ``etcd3`` 0.12.0 wheel import on a current protobuf.

Its generated modules were written by protoc 3.x and build descriptors in a way that protobuf 4
and newer refuse. The same files hold the serialized descriptors, so these are read (as a syntax
tree, nothing is executed) and the modules are built from them.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import types
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.internal import builder

from trainmesh.errors import ConfigError

__all__ = ["prepare"]

MODULES = ("kv", "auth", "rpc")
"""In the order in which they depend on each other."""


def prepare() -> None:
    """Call before the first ``import etcd3``.

    Raises:
        ConfigError: etcd3 is not installed, or is a version without serialized descriptors.
    """
    # gRPC logs reconnects and forks to stderr; ours are said in our own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if "etcd3" in sys.modules:
        return
    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ConfigError("the package etcd3 is not installed; pip install etcd3==0.12.0")
    folder = Path(spec.origin).parent / "etcdrpc"
    for name in MODULES:
        _build(f"etcd3.etcdrpc.{name}_pb2", folder / f"{name}_pb2.py")


def _build(name: str, path: Path) -> None:
    pool = descriptor_pool.Default()
    descriptor = pool.AddSerializedFile(_serialized_descriptor(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["DESCRIPTOR"] = descriptor
    builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
    builder.BuildTopDescriptorsAndMessages(descriptor, name, module.__dict__)
    sys.modules[name] = module


def _serialized_descriptor(path: Path) -> bytes:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "FileDescriptor":
            for keyword in node.keywords:
                if keyword.arg == "serialized_pb":
                    return _literal_bytes(keyword.value)
    raise ConfigError(f"{path} holds no serialized descriptor; install etcd3==0.12.0")


def _literal_bytes(node: ast.expr) -> bytes:
    """The literal, which the generator wraps as ``_b('...')``: text that stands for latin-1."""
    if isinstance(node, ast.Call):
        node = node.args[0]
    value = ast.literal_eval(node)
    return value if isinstance(value, bytes) else str(value).encode("latin-1")
