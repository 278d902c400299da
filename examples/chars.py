"""Train a small character-level transformer on a play by Shakespeare. Plain PyTorch, plain DDP.

    torchrun --nproc-per-node 2 examples/chars.py
    trainmesh launch --nproc-per-node 2 examples/chars.py

Text: examples/data/as_you_like_it.txt.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

TEXT = Path(__file__).with_name("data") / "as_you_like_it.txt"


class CharTransformer(nn.Module):
    """Predicts the next character; input [batch, time] of character numbers."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.characters(x) + self.positions.weight[: x.shape[1]]
        logits: torch.Tensor = self.head(self.layers(hidden, mask=self.mask, is_causal=True))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8, help="sequences a rank and step")
    parser.add_argument("--context", type=int, default=64, help="characters a sequence")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--times", default=os.devnull, help="file: when each step ended, in ns")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    text = TEXT.read_text()
    alphabet = sorted(set(text))
    data = torch.tensor([alphabet.index(character) for character in text])

    torch.manual_seed(0)
    model = DistributedDataParallel(
        CharTransformer(len(alphabet), args.context, args.width, args.layers),
        bucket_cap_mb=1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draws = torch.Generator().manual_seed(1 + rank)

    with open(args.times if rank == 0 else os.devnull, "w", buffering=1) as times:
        for step in range(args.steps):
            starts = torch.randint(len(data) - args.context - 1, (args.batch,), generator=draws)
            x = torch.stack([data[start : start + args.context] for start in starts])
            y = torch.stack([data[start + 1 : start + args.context + 1] for start in starts])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            optimizer.step()
            print(time.monotonic_ns(), file=times)
            if rank == 0 and step % 50 == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)

    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    if rank == 0:
        print(f"loss {loss.item():.6f} parameters {total:.9f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
