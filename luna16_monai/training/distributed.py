"""What the processes of one training agree on, where there are several: one for each GPU, started by torchrun.

Ignite's and MONAI's collectives do the work. What is here says when they are used: to begin, to decide together, and
to hand on what the first process, rank 0, knows. With one process each of these gives back what it was given.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from torch import nn
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

logger = logging.getLogger(__name__)

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# the others wait for rank 0 while it scores and writes an epoch's results, and for the slowest cache to be filled
PATIENCE = timedelta(minutes=30)
LAST_BREATH = 0.2  # seconds


def start(device: torch.device | str) -> None:
    """Join the group of processes that torchrun started; to be called before anything asks for a rank.

    NCCL joins GPUs, gloo CPUs. Each process of a machine takes the GPU of its local rank. All but rank 0 log errors
    only.

    Raises:
        ValueError: torchrun did not start this process, the device names a GPU, or there are fewer GPUs than processes.
    """
    device = torch.device(device)
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise ValueError(
            f"{', '.join(missing)} not set: multi_gpu_train.yaml is for processes that torchrun starts, torchrun "
            "--nproc_per_node=N -m monai.bundle run ...; for one process leave it out"
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.index is not None:
        raise ValueError(f"device {device}: each process takes the GPU of its own number: give cuda or cpu")
    if device.type == "cuda":
        if local_rank >= (found := torch.cuda.device_count()):
            raise ValueError(f"no GPU for process {local_rank} ({found} found): use --nproc_per_node={found} or fewer")
        torch.cuda.set_device(local_rank)
    # idist.initialize would take SLURM's own numbers for those of torchrun, which starts several processes in a task
    store, rank, world_size = next(rendezvous("env://"))
    store.set_timeout(PATIENCE)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(meet(store, rank, world_size), store),
        rank=rank,
        world_size=world_size,
        timeout=PATIENCE,
    )
    idist.sync()
    if idist.get_rank() > 0:
        logging.disable(logging.WARNING)
    logger.info("training in %d processes (%s)", idist.get_world_size(), idist.backend())


def meet(store: Store, rank: int, world_size: int) -> str:
    """A name that the processes of one start agree on, and that no start before had.

    torchrun keeps one store over its restarts, in which a process may find the address of one that has died
    (pytorch/pytorch issue 135712), and no number of its own is the same on all machines. So each process calls with a
    name made up for it, and rank 0 answers to whoever calls until all have heard.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"caller {rank}", own)
        shared = store.get(f"answer {own}").decode()
        store.add(f"heard {shared}", 1)
        return shared
    while store.add(f"heard {own}", 0) < world_size - 1:
        for other in range(1, world_size):
            # perhaps the name of one that has died; the living one's follows
            store.set(f"answer {store.get(f'caller {other}').decode()}", own)
        time.sleep(0.02)
    return own


def restarted() -> bool:
    """Whether torchrun has started the processes again, on any of its machines."""
    return bool(greatest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))))


def finish() -> None:
    """Leave the group. A process that ends without it may crash at its very end, and count as failed."""
    if idist.get_world_size() > 1:
        idist.finalize()
        # a thread of the group that still lets go of a tensor needs the interpreter for it, and aborts the process
        # where that is ending (pytorch/pytorch issue 190489)
        time.sleep(LAST_BREATH)


def greatest(value: int) -> int:
    """The greatest of the values that the ranks call this with."""
    return value if idist.get_world_size() == 1 else int(idist.all_reduce(value, "MAX"))  # type: ignore[arg-type]


def from_first(content: bytes | None) -> bytes | None:
    """What rank 0 calls this with, on every rank."""
    if idist.get_world_size() == 1:
        return content
    mine = None
    if idist.get_rank() == 0:
        # a tensor of no length cannot be sent everywhere, so the first byte says whether there is anything
        mine = torch.frombuffer(bytearray(b"\0" if content is None else b"\1" + content), dtype=torch.uint8)
    sent: Any = idist.broadcast(mine, safe_mode=True)
    received = sent.cpu().numpy().tobytes()
    return received[1:] if received[0] else None


def copy_buffers(network: nn.Module) -> None:
    """Give every rank rank 0's buffers, such as the running means of a batch normalisation; in place."""
    if idist.get_world_size() > 1:
        for buffer in network.buffers():
            buffer.copy_(idist.broadcast(buffer.detach().clone()))  # type: ignore[arg-type]


class SharedBuffers:
    """Validate the same network on every rank: rank 0's, with the running means of its batch normalisations.

    DistributedDataParallel hands those on at the start of an iteration, so after the last one the ranks' differ.

    Args:
        network: is changed in place.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Workflow) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Workflow) -> None:
        """Take rank 0's buffers."""
        copy_buffers(self.network)
