"""The detector's metrics, gradients, and a training of its bundle that goes on bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luna16_monai.detection.crops import LabelledScans
from luna16_monai.detection.peaks import LEAST_MM
from luna16_monai.evaluation.submission import validation_reference
from luna16_monai.store.reading import Store
from luna16_monai.training.detection import ClipGradients, DetectionScores, MeanLoss

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "bundles" / "nodule_detection" / "configs" / "train.yaml"


def test_mean_loss_weighs_batches_by_their_crops_and_goes_on():
    whole, first, rest = MeanLoss(), MeanLoss(), MeanLoss()
    whole.update((torch.tensor(2.0), 3))
    whole.update((torch.tensor(6.0), 1))
    assert whole.compute() == {"loss": 3.0}  # (3 x 2 + 6) / 4
    first.update((torch.tensor(2.0), 3))
    rest.load_state_dict(first.state_dict())
    rest.update((torch.tensor(6.0), 1))
    assert rest.compute() == {"loss": 3.0}


def test_clip_gradients_scales_them_to_a_norm():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    engine = SimpleNamespace(amp=False, scaler=None)
    ClipGradients(layer, 10.0)(engine)
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    ClipGradients(layer, 1.0)(engine)
    np.testing.assert_allclose(layer.weight.grad, [[0.6, 0.8]], rtol=1e-5)


def test_detection_scores_of_a_perfect_output(phantom_dir, store_dir):
    scans = LabelledScans(phantom_dir, Store(store_dir))
    uids = scans.store.series_uids
    scores = DetectionScores(
        validation_reference(phantom_dir, uids), scans, uids, SimpleNamespace(stride_zyx=(4, 4, 4))
    )  # fmt: skip
    scores.reset()
    expected = 0
    for number, uid in enumerate(uids):
        labels = scans.labels(uid)
        output = np.full((5, *(-(-side // 4) for side in labels.geometry.shape_zyx)), -20, np.float32)
        nodules = labels.nodules[labels.lungs.contains(labels.geometry.world_from_voxel(labels.nodules[:, :3]))]
        for *place, diameter in nodules:
            cell = np.clip(np.rint((np.array(place) - 1.5) / 4), 0, np.array(output.shape[1:]) - 1).astype(int)
            output[(slice(None), *cell)] = [5, *((np.array(place) - 1.5) / 4 - cell), np.log(diameter)]
        expected += len(nodules)
        start = torch.zeros(1, 3, dtype=torch.int64)
        scores.update((torch.from_numpy(output)[None], start, torch.tensor([number])))
    values = scores.compute()
    assert values["sensitivity_at_10"] == pytest.approx(expected / len(scans.nodules))
    assert values["cpm"] == pytest.approx(expected / len(scans.nodules))
    assert expected >= len(scans.nodules) - 1  # the mass in a corner, see test_lungs
    assert LEAST_MM > 0
    first = scores.table.values > 0.9
    known = {round(float(value), 3) for value in scans.nodules.values}
    assert {round(float(value), 3) for value in scores.diameter_mm[first]} <= known


DATA = {"validation_stride": 4, "num_workers": 0, "device": "cpu"}


def run(call, phantom_dir, store_dir, settings, *more):
    places = {"dataset_dir": phantom_dir, "store_dir": store_dir, **DATA, **settings}
    words = [str(word) for key, value in places.items() for word in (f"--{key}", value)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-W", "ignore", *call, *words, *more]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600)


def train(phantom_dir, store_dir, output, *more, launch=(), config=str(CONFIG)):
    settings = {
        "output_dir": output, "max_epochs": 2, "samples_per_epoch": 8, "batch_size": 2, "shape_zyx": "[32,48,48]",
        "checkpoint_iterations": 3,
    }  # fmt: skip
    call = [*launch, "-m", "monai.bundle", "run", "training", "--config_file", config]
    return run(call, phantom_dir, store_dir, settings, *more)


def test_training_goes_on_bit_for_bit(phantom_dir, store_dir, tmp_path):
    whole = train(phantom_dir, store_dir, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert {"cpm", "sensitivity_at_candidates", "diameter_error_mm", "lost_to_lung_mask"} <= set(metrics)
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    assert len(checkpoints) == 2  # of iteration 6 or 7, within the second epoch, and of its end
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "checkpoints").mkdir()
    checkpoints[0].rename(tmp_path / "again" / "checkpoints" / checkpoints[0].name)
    again = train(phantom_dir, store_dir, tmp_path / "again", "--resume", "true")
    assert again.returncode == 0, again.stderr[-2000:]
    last = sorted((tmp_path / "again" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)[-1]
    assert last.name == checkpoints[1].name  # a checkpoint's name carries its hash


@pytest.mark.slow
def test_detector_trains_in_two_processes_and_validates_as_one(phantom_dir, store_dir, tmp_path):
    """From the weights that two processes leave, one gets the same scores; false positives are mined once, for both."""
    several = str([str(CONFIG), str(CONFIG.with_name("multi_gpu_train.yaml"))])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    # bfloat16 is left out: whether it is taken hangs on the time of a self-test
    done = train(phantom_dir, store_dir, tmp_path / "run", "--bf16", "false", launch=torchrun, config=several)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("false positives mined in 6 scans") == 1
    for line in ("training in 2 processes (gloo)", "epoch 1 training: loss", "epoch 2 validation: cpm"):
        assert done.stderr.count(line) == 1, line
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["processes"], record["settings"]["processes"]) == (2, 2)
    # 2e-3 times the square root of 2
    assert record["settings"]["scaled_learning_rate"] == pytest.approx(2.828e-3, rel=1e-3)
    config = str(CONFIG.with_name("evaluate.yaml"))
    call = ["-m", "monai.bundle", "run", "evaluating", "--config_file", config]
    places = {"run_dir": tmp_path / "run", "output_dir": tmp_path / "alone"}
    scored = run(call, phantom_dir, store_dir, places)
    assert scored.returncode == 0, scored.stderr[-3000:]
    one, other = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("run", "alone")
    )
    for name in ("cpm", "sensitivity_at_candidates", "candidates", "positives", "diameter_error_mm", "series"):
        assert one[name] == other[name], name
