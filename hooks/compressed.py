"""Buckets on their way through a codec."""

from __future__ import annotations

import torch
from torch.futures import Future

from trainmesh.errors import ConfigError
from trainmesh.hooks.executor import Executor, Fabric
from trainmesh.hooks.fusion import Bucket

__all__ = ["NO_CODEC", "Compressed", "check_codec"]

NO_CODEC = "none"


def check_codec(text: str) -> None:
    if text != NO_CODEC:
        raise ConfigError(f"unknown codec {text!r}")


class Compressed:
    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def make(cls, text: str, fabric: Fabric, before: Compressed | None) -> Compressed | None:
        raise ConfigError(f"unknown codec {text!r}")

    def reduce(self, bucket: Bucket, executor: Executor) -> Future[torch.Tensor]:
        raise NotImplementedError

    def close(self) -> None: ...
