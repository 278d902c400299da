"""One rank of a check, in a process of its own: ``python -m trainmesh.hooks.testing.rank``."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from time import monotonic_ns

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store

from trainmesh.hooks.testing.codecs import check_codec_rank
from trainmesh.hooks.testing.executors import check_executor_rank
from trainmesh.hooks.testing.spec import Failed, RankResult, Spec
from trainmesh.wire import decode, encode

__all__ = ["main"]

PATIENCE_S = 3600.0
"""The parent process ends the check long before."""
CHECKS = {"executor": check_executor_rank, "codec": check_codec_rank}


def main(folder: Path, rank: int) -> None:
    """Take part in the check of every world size that has this rank; leave an Answer."""
    spec = decode((folder / "spec.json").read_bytes(), Spec, what="spec.json")
    try:
        answer = RankResult(digests=_digests(spec, folder, rank))
    except Failed as failure:
        answer = RankResult(failed=str(failure), ended_ns=monotonic_ns())
    except Exception as error:  # what is checked may fail in any way
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        answer = RankResult(error=words, ended_ns=monotonic_ns())
    partial = folder / f"{rank}.partial"
    partial.write_bytes(encode(answer))
    partial.rename(folder / f"{rank}.json")
    # At once: the peers' collectives fail now rather than at their time-out, and threads that
    # what was checked may have left behind don't keep the process.
    os._exit(0)


def _meet(store: Store, rank: int) -> None:
    """Wait for rank 0, which takes part in the checks of all smaller world sizes first."""
    if rank == 0:
        store.set("rank 0 is here", "")
    else:
        store.wait(["rank 0 is here"], timedelta(seconds=PATIENCE_S))


def _digests(spec: Spec, folder: Path, rank: int) -> dict[str, str]:
    digests = {}
    for world_size in spec.world_sizes:
        if rank >= world_size:
            continue
        store = FileStore(str(folder / f"store{world_size}"), world_size)
        _meet(store, rank)
        dist.init_process_group(
            "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=spec.timeout_s),
        )
        digests.update(CHECKS[spec.kind](spec, store))
        dist.barrier()
        dist.destroy_process_group()
    return digests


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
