"""NCCL's own cost model: what it would pick by itself, without a GPU."""
