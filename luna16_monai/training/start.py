"""What a config's ``initialize`` calls before it trains, scores or predicts, as one step each.

They look up by name what they need of the running config, and not before it can be read: a ``@network`` in the YAML
would be built before the seed is set, and a ``@resume`` would be the text "false" until the overrides are read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import set_track_meta
from torch import nn

from luna16_monai.bundle.config import build_on, change_config, check_settings, explain_errors, value_of
from luna16_monai.dataset.splits import Split
from luna16_monai.machine.claims import require_empty
from luna16_monai.machine.folder_lists import Folders
from luna16_monai.machine.platforms import require_posix
from luna16_monai.networks.backends import require_device
from luna16_monai.networks.nodule_detector import NoduleDetector
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.precision import try_bfloat16
from luna16_monai.networks.weights import load_initial_weights
from luna16_monai.phantom.drawn import read_drawn
from luna16_monai.runs.folder import RunFolder
from luna16_monai.runs.seen import Seen, read_seen, refuse_in_fold, refuse_seen
from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.detected import detected_tables
from luna16_monai.training import distributed, seeds, tracking

logger = logging.getLogger(__name__)

SHARED = ("bf16", "dataset_dir", "deterministic", "init_weights", "network", "split")
TRAINING = (*SHARED, "device", "output_dir", "resume", "seed")
# the last two are for MONAI, which shows them as parts of the bundle
EVALUATION = (*SHARED, "run_dir", "dataset", "preprocessing")


def training() -> None:
    """Prepare the running config for a training: read, check and claim, then seed and build the network.

    Where ``several_processes`` is true, the group is joined once the settings are checked, and before anything is
    written or built.

    Raises:
        ValueError: a setting is wrong, the weights to start from have seen what is validated or tested on, or a table
            of ``candidates`` is not out-of-fold.
        RuntimeError: this is neither Linux nor macOS.
        FileExistsError: the output folder is in use.
    """
    explain_errors()
    require_posix()
    build_on()
    check_settings(*TRAINING)
    require_device(value_of("device", "cpu"))
    tracking.adapt()
    if value_of("several_processes", False):
        distributed.start(value_of("device"))
    # nothing is validated or tested on that the weights to start from have seen
    refuse_seen_by_first(value_of("init_weights"), value_of("dataset_dir"), value_of("split"))
    refuse_candidates_in_fold(value_of("candidates"), value_of("dataset_dir"), value_of("split"))
    claim(value_of("output_dir"), value_of("resume"))
    if value_of("resume"):
        refuse_other_data_sets(value_of("output_dir"), value_of("split"))
    set_track_meta(False)
    seeds.configure_torch(value_of("deterministic"))
    seeds.seed_network(value_of("seed"))
    first = value_of("init_weights")
    trained = {} if first is None else RunFolder(Path(first).parent).read_network()
    load_initial_weights(value_of("network"), first, trained.get("shape_zyx"))
    choose_precision(value_of("network"), value_of("bf16", False), value_of("device"), value_of("output_dir"))


def evaluation() -> None:
    """Prepare the running config for the scoring of a run: read and check, build the network with its weights.

    Raises:
        ValueError: a setting is wrong, or the weights or the run have seen what is scored.
    """
    explain_errors()
    build_on()
    take_recorded_network(value_of("init_weights"))
    check_settings(*EVALUATION)
    require_device(value_of("device", "cpu"))
    tracking.adapt()
    set_track_meta(False)
    seeds.configure_torch(value_of("deterministic"))
    load_initial_weights(value_of("network"), value_of("init_weights"))
    # the scans that are scored must be none of those that were trained on
    refuse_seen_by_run(value_of("run_dir"), value_of("init_weights"), value_of("dataset_dir"), value_of("split"))


def inference() -> None:
    """Prepare the running config for predictions: read and check.

    Raises:
        ValueError: a setting is wrong.
    """
    explain_errors()
    build_on()
    check_settings()
    require_device(value_of("device", "cpu"))
    set_track_meta(False)


def choose_precision(network: nn.Module, bf16: Any, device: torch.device | str, output_dir: Path | str) -> None:
    """Let those blocks of the network be trained in bfloat16 for which a self-test finds it right and faster.

    On a CPU alone; CUDA has ``amp``. A detector is trained in it as a whole or not at all. A run that goes on keeps the
    blocks that its record names. Several processes take the blocks that are right on all of them.

    Args:
        network: is changed, not copied.
        bf16: whether it is wanted.
        device: of the training.
        output_dir: of the run; what it records is that of the run to continue.

    Raises:
        ValueError: ``bf16`` is neither true nor false, or the network is neither NoduleNet nor NoduleDetector, which is
            one block.
    """
    if not isinstance(bf16, bool):
        raise ValueError(f"bf16 {bf16}: give true or false")
    if not bf16 or torch.device(device).type != "cpu":
        return
    if not isinstance(network, NoduleNet | NoduleDetector):
        raise ValueError(f"bf16 true: {type(network).__name__} is not made of blocks as NoduleNet is: set it to false")
    found = try_bfloat16(network)
    record = RunFolder(output_dir).read_record()
    before = () if record is None else record.bf16_blocks
    wanted = before or found.chosen
    # rank 0 alone may see the run's folder
    first = distributed.from_first(bytes(wanted))
    wanted = tuple(map(bool, first or b""))
    wrong = [distributed.greatest(int(asked and not right)) for asked, right in zip(wanted, found.right, strict=False)]
    chosen = tuple(asked and not bad for asked, bad in zip(wanted, wrong, strict=True))
    if before and chosen != before:
        logger.warning("bf16: this machine trains other blocks in it than the run did before: its results will differ")
    network.bfloat16_blocks = chosen
    numbers = [number for number, low in enumerate(chosen, 1) if low]
    logger.info(
        "bf16: blocks %s of the network (a self-test took %.2f of float32's time; right in blocks %s)",
        ", ".join(map(str, numbers)) or "none",
        found.time_ratio,
        ", ".join(str(number) for number, right in enumerate(found.right, 1) if right) or "none",
    )


def claim(output_dir: Path | str, resume: bool) -> None:
    """Make the output folder, and refuse one that holds a run which is not to be continued; rank 0 does.

    What TensorBoard's writers leave of a run that was refused for its settings, and so never began, is no run.

    Raises:
        FileExistsError: the folder is in use and ``resume`` is off.
    """
    if idist.get_rank() > 0:
        return
    folder = Path(output_dir)
    if not resume:
        cure = "continue that run with --resume true, or name another output_dir"
        require_empty(folder, cure, ignored=("validation", "events.out.tfevents*"))
    folder.mkdir(parents=True, exist_ok=True)


def refuse_other_data_sets(output_dir: Path | str, split: Split) -> None:
    """Check that a run goes on with the data sets that it was trained on; one that was only renamed is the same.

    Of one data set each, the candidates tell, which are compared later.

    Args:
        output_dir: of the run to go on with; without a record of its data nothing is checked.
        split: the training's.

    Raises:
        ValueError: names the data sets of both.
    """
    record = RunFolder(output_dir).read_record()
    now = list(split.data_sets)
    if record is None or not record.data.candidates_sha256:
        return
    before = list(record.data.data_sets or [record.data.name])
    if before == now or len(before) == len(now) == 1:
        return
    if dict(record.data.candidates_sha256) == {"train": split.train.digest(), "validation": split.validation.digest()}:
        return
    order = ", in this order" if sorted(before) == sorted(now) else ""
    raise ValueError(
        f"the run in {output_dir} was trained on the data sets {', '.join(before)}{order}, and dataset_dir now names "
        f"{', '.join(now)}: go on with the former, or start a new run in another output_dir, if need be with "
        f"--init_weights {RunFolder(output_dir).weights}"
    )


def refuse_seen_by_first(init_weights: Path | str | None, dataset_dir: Folders, split: Split) -> None:
    """Check that the weights a training starts from were not trained on what it validates or is tested on.

    Args:
        init_weights: the weights; None, or weights without a record, checks nothing.
        dataset_dir: the data folder, or several; it may say what its scans were drawn from.
        split: the training's.

    Raises:
        ValueError: names the first such series.
    """
    seen, drawn = read_seen(init_weights), read_drawn(dataset_dir)
    splits = {"validation": split.validation_series, "test": split.test_series}
    refuse_seen(f"init_weights {init_weights}", seen, drawn, **splits)


def refuse_candidates_in_fold(candidates: str | None, dataset_dir: Folders, split: Split) -> None:
    """Check that what a detector proposed in training series was proposed by weights that had not seen them.

    Args:
        candidates: the setting, see `detected_tables`; None checks nothing.
        dataset_dir: the data folder, or several; it may say what its scans were drawn from.
        split: the training's.

    Raises:
        ValueError: names the table, and the first such series.
    """
    tables, drawn = detected_tables(candidates, DataSets.of(dataset_dir)), read_drawn(dataset_dir)
    records = refuse_in_fold(tables, split.train_series, drawn)
    for name, series_uids in (("validated", split.validation_series), ("tested", split.test_series)):
        known = {uid for seen in records for uid in seen.among(series_uids, drawn)}
        if known:
            logger.info(
                "candidates: detectors that proposed some of them were trained on %d of the %d series that are %s on; "
                "their labels are not used",
                *(len(known), len(series_uids), name),
            )


def refuse_seen_by_run(
    run_dir: Path | str, init_weights: Path | str | None, dataset_dir: Folders, split: Split
) -> None:
    """Check that neither the run nor the weights that are scored were trained on what they are scored on.

    Args:
        run_dir: the output folder of the training.
        init_weights: the weights that are scored: the run's, or others.
        dataset_dir: the data folder, or several; it may say what its scans were drawn from.
        split: its validation series are scored.

    Raises:
        ValueError: names the first such series.
    """
    drawn, scored = read_drawn(dataset_dir), {"evaluation": split.validation_series}
    run = RunFolder(run_dir)
    refuse_seen(f"the run in {run_dir}", Seen.of(run.seen_series(), drawn), drawn, **scored)
    refuse_seen(f"the weights {init_weights}", read_seen(init_weights), drawn, **scored)


def take_recorded_network(weights: Path | str) -> None:
    """Let the running config build the network, and cut the cutouts, that the ``run.json`` beside weights records.

    To be called early in ``initialize``, once the config is whole. Without a record the config stays as it is.

    Raises:
        ValueError: the record is damaged.
    """
    record = RunFolder(Path(weights).parent).read_network()

    def change(config: dict[str, Any]) -> bool:
        if not record or not str(config["network_def"].get("_target_", "")).endswith(".NoduleNet"):
            return False
        config.update(record, network_def={**config["network_def"], **record["network_def"]})
        return True

    change_config(change)
