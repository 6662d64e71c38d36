"""What happens before a run starts: its output folder is claimed, the network to be scored is that of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist

from luna16_monai.bundle.config import change_config
from luna16_monai.runs.record import read_network


def claim(output_dir: Path | str, resume: bool) -> None:
    """Make the output folder, and refuse one that holds a run which is not to be continued; rank 0 does.

    What TensorBoard's writers leave of a run that was refused for its settings, and so never began, is no run.

    Raises:
        FileExistsError: the folder is in use and ``resume`` is off.
    """
    if idist.get_rank() > 0:
        return
    folder = Path(output_dir)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    used = [name for name in there if name != "validation" and not name.startswith("events.out.tfevents")]
    if used and not resume:
        raise FileExistsError(
            f"output_dir {folder} is in use (it holds {', '.join(used[:5])}): continue that run with --resume true, "
            "or name another output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)


def take_recorded_network(weights: Path | str) -> None:
    """Let the running config build the network, and cut the cutouts, that the ``run.json`` beside weights records.

    To be called early in ``initialize``, once the config is whole. Without a record the config stays as it is.

    Raises:
        ValueError: the record is damaged.
    """
    record = read_network(Path(weights))

    def change(config: dict[str, Any]) -> bool:
        if not record or not str(config["network_def"].get("_target_", "")).endswith(".NoduleNet"):
            return False
        config.update(record, network_def={**config["network_def"], **record["network_def"]})
        return True

    change_config(change)
