"""Seeds: what is random in a run depends on the run's seed and a counter, never on what ran before."""

from __future__ import annotations

import os

import numpy as np
import torch

ITERATION_STREAM, NETWORK_STREAM = 100, 101


def derive(seed: int, *key: int) -> int:
    """A seed of 63 bits for one purpose, from the run's seed and whole numbers that name the purpose.

    Raises:
        ValueError: the seed is below 0.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: give 0 or more")
    words = np.random.SeedSequence([seed, *key]).generate_state(2)
    # a Python int: a tensor or numpy scalar as torch's seed may silently become something else
    return int(words[0]) << 31 | int(words[1]) >> 1


def configure_torch(deterministic: bool) -> None:
    """Choose between the same bits at every run and speed (cuDNN's search, TF32), on CUDA; huge pages on a CPU.

    A CPU with a fixed number of threads has both. Max-pool's backward in 3-D is listed as non-deterministic, though it
    is not without overlapping windows: hence a warning there, not an error.
    """
    if deterministic:
        # read when cuBLAS starts; without it two streams may share a workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # large tensors in pages of 2 MB: a fifth of a training step on a CPU goes into page faults otherwise
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic


def seed_iteration(seed: int, iteration: int, rank: int = 0) -> None:
    """Seed torch on all devices for one training iteration; each of several processes draws numbers of its own."""
    torch.manual_seed(derive(seed, ITERATION_STREAM, iteration, *([rank] if rank else [])))


def seed_network(seed: int) -> None:
    """Seed torch for the network's initial weights."""
    torch.manual_seed(derive(seed, NETWORK_STREAM))
