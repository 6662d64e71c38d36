"""The paragraph "Methods": every sentence from the record, none without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from luna16_monai.report.methods import methods
from luna16_monai.runs.folder import Metrics, RunRecord

SETTINGS: dict[str, Any] = {
    "seed": 5,
    "max_epochs": 10,
    "samples_per_epoch": 200000,
    "batch_size": 64,
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "ratio": [1, 5],
    "validation_stride": 20,
    "validation_subset": None,
    "test_subset": None,
    "init_weights": None,
    "spacing_zyx": [1.25, 0.7, 0.7],
    "shape_zyx": [32, 48, 48],
    "network_def": {"_target_": "luna16_monai.networks.nodule_net.NoduleNet", "spatial_shape_zyx": "@shape_zyx"},
}
CONTENT: dict[str, Any] = {
    "settings": SETTINGS,
    "versions": {"luna16_monai": "0.2.0", "torch": "2.13.0", "monai": "1.6.1", "numpy": "2.4.6", "python": "3.11.7"},
    "device": "cpu",
    "threads": 2,
    "parameters": 222220,
    "network_def": {"channels": [8, 16], "norm": None, "dropout": 0.0, "two_scales": False},
    "data": {
        "name": "luna16",
        "kind": "real",
        "train": {"series": 843, "candidates": 716000, "positives": 1480},
        "validation": {"series": 45, "candidates": 38975, "positives": 77},
        "train_series": ["a", "b"],
    },
    "seen_series": ["a", "b"],
}
SCORES: dict[str, Any] = {
    "cpm": 0.5,
    "cpm_ci95": [0.4, 0.6],
    "scans": 45,
    "nodules": 60,
    "excluded_findings": 9,
    "epoch": 7,
    "key_metric": "average_precision",
    "chosen_on": "the validation split",
    "calibration": {"cross_fitted_folds": 5, "raw": {}},
}


def told(scores: dict[str, Any] | None = None, **settings: Any) -> dict[str, str]:
    record = RunRecord.parse({**CONTENT, "settings": {**SETTINGS, **settings}})
    return methods(record, Metrics(SCORES | (scores or {})))


def test_methods_of_a_training_word_by_word() -> None:
    assert told() == {
        "Data": "The data set luna16 of CTs was used: 843 for training (716,000 candidates, 1,480 of them nodules) and "
        "45 for validation (38,975 candidates, 77 of them nodules). CTs were resampled to 1.25 x 0.7 x 0.7 mm (z, y, "
        "x); the network was trained on boxes of 32 x 48 x 48 voxels (z, y, x).",
        "Split": "Every 20th series, in sorted order, and all of its patient were held out for validation.",
        "Network": "NoduleNet with 222,220 parameters and 8 and 16 channels, no norm, no dropout.",
        "Training": "Up to 10 epochs of 200,000 samples, drawn in the ratio 1:5, with batches of 64, a learning rate "
        "of 0.001, a weight decay of 0.01 and seed 5, from random weights. Optimiser, schedule and augmentation are "
        "those of the run's config. The weights of epoch 7 were kept, the best by the average precision on the "
        "validation scans, on which the scores are reported too.",
        "Scoring": "45 scans with 60 nodules were scored by LUNA16's rules: a candidate within the radius of a nodule "
        "hits it, further hits count neither way, candidates on excluded findings are left out, and the CPM is the "
        "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan. Intervals are 95 % percentile "
        "intervals of a bootstrap over scans. Probabilities were calibrated by Platt scaling, cross-fitted by scan in "
        "5 folds.",
        "Versions": "luna16_monai 0.2.0, PyTorch 2.13.0, MONAI 1.6.1 and Python 3.11.7, on CPU with 2 threads.",
    }


@pytest.mark.parametrize(
    ("settings", "heading", "part"),
    [
        ({"validation_subset": 9}, "Split", "LUNA16's official subset 9 was held out for validation."),
        ({"validation_subset": 9, "join_patients": True}, "Split", "All scans of its patients were held out with it."),
        ({"test_subset": 3}, "Split", "subset 3, with all scans of its patients, was set aside for a test."),
        ({"validation_negatives": 1000}, "Split", "validation took a fixed sample of 1,000."),
        ({"validation_stride": 3}, "Split", "Every 3rd series"),
        ({"validation_stride": 11}, "Split", "Every 11th series"),
        ({"spacing_zyx": None}, "Data", "CTs were kept at their own spacing;"),
        ({"init_weights": "model.pt"}, "Training", ", from the weights model.pt."),
    ],
)
def test_methods_follow_the_settings(settings: dict[str, Any], heading: str, part: str) -> None:
    assert part in told(**settings)[heading]
    assert part not in told()[heading]


def test_methods_of_other_scores() -> None:
    assert "no findings were excluded" in told({"excluded_findings": None})["Scoring"]
    assert "bootstrap" not in told({"cpm_ci95": None})["Scoring"]
    assert told({"calibration": {"fitted_on": "the inner validation"}})["Scoring"].endswith(
        "fitted on the inner validation."
    )
    malignant = told({"cpm": None, "malignancy": {"rule": "median"}})
    assert malignant["Scoring"].startswith("Nodules were called malignant by their readers' ratings (rule: median)")
    assert "1,480 of them malignant nodules" in malignant["Data"]
    assert told({"pooled_folds": [0, 1]})["Split"].startswith("Cross-validation over 2 of LUNA16's ten")


def test_methods_count_what_the_first_weights_had_seen() -> None:
    record = RunRecord.parse({**CONTENT, "seen_series": ["a", "b", "c", "d"]})
    assert methods(record, Metrics(SCORES))["Split"].endswith("had seen 2 series more.")


def test_methods_leave_out_what_is_not_known() -> None:
    assert list(methods(None, Metrics(SCORES))) == ["Scoring"]
    assert methods(None, Metrics({})) == {}
    assert methods(RunRecord.parse({"data": {"name": "mine", "kind": "synthetic"}}), Metrics({})) == {
        "Data": "The data set mine of synthetic CTs was used."
    }
    bare = replace(RunRecord.parse(CONTENT), network_def=None, processes=2)
    assert methods(bare, Metrics({}))["Network"] == "NoduleNet with 222,220 parameters."
    assert methods(bare, Metrics({}))["Versions"].endswith("on CPU with 2 threads and 2 processes.")
