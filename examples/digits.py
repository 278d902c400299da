"""Classify handwritten digits with a small convolutional network. Plain PyTorch, plain DDP.

    torchrun --nproc-per-node 2 examples/digits.py
    trainmesh launch --nproc-per-node 2 examples/digits.py

Data: the 1 797 images of 8 x 8 pixels that ship with scikit-learn.
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def datasets() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1500], order[1500:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32, help="images a rank and step")
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    train, test = datasets()
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(
        train, drop_last=True
    )
    loader = DataLoader(train, args.batch, sampler=sampler)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        images, labels = test.tensors
        accuracy = (model.module(images).argmax(1) == labels).float().mean().item()
    total = sum(parameter.double().sum().item() for parameter in model.parameters())
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.6f} accuracy {accuracy:.4f} parameters {total:.9f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
