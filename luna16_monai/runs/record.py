"""What a run says of itself: the series that it was trained on, and its calibration."""

from __future__ import annotations

import json
from pathlib import Path

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
