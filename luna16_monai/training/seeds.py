"""Seeds: what is random in a run depends on the run's seed and a counter, never on what ran before."""

from __future__ import annotations

import os

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow

from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.dataset.seeds import derive
from luna16_monai.machine.memory import keep_freed_memory


class EpochSeeds:
    """Tie the order of an epoch to (seed, epoch) and what is random in an iteration to (seed, iteration).

    So neither the number of workers nor what ran before matters, and a run that goes on in the middle of an epoch
    sees what it would have seen. Of several ranks each draws its own numbers.

    Args:
        sampler: draws the epoch.
        seed: of the whole run.
        batch_size: of the loader, on this rank.
    """

    def __init__(self, sampler: RatioSampler, seed: int, batch_size: int) -> None:
        self.sampler, self.seed, self.batch_size = sampler, seed, batch_size

    def attach(self, engine: Workflow) -> None:
        """Attach to the trainer, before any other handler that draws numbers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_iteration)

    def start_epoch(self, engine: Workflow) -> None:
        """Move the sampler; Ignite asks the loader for an iterator after this event, on resume too."""
        done = engine.state.iteration % engine.state.epoch_length
        self.sampler.set_position(engine.state.epoch - 1, done * self.batch_size)

    def start_iteration(self, engine: Workflow) -> None:
        """Seed torch for dropout."""
        seed_iteration(self.seed, engine.state.iteration, idist.get_rank())


ITERATION_STREAM, NETWORK_STREAM = 100, 101


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
    keep_freed_memory()
    if deterministic or torch.are_deterministic_algorithms_enabled():
        # asked only where it changes something: the call loads torch's compiler, half a second
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic


def seed_iteration(seed: int, iteration: int, rank: int = 0) -> None:
    """Seed torch on all devices for one training iteration; each of several processes draws numbers of its own."""
    torch.manual_seed(derive(seed, ITERATION_STREAM, iteration, *([rank] if rank else [])))


def seed_network(seed: int) -> None:
    """Seed torch for the network's initial weights."""
    torch.manual_seed(derive(seed, NETWORK_STREAM))
