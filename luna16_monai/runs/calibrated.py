"""What ``luna16 calibrate`` found out about the weights of a run: ``calibration.json``, which predict reads.

It wins over the calibration that the training left in ``metrics.json``, and belongs to one ``model.pt``: beside another
it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna16_monai.evaluation.calibration import Calibration
from luna16_monai.machine.files import sha256, write_json
from luna16_monai.runs.folder import Metrics, RunFolder

THRESHOLD, BOTH_STAGES = "threshold", "threshold_of_both_stages"


@dataclass(frozen=True)
class Calibrated:
    """What stands in ``calibration.json``.

    Attributes:
        calibration: of the raw probabilities; None where nothing was fitted.
        threshold: of the calibrated probability; None where none was chosen.
        both_stages: threshold of the probability of detector and classifier together; None where none was chosen.
    """

    calibration: Calibration | None
    threshold: float | None
    both_stages: float | None


def read_calibrated(weights: Path) -> Calibrated:
    """Return the calibration and the thresholds that belong to weights; of a run without any, nothing but None.

    Raises:
        ValueError: the file is damaged, or belongs to other weights.
    """
    run = RunFolder(weights.parent)
    if not run.calibration_file.is_file() or weights.name != run.weights.name:
        return Calibrated(run.calibration(), None, None)
    content = read_content(run)
    if content["weights_sha256"] != sha256(weights):
        raise ValueError(
            f"{run.calibration_file} belongs to other weights than {weights}: run luna16 calibrate --run {run.path} "
            "again, or remove it"
        )
    fitted = Metrics(content).calibrations.get("platt")
    chosen = [(content.get(key) or {}).get("threshold") for key in (THRESHOLD, BOTH_STAGES)]
    line = fitted or run.calibration()
    # chosen among raw probabilities; predict compares the calibrated ones
    threshold = None if chosen[0] is None else _as_told(line, float(chosen[0]))
    return Calibrated(line, threshold, None if chosen[1] is None else float(chosen[1]))


def read_content(run: RunFolder) -> dict[str, Any]:
    """Return what stands in ``calibration.json``; nothing where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not run.calibration_file.is_file():
        return {}
    try:
        content = dict(json.loads(run.calibration_file.read_text(encoding="utf-8")))
        content["weights_sha256"] = str(content["weights_sha256"])
        Metrics(content).calibrations.get("platt")
        for key in (THRESHOLD, BOTH_STAGES):
            float((content.get(key) or {"threshold": 0})["threshold"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run.calibration_file} is damaged ({error}): run luna16 calibrate --run {run.path} again, or remove it"
        ) from error
    return content


def write_calibrated(run: RunFolder, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``calibration.json``; what it held of the same weights stays where the content does not say it anew."""
    digest = sha256(run.weights)
    before = read_content(run)
    kept = before if before.get("weights_sha256") == digest else {}
    whole = {**kept, **content, "weights_sha256": digest}
    write_json(run.calibration_file, whole)
    return whole


def _as_told(line: Calibration | None, probability: float) -> float:
    import numpy as np

    return probability if line is None else float(line.apply(np.array([probability]))[0])
