"""Checkpoints from which a run goes on bit for bit, and the loop around the trainer that writes them.

A run may also go on for more epochs, or with other settings (see `changes`): the optimizer then keeps what it has
learned and takes the new settings, and the schedule is that of a run which had them from its beginning, after as many
steps.

MONAI's CheckpointSaver is not used: it overwrites without an atomic rename, keeps no random state and forgets the
best score. Here a checkpoint is the whole state of a run at a moment where nothing is pending: after an iteration
inside an epoch, or after an epoch with its validation and its scheduler step. What is random follows from counters
(see ``seeds.py``), so no random state is kept. A file's name carries its hash: a torn one is known as such.

Of several ranks the first writes and reads. All decide together when to save and when to stop, so that none waits for
another that has gone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data.utils import worker_init_fn
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.workflow import Workflow
from torch.nn.parallel import DistributedDataParallel

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.machine.errors import DEAD_WORKER, is_dead_worker
from luna16_monai.machine.files import atomic_write
from luna16_monai.networks.weights import read_weights
from luna16_monai.runs.folder import RunFolder
from luna16_monai.training import changes, distributed
from luna16_monai.training.comparison import PRIVATE

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop while no checkpoint could be taken."""


class Checkpoints:
    """Run a trainer to its end, keeping its state on the way; go on from the newest good state.

    Args:
        output_dir: of the run; the files lie in its ``checkpoints``.
        trainer: the engine to run; its network, optimizer and scaler belong to the state.
        evaluator: validates it; its best score so far belongs to the state.
        more: name to further objects that belong to the state, such as the scheduler.
        train_scores: the trainer's metric that adds up over an epoch.
        config: the run's config as written; a run goes on only with the same one.
        iterations: between two checkpoints inside an epoch.
        resume: go on where a former run stopped; False starts anew.
        resume_changed: go on although the config has changed.
        candidates: split to its candidates; a run goes on with the same ones alone.
    """

    def __init__(
        self,
        output_dir: Path | str,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator,
        more: Mapping[str, Stateful],
        train_scores: Stateful,
        config: Mapping[str, Any],
        iterations: int = 200,
        resume: bool = False,
        resume_changed: bool = False,
        candidates: Mapping[str, CandidateList] | None = None,
    ) -> None:
        self.folder = RunFolder(output_dir).checkpoints
        self.trainer, self.evaluator, self.train_scores = trainer, evaluator, train_scores
        whole = trainer.network
        self.network = whole.module if isinstance(whole, DistributedDataParallel) else whole
        self.parts: dict[str, Stateful] = {"network": self.network, "optimizer": trainer.optimizer, **more}
        # no folder of this machine goes into a checkpoint
        kept = {key: value for key, value in config.items() if key not in PRIVATE}
        self.config = json.loads(json.dumps(kept, default=str))
        if (processes := idist.get_world_size()) > 1:
            self.config["processes"] = processes
        self.iterations, self.resume, self.resume_changed = iterations, resume, resume_changed
        self.candidates = {split: one.digest() for split, one in (candidates or {}).items()}
        self.signal: int | None = None
        self.saved_iteration = 0

    def run(self) -> None:
        """Train until the last epoch is done, or until a signal asks to stop.

        Raises:
            ValueError: the run to continue had another config, other candidates, or epochs of another length.
            RuntimeError: a worker process of the data loader died.
            FloatingPointError: the weights have become NaN or infinite.
            SystemExit: 143 after SIGTERM and 130 after SIGINT, with the state saved.
        """
        state = self.load_newest() if self.resume else None
        if state is not None and state["iteration"] >= self.trainer.state.max_epochs * state["epoch_length"]:
            logger.info("the run in %s is finished (%d epochs): nothing to do", self.folder.parent, state["epoch"])
            return
        if state is not None:
            self._restore(state)
        elif self.resume:
            logger.info("no checkpoint in %s: starting a new run", self.folder)
        # added last, so that a state is kept after all other handlers have done their part
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._in_validation)
        with self._signals_noted():
            try:
                self.trainer.run()
            except Stopped:
                logger.info("stopped in validation")
            except (RuntimeError, OSError, EOFError) as error:
                if not is_dead_worker(error):
                    raise
                # without its cause: what the broken connection says would only mislead
                shm = " in /dev/shm (docker run --shm-size 2g)" if "shared memory" in str(error) else ""
                raise RuntimeError(
                    f"{DEAD_WORKER}, perhaps for want of memory{shm}; the state is saved up to iteration "
                    f"{self.saved_iteration}: go on with --resume true, and a smaller num_workers or cache_gb"
                ) from None
        if self.signal is not None:
            logger.info(
                "%s: the state is saved up to iteration %d; the same command with --resume true goes on from there",
                *(signal.Signals(self.signal).name, self.saved_iteration),
            )
            distributed.finish()
            raise SystemExit(128 + self.signal)

    def save(self) -> Path:
        """Keep the present state; the two newest files stay. All ranks have to call it together.

        Returns:
            The file, which rank 0 has written.

        Raises:
            FloatingPointError: the weights are not finite, so that the last good state is the one kept before.
        """
        trainer, evaluator = self.trainer.state, self.evaluator.state
        # a finite loss may still have had gradients that are not
        finite = all(torch.isfinite(tensor).all() for tensor in self.network.state_dict().values())
        if distributed.greatest(not finite):
            raise FloatingPointError(
                f"the network's weights are NaN or infinite after iteration {trainer.iteration}: the last state that "
                f"is kept is from iteration {self.saved_iteration}; lower learning_rate"
            )
        state = {
            "format": FORMAT,
            "config": json.dumps(self.config, sort_keys=True),
            "candidates": self.candidates,
            "threads": torch.get_num_threads(),
            "iteration": trainer.iteration,
            "epoch": trainer.epoch,
            "epoch_length": trainer.epoch_length,
            "best": [_best_of(trainer), _best_of(evaluator)],
            "train_scores": self.train_scores.state_dict(),
            "scaler": None if self.trainer.scaler is None else self.trainer.scaler.state_dict(),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        content = io.BytesIO()
        torch.save(state, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()[:16]
        path = self.folder / f"iteration_{trainer.iteration:09d}_{digest}.pt"
        if idist.get_rank() == 0:
            with atomic_write(path) as stream:
                stream.write(content.getbuffer())
            for old in self._files()[KEPT:]:
                old.unlink()
        # a rank that went on to its end would make torchrun stop the one that still writes
        idist.barrier()
        self.saved_iteration = trainer.iteration
        return path

    def load_newest(self) -> dict[str, Any] | None:
        """The newest state that is whole, as rank 0 finds it; a damaged one is reported and passed over.

        Raises:
            ValueError: all checkpoints are damaged, or the newest is of another version.
        """
        content = distributed.from_first(self._read_newest() if idist.get_rank() == 0 else None)
        if content is None:
            return None
        state = read_weights(io.BytesIO(content), f"a checkpoint in {self.folder}")
        if state["format"] != FORMAT:
            raise ValueError(
                f"the checkpoint in {self.folder} is of another version: start the run anew in another output_dir"
            )
        return state

    def _read_newest(self) -> bytes | None:
        """The content of the newest file that is whole; None where there are no files."""
        files = self._files()
        for path in files:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.rsplit("_", 1)[1]:
                logger.warning("checkpoint %s is damaged: going on from the one before", path)
                continue
            return content
        if files:
            raise ValueError(f"all checkpoints in {self.folder} are damaged: start anew in another output_dir")
        return None

    def _restore(self, state: Mapping[str, Any]) -> None:
        changes.require_same_candidates(state.get("candidates", {}), self.candidates, self.folder.parent)
        changed = changes.accepted(json.loads(state["config"]), self.config, self.resume_changed, self.folder.parent)
        if state["threads"] != torch.get_num_threads():
            logger.warning(
                "the run used %d threads, this process has %d: the results will differ in the last bits",
                *(state["threads"], torch.get_num_threads()),
            )
        trainer = self.trainer
        if state["epoch_length"] != trainer.state.epoch_length:
            raise ValueError(
                f"the run in {self.folder.parent} had {state['epoch_length']} iterations an epoch, now there are "
                f"{trainer.state.epoch_length}: go on with its samples_per_epoch, batch_size and number of processes"
            )
        if changed:
            changes.load_with_settings(self.parts, state, changed)
        else:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        trainer.load_state_dict(
            {key: state[key] for key in ("iteration", "epoch_length")} | {"max_epochs": trainer.state.max_epochs}
        )
        for engine, best in zip((trainer, self.evaluator), state["best"], strict=True):
            engine.state.best_metric, engine.state.best_metric_epoch = best
        if state["iteration"] % state["epoch_length"]:
            # the metric forgets everything when an epoch starts; this handler comes after its own
            trainer.add_event_handler(
                Events.EPOCH_STARTED(once=trainer.state.epoch + 1),
                lambda: self.train_scores.load_state_dict(state["train_scores"]),
            )
        if state["scaler"] is not None:
            # MONAI makes a new scaler when the run starts
            trainer.add_event_handler(Events.STARTED, self._restore_scaler, state["scaler"])
        self.saved_iteration = state["iteration"]
        logger.info("going on after iteration %d (epoch %d)", state["iteration"], trainer.state.epoch + 1)

    def _restore_scaler(self, _: Engine, scaler: Mapping[str, Any]) -> None:
        if self.trainer.scaler is not None:
            self.trainer.scaler.load_state_dict(dict(scaler))

    def _after_iteration(self, engine: Workflow) -> None:
        # at the end of an epoch validation and scheduler are still to come: that state is kept in _after_epoch
        inside = engine.state.iteration % engine.state.epoch_length != 0
        if inside and (self._asked_to_stop() or engine.state.iteration % self.iterations == 0):
            self.save()
            self._stop_if_asked(engine)

    def _after_epoch(self, engine: Engine) -> None:
        self.save()
        self._stop_if_asked(engine)

    def _stop_if_asked(self, engine: Engine) -> None:
        if self._asked_to_stop():
            engine.terminate(skip_completed=True)

    def _in_validation(self, _: Engine) -> None:
        if self._asked_to_stop():
            raise Stopped

    def _asked_to_stop(self) -> bool:
        """Whether a signal came to any rank; all then know of it."""
        signals = distributed.greatest(self.signal or 0)
        if signals:
            self.signal = signals
        return bool(signals)

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Note a signal instead of ending by it; a second one of its kind has its usual effect.

        Not so with several processes: there the second comes by itself, from torchrun after a scheduler's.
        """
        alone = idist.get_world_size() == 1

        def note(number: int, _: FrameType | None) -> None:
            self.signal = number
            if alone:
                signal.signal(number, before[signal.Signals(number)])

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _files(self) -> list[Path]:
        """The checkpoints, newest first."""
        named = [
            path for path in self.folder.glob("iteration_*.pt") if re.fullmatch(r"iteration_\d+_\w{16}", path.stem)
        ]
        return sorted(named, key=lambda path: (path.name.split("_")[1], path.stat().st_mtime_ns), reverse=True)


def start_worker(worker_id: int) -> None:
    """Begin a loader's worker as MONAI does, in a process group of its own.

    A Ctrl-C, or a SIGTERM to the whole group, then leaves the workers alive until the main process has saved.
    """
    os.setpgrp()
    worker_init_fn(worker_id)


def _best_of(state: Any) -> list[Any]:
    return [float(state.best_metric), int(state.best_metric_epoch)]
