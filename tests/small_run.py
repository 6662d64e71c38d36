"""A small training with everything that a real one has, for tests that stop it and go on; also a program.

``python small_run.py OUTPUT_DIR [--resume] [--workers N] [--die PHASE:NUMBER]`` runs it in a process of its own, which
kills itself with SIGKILL at the named moment; ``PHASE:NUMBER:SIGTERM`` sends another signal, ``PHASE:NUMBER:WORKER``
kills a worker of the loader, ``PHASE:NUMBER:WAIT`` says "waiting" and waits for a signal from outside.

Started by torchrun it is one process of several; with ``--rank`` that one alone dies, and only before a restart.
``loss:NUMBER:NAN`` makes a loss NaN there.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.data import DataLoader, DistributedSampler, set_track_meta
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Activationsd, Compose, CopyItemsd, RandAffined, RandFlipd, RandGaussianNoised
from point_tables import point_table

from luna16_monai.bundle.config import explain_errors
from luna16_monai.dataset.augmentation import Augmentation
from luna16_monai.dataset.cache import SeededCacheDataset
from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.dataset.sampler import RatioSampler
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.training import distributed as distributed
from luna16_monai.training import distributed as ranks
from luna16_monai.training import handlers, seeds
from luna16_monai.training import seeds as handlers_seeds
from luna16_monai.training.checkpoints import Checkpoints, start_worker
from luna16_monai.training.metrics import CandidateScores, is_better, key_metric
from luna16_monai.training.start import claim

SHAPE = (8, 8, 8)
EPOCHS, SAMPLES, BATCH = 3, 30, 4  # 8 batches an epoch, the last one smaller
SEED = 7


def items(count: int, seed: int) -> list[dict[str, Any]]:
    """Cutouts of noise, the positives with a bright middle; every third is one."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(count):
        image = torch.randint(-1000, 0, (1, *SHAPE), generator=generator, dtype=torch.int16)
        label = int(index % 3 == 0)
        image[:, 2:6, 2:6, 2:6] += 300 * label
        result.append({"image": image, "label": label, "candidate": index})
    return result


class Recorder:
    """Keeps every loss and every epoch's metrics, in the order in which they were seen, as text that shows all bits."""

    def __init__(self, path: Path, trainer: SupervisedTrainer, evaluator: SupervisedEvaluator) -> None:
        self.path = path
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.loss)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.metrics, "train")
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.metrics, "validation")

    def write(self, line: str) -> None:
        with self.path.open("a") as stream:
            stream.write(line + "\n")

    def loss(self, engine: Any) -> None:
        self.write(f"loss {engine.state.iteration} {engine.state.output['loss'].item().hex()}")

    def metrics(self, engine: Any, name: str) -> None:
        for key, value in sorted(engine.state.metrics.items()):
            self.write(f"{name} {engine.state.epoch} {key} {float(value).hex()}")


