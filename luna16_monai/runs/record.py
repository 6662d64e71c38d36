"""What a run says of itself: the series that it was trained on, and its calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luna16_monai.evaluation.calibration import Calibration


def read_calibration(weights: Path) -> Calibration | None:
    """The calibration that belongs to weights: the ``metrics.json`` beside them tells; None where it does not.

    Raises:
        ValueError: the file is damaged.
    """
    path = weights.parent / "metrics.json"
    if not path.is_file():
        return None
    try:
        line = json.loads(path.read_text(encoding="utf-8")).get("calibration", {}).get("platt")
        return None if line is None else Calibration(float(line["slope"]), float(line["offset"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no calibration that can be read: remove it, or train anew") from error


RUN = "run.json"


def read_network(weights: Path) -> dict[str, Any]:
    """Return what a ``run.json`` beside weights says of their network; nothing where there is no such file.

    Returns:
        ``network_def``, the arguments of ``NoduleNet``, without the norms, which ``model.pt`` holds folded; and
        ``shape_zyx`` and ``spacing_zyx`` of the cutouts. Empty for a run that recorded no network.

    Raises:
        ValueError: the file is damaged.
    """
    path = weights.parent / RUN
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("network_def") is None:
            return {}
        arguments = dict(record["network_def"])
        if arguments["norm"] == "BATCH":
            arguments |= {"norm": None, "bias": True}
        spacing = record["settings"].get("spacing_zyx")
        return {"network_def": arguments, "shape_zyx": arguments["spatial_shape_zyx"], "spacing_zyx": spacing}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say which network its weights belong to: train it anew") from error


def trained_series(run_dir: Path | str) -> tuple[str, ...]:
    """The series that a run was trained on, as its ``run.json`` tells; none where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(run_dir) / RUN
    if not path.is_file():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["data"]["train_series"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} does not tell what the run was trained on: train it anew, or evaluate its model.pt by "
            "--init_weights with a run_dir that has no run.json"
        ) from error


def trained_beside(weights: Path | str | None) -> tuple[str, ...]:
    """The series that weights were trained on, as far as a ``run.json`` beside them tells.

    Raises:
        ValueError: that file is damaged.
    """
    return () if weights is None else trained_series(Path(weights).parent)
