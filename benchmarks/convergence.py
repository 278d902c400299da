"""What compression costs in loss: the example models, each codec against none, over seeds.

    torchrun --nproc-per-node 2 benchmarks/convergence.py --model digits

Held-out loss after training (chars: nats a character on the last tenth of the text; digits: the
297 test images). Every codec sees the same seeds, so the differences are paired; how much the
loss differs between seeds says how much a difference means.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.machine import describe
from examples import chars, digits
from trainmesh.hooks.codecs import ErrorFeedback, Gradient, GroupExchange, Layouts, codec

CODECS = (
    "none",
    "bf16",
    "fp16",
    "int8",
    "powersgd:1",
    "powersgd:4",
    "topk:0.1",
    "topk:0.01",
)


class Hook:
    """Sums buckets through a codec, one at a time."""

    def __init__(self, name: str, group: dist.ProcessGroup) -> None:
        self._codec = codec(name, group.size())
        self._exchange = GroupExchange(group)
        self._memory = ErrorFeedback()
        self._layouts = Layouts()
        self.nbytes = self.wire_bytes = 0.0

    def reduce(self, bucket: GradBucket) -> Future[torch.Tensor]:
        buffer, layout = bucket.buffer(), self._layouts.of(bucket.parameters())
        buffer.div_(self._exchange.world_size)
        self._codec.reduce(Gradient(buffer, layout), self._exchange, self._memory)
        shapes = [one.shape for one in layout.slices]
        self.nbytes += buffer.nbytes
        self.wire_bytes += self._codec.wire_bytes(
            shapes, buffer.element_size(), self._exchange.world_size
        )
        future: Future[torch.Tensor] = Future()
        future.set_result(buffer)
        return future


def hook(state: Hook, bucket: GradBucket) -> Future[torch.Tensor]:
    return state.reduce(bucket)


def parallel(model: nn.Module, name: str) -> tuple[DistributedDataParallel, Hook]:
    module = DistributedDataParallel(model, bucket_cap_mb=1)
    assert dist.group.WORLD is not None
    state = Hook(name, dist.group.WORLD)
    module.register_comm_hook(state, hook)
    return module, state


def train_chars(name: str, seed: int, steps: int) -> tuple[float, float]:
    """Held-out loss, and bytes uncompressed / bytes on the wire."""
    text = chars.TEXT.read_text()
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    data = torch.tensor([alphabet[character] for character in text])
    train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    torch.manual_seed(seed)
    model, state = parallel(chars.CharTransformer(len(alphabet), 64, 128, 2), name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draws = torch.Generator().manual_seed(100 * seed + dist.get_rank())

    def loss_of(part: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
        starts = torch.randint(len(part) - 65, (batch,), generator=generator)
        x = torch.stack([part[start : start + 64] for start in starts])
        y = torch.stack([part[start + 1 : start + 65] for start in starts])
        return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(train, 8, draws).backward()
        optimizer.step()
    with torch.no_grad():
        loss = loss_of(held_out, 128, torch.Generator().manual_seed(0)).item()
    return loss, state.nbytes / state.wire_bytes


def train_digits(name: str, seed: int, steps: int) -> tuple[float, float]:
    """Held-out loss, and bytes uncompressed / bytes on the wire."""
    train, test = digits.datasets()
    torch.manual_seed(seed)
    model, state = parallel(digits.network(), name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draws = torch.Generator().manual_seed(100 * seed + dist.get_rank())
    for _ in range(steps):
        drawn = torch.randint(len(train), (32,), generator=draws)
        images, labels = train[drawn]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        images, labels = test.tensors
        loss = nn.functional.cross_entropy(model(images), labels).item()
    return loss, state.nbytes / state.wire_bytes


MODELS = {"digits": train_digits, "chars": train_chars}


def table(
    title: str, train: Callable[[str, int, int], tuple[float, float]], seeds: int, steps: int
) -> None:
    say(f"{title}, {steps} steps, {dist.get_world_size()} ranks, {seeds} seeds")
    baseline: list[float] = []
    for name in CODECS:
        runs = [train(name, seed, steps) for seed in range(seeds)]
        losses = [loss for loss, _ in runs]
        if not baseline:
            baseline = losses
            spread = f"{stdev(losses):.4f}" if seeds > 1 else "unknown"
            say(f"standard deviation of the loss between seeds, uncompressed: {spread}")
            say(f"{'codec':12}{'ratio':>8}{'loss':>9}{'to none':>10}{'at most':>9}   by seed")
        differences = [loss - base for loss, base in zip(losses, baseline, strict=True)]
        each = " ".join(f"{difference:+.4f}" for difference in differences)
        ratio = runs[0][1]
        mean_share, most_share = (f(differences) / mean(baseline) for f in (mean, max))
        figures = f"{mean(losses):9.4f}{mean_share:+10.2%}{most_share:+9.2%}"
        say(f"{name:12}{ratio:8.1f}{figures}   {each}")


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    say(describe())
    for name, train in MODELS.items():
        if args.model in (None, name):
            table(name, train, args.seeds, args.steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