class DiesOnce:
    """Kills a rank with SIGKILL as it begins an iteration, but not after a restart of torchrun; for a config."""

    def __init__(self, rank: int, iteration: int) -> None:
        self.rank, self.iteration = rank, iteration

    def attach(self, engine: Any) -> None:
        if idist.get_rank() == self.rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            engine.add_event_handler(Events.ITERATION_STARTED(once=self.iteration), self)

    def __call__(self, engine: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def candidates(count: int) -> CandidateList:
    """Where the items would lie: item n of series s<n> at (n, 0, 0) mm."""
    rows = [(f"s{index}", float(index), 0.0, 0.0, float(index % 3 == 0)) for index in range(count)]
    return CandidateList(point_table(rows), positives_first=False)


def build(
    output_dir: Path, resume: bool = False, workers: int = 0, interval: int = 3, device: str = "cpu", bf16: bool = False
) -> Checkpoints:
    """The whole run, ready to start; what it sees goes to seen.txt beside the output folder. On CUDA with amp.

    As one of several ranks it is wired as multi_gpu_train.yaml does it, and what rank 1 sees goes to seen1.txt.
    """
    rank, world_size = idist.get_rank(), idist.get_world_size()
    amp = torch.device(device).type == "cuda"
    set_track_meta(False)
    claim(output_dir, resume)
    seeds.seed_network(SEED)
    network = NoduleNet(SHAPE, channels=(2, 4), norm="BATCH", dropout=0.3, return_probabilities=False, two_scales=bf16)
    network.bfloat16_blocks = (bf16, False)  # the second's maps are two voxels deep
    network = network.to(device)
    wrapped = torch.nn.parallel.DistributedDataParallel(network) if world_size > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    draws = Augmentation(
        [
            *(RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandAffined(
                "image", prob=1.0, rotate_range=[3.14, 0.0, 0.0], scale_range=[0.2] * 3, translate_range=[0.5] * 3,
                spatial_size=SHAPE, mode="bilinear", padding_mode="border",
            ),
            RandGaussianNoised("image", prob=1.0, std=25.0, sample_std=False),
        ]
    )  # fmt: skip
    train = items(40, 1)
    dataset = SeededCacheDataset(train, Compose(draws.transforms), cache_gb=0.001, progress=False)
    sampler = RatioSampler([item["label"] for item in train], (1, 2), SAMPLES, SEED, (1, 0), rank, world_size)
    loader = DataLoader(
        dataset, num_workers=workers, batch_size=BATCH, sampler=sampler, worker_init_fn=start_worker,
        persistent_workers=workers > 0,
    )  # fmt: skip
    post = Compose([CopyItemsd("pred", names="logits"), Activationsd("pred", softmax=True, dim=1)])
    scores, train_scores = CandidateScores(), CandidateScores()
    validation = [{**item, "image": item["image"].float()} for item in items(18, 2)]
    shared = DistributedSampler(validation, shuffle=False) if world_size > 1 else None
    evaluator = SupervisedEvaluator(
        torch.device(device), DataLoader(validation, batch_size=5, sampler=shared), network,
        postprocessing=post, decollate=False, key_val_metric=key_metric("average_precision", scores),
        metric_cmp_fn=is_better("average_precision"), amp=amp, val_handlers=[distributed.SharedBuffers(network)],
    )  # fmt: skip
    trainer = SupervisedTrainer(
        torch.device(device), EPOCHS, loader, wrapped, optimizer, torch.nn.CrossEntropyLoss(), postprocessing=post,
        decollate=False, key_train_metric=key_metric("average_precision", train_scores),
        train_handlers=[
            handlers_seeds.EpochSeeds(sampler, SEED, BATCH),
            handlers.FiniteLoss(str(output_dir), candidates(len(train))),
            ValidationHandler(1, evaluator),
            LrScheduleHandler(scheduler, print_lr=False),
        ],
        amp=amp,
    )  # fmt: skip
    Recorder(output_dir.with_name(f"seen{rank or ''}.txt"), trainer, evaluator)
    return Checkpoints(
        output_dir, trainer, evaluator, {"lr_scheduler": scheduler}, train_scores, {"ratio": [1, 2]}, interval, resume
    )


def seen(output_dir: Path, rank: int = 0) -> dict[str, str]:
    """What a rank of a run saw; what it saw twice, before and after a stop, must be the same."""
    lines = output_dir.with_name(f"seen{rank or ''}.txt").read_text(encoding="utf-8").splitlines()
    result: dict[str, str] = {}
    for line in lines:
        key, value = line.rsplit(" ", 1)
        assert result.setdefault(key, value) == value, f"{key} was {result[key]}, then {value}"
    return result


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    """Equal to the last bit, wherever there are tensors."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}[{key}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{index}]")
    else:
        assert one == other, place


PHASES = {
    "batch": ("trainer", Events.GET_BATCH_COMPLETED),
    "forward": ("trainer", IterationEvents.FORWARD_COMPLETED),
    "backward": ("trainer", IterationEvents.BACKWARD_COMPLETED),
    "iteration": ("trainer", Events.ITERATION_COMPLETED),
    "epoch_start": ("trainer", Events.EPOCH_STARTED),
    "epoch_end": ("trainer", Events.EPOCH_COMPLETED),
    "validation": ("evaluator", Events.ITERATION_COMPLETED),
    "loss": ("trainer", IterationEvents.LOSS_COMPLETED),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--die", help="PHASE:NUMBER, or PHASE:NUMBER:SIGNAL, :WORKER, :WAIT, :NAN")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--interval", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    explain_errors()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        ranks.start("cpu")
    restarted = ranks.restarted()
    run = build(options.output_dir, options.resume or restarted, options.workers, options.interval)
    if options.die and not restarted and idist.get_rank() == options.rank:
        phase, number, kind = (*options.die.split(":"), "SIGKILL")[:3]
        engine, event = PHASES[phase]
        count = iter(range(1, 10**6))

        def die(*_: Any) -> None:
            if next(count) != int(number):
                return
            if kind == "NAN":
                with torch.no_grad():
                    run.trainer.state.output["loss"].mul_(math.nan)
            elif kind == "WORKER":
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            elif kind == "WAIT":
                print("waiting", flush=True)
                while run.signal is None:
                    time.sleep(0.02)
            else:
                os.kill(os.getpid(), signal.Signals[kind])

        getattr(run, engine).add_event_handler(event, die)
    run.run()
    ranks.finish()


if __name__ == "__main__":
    main()
