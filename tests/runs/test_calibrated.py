"""What ``luna16 calibrate`` leaves, and whose weights it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from luna16_monai.evaluation.calibration import Calibration
from luna16_monai.runs.calibrated import Calibrated, read_calibrated, write_calibrated
from luna16_monai.runs.folder import RunFolder

FITTED = {"platt": {"slope": 2.0, "offset": -1.0}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was calibrated by its training."""
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "metrics.json").write_text(json.dumps({"calibration": {"platt": {"slope": 1.0, "offset": 0.5}}}))
    return RunFolder(tmp_path)


def test_without_calibrate_the_training_s_calibration_counts(run):
    assert read_calibrated(run.weights) == Calibrated(Calibration(1.0, 0.5), None, None)


def test_calibrate_wins_and_its_threshold_is_of_the_calibrated_probability(run):
    write_calibrated(run, {"calibration": FITTED, "threshold": {"threshold": 0.5}})
    found = read_calibrated(run.weights)
    assert found.calibration == Calibration(2.0, -1.0)
    # the logit of 0.5 is 0, so 1 / (1 + e)
    assert found.threshold == pytest.approx(1 / (1 + np.e))
    assert found.both_stages is None


def test_a_second_call_keeps_what_it_does_not_say_anew(run):
    write_calibrated(run, {"calibration": FITTED, "threshold": {"threshold": 0.5}})
    write_calibrated(run, {"threshold_of_both_stages": {"threshold": 0.25}})
    found = read_calibrated(run.weights)
    assert (found.calibration, found.both_stages) == (Calibration(2.0, -1.0), 0.25)
    run.weights.write_bytes(b"other weights")
    write_calibrated(run, {"threshold_of_both_stages": {"threshold": 0.75}})
    assert read_calibrated(run.weights) == Calibrated(Calibration(1.0, 0.5), None, 0.75)


def test_a_calibration_of_other_weights_is_refused(run):
    write_calibrated(run, {"calibration": FITTED})
    run.weights.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"calibration.json belongs to other weights .* run luna16 calibrate"):
        read_calibrated(run.weights)


def test_a_damaged_file_is_refused(run):
    run.calibration_file.write_text('{"threshold": 3}')
    with pytest.raises(ValueError, match=r"calibration.json is damaged"):
        read_calibrated(run.weights)
