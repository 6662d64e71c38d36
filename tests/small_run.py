"""A small training with everything that a real one has, for tests that stop it and go on; also a program.

``python small_run.py OUTPUT_DIR [--resume] [--workers N] [--die PHASE:NUMBER] [--threads N]`` runs it in a process of
its own, which kills itself with SIGKILL at the named moment.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader, set_track_meta
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Activationsd, Compose, CopyItemsd, RandAffined, RandFlipd, RandGaussianNoised

from luna16_monai import handlers, seeds
from luna16_monai.augmentation import augmentation
from luna16_monai.checkpoint import Checkpoints, claim, start_worker
from luna16_monai.datalist import RatioSampler, SeededCacheDataset
from luna16_monai.networks import NoduleNet

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


def build(output_dir: Path, resume: bool = False, workers: int = 0, interval: int = 3) -> Checkpoints:
    """The whole run, ready to start; what it sees goes to seen.txt beside the output folder."""
    set_track_meta(False)
    claim(output_dir, resume)
    seeds.seed_network(SEED)
    network = NoduleNet(SHAPE, channels=(2, 4), norm="BATCH", dropout=0.3, return_probabilities=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    draws = augmentation(
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
    dataset = SeededCacheDataset(train, Compose([draws]), cache_gb=0.001, progress=False)
    sampler = RatioSampler([item["label"] for item in train], (1, 2), SAMPLES, SEED)
    loader = DataLoader(
        dataset, num_workers=workers, batch_size=BATCH, sampler=sampler, worker_init_fn=start_worker,
        persistent_workers=workers > 0,
    )  # fmt: skip
    post = Compose([CopyItemsd("pred", names="logits"), Activationsd("pred", softmax=True, dim=1)])
    scores, train_scores = handlers.CandidateScores(), handlers.CandidateScores()
    validation = [{**item, "image": item["image"].float()} for item in items(18, 2)]
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(validation, batch_size=5), network, postprocessing=post, decollate=False,
        key_val_metric=handlers.key_metric("average_precision", scores),
        metric_cmp_fn=handlers.is_better("average_precision"),
    )  # fmt: skip
    trainer = SupervisedTrainer(
        torch.device("cpu"), EPOCHS, loader, network, optimizer, torch.nn.CrossEntropyLoss(), postprocessing=post,
        decollate=False, key_train_metric=handlers.key_metric("average_precision", train_scores),
        train_handlers=[
            handlers.EpochSeeds(sampler, SEED, BATCH),
            ValidationHandler(1, evaluator),
            LrScheduleHandler(scheduler, print_lr=False),
        ],
    )  # fmt: skip
    Recorder(output_dir.with_name("seen.txt"), trainer, evaluator)
    return Checkpoints(
        output_dir, trainer, evaluator, {"lr_scheduler": scheduler}, train_scores, {"ratio": [1, 2]}, interval, resume
    )


def seen(output_dir: Path) -> dict[str, str]:
    """What a run saw; what it saw twice, before and after a stop, must be the same."""
    lines = output_dir.with_name("seen.txt").read_text().splitlines()
    result: dict[str, str] = {}
    for line in lines:
        key, value = line.rsplit(" ", 1)
        assert result.setdefault(key, value) == value, f"{key} was {result[key]}, then {value}"
    return result


PHASES = {
    "batch": ("trainer", Events.GET_BATCH_COMPLETED),
    "forward": ("trainer", IterationEvents.FORWARD_COMPLETED),
    "backward": ("trainer", IterationEvents.BACKWARD_COMPLETED),
    "iteration": ("trainer", Events.ITERATION_COMPLETED),
    "epoch_start": ("trainer", Events.EPOCH_STARTED),
    "epoch_end": ("trainer", Events.EPOCH_COMPLETED),
    "validation": ("evaluator", Events.ITERATION_COMPLETED),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--die", help="PHASE:NUMBER, or PHASE:NUMBER:SIGNAL")
    parser.add_argument("--interval", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    torch.set_num_threads(1)
    run = build(options.output_dir, options.resume, options.workers, options.interval)
    if options.die:
        phase, number, *kind = options.die.split(":")
        engine, event = PHASES[phase]
        sent = signal.Signals[kind[0]] if kind else signal.SIGKILL
        count = iter(range(1, 10**6))

        def die(*_: Any) -> None:
            if next(count) == int(number):
                os.kill(os.getpid(), sent)

        getattr(run, engine).add_event_handler(event, die)
    run.run()


if __name__ == "__main__":
    main()
