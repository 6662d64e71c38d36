"""Record what a small seeded run of everything gives, and compare it with an earlier record, bit for bit.

``python tools/same_numbers.py --work DIR --output now.json [--against before.json]`` draws a phantom, prepares it,
trains both bundles, predicts and evaluates, each by the command that a user would type, on one thread. The record holds
a checksum of every tensor, table and voxel, and the figures of ``metrics.json`` as they stand there. For a change that
must not alter results: record before it, compare after it, on one machine. Nothing of the package is imported, and the
names of files stand here as other programs know them, so that one script records any version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LUNA16 = [sys.executable, "-m", "luna16_monai"]
TRAINING = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
SETTINGS = {"num_workers": 0, "max_epochs": 2, "batch_size": 16, "validation_stride": 3}
NODULES = {**SETTINGS, "shape_zyx": "[16, 24, 24]", "margin_zyx": "[4, 6, 6]", "samples_per_epoch": 96, "seed": 5}
MALIGNANCY = {**SETTINGS, "samples_per_epoch": 32, "seed": 6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the data and runs; kept ones are reused")
    parser.add_argument("--output", type=Path, required=True, help="the record, JSON")
    parser.add_argument("--against", type=Path, help="an earlier record")
    options = parser.parse_args()
    record = run(options.work.resolve())
    options.output.write_text(json.dumps(record, indent=2), encoding="utf-8")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    other = sorted(name for name in before.keys() | record.keys() if before.get(name) != record.get(name))
    for name in other:
        print(f"{name}: {before.get(name)}, now {record.get(name)}")
    print(f"{len(record)} values, {len(other)} differ")
    return 1 if other else 0


def run(work: Path) -> dict[str, Any]:
    """Do the whole job in a folder; give the record."""
    data, store, first, second = (work / name for name in ("phantom", "store", "nodules", "malignancy"))
    _call([*LUNA16, "phantom", "--output", data, "--scans", 6, "--seed", 3, "--workers", 1])
    _call([*LUNA16, "prepare", "--data", data, "--store", store, "--workers", 1])
    places = {"dataset_dir": data, "store_dir": store}
    _train("nodule_classification", {**places, **NODULES, "output_dir": first})
    more = {"output_dir": second, "init_weights": first / "model.pt", "nodule_run": first}
    _train("malignancy_classification", {**places, **MALIGNANCY, **more})
    scan = sorted(data.glob("subset*/*.mhd"))[0]
    points = work / "points.csv"
    lines = (data / "candidates_V2.csv").read_text(encoding="utf-8").splitlines()
    points.write_text("\n".join([lines[0], *[line for line in lines if line.startswith(scan.stem)]]) + "\n", "utf-8")
    predictions = work / "predictions.csv"
    _call([*LUNA16, "predict", "--ct", scan, "--candidates", points, "--output", predictions, "--backend", "torch"])
    tables = ["--annotations", data / "annotations.csv", "--excluded", data / "annotations_excluded.csv"]
    series = work / "series.csv"
    held_out = {line.split(",")[0] for line in (first / "submission.csv").read_text(encoding="utf-8").splitlines()[1:]}
    series.write_text("\n".join(sorted(held_out)) + "\n", encoding="utf-8")
    scored = [*LUNA16, "evaluate", "--submission", first / "submission.csv", *tables, "--seriesuids", series]
    _call([*scored, "--output", work / "evaluation"])
    record: dict[str, Any] = {}
    for path in [*sorted(data.glob("*.csv")), *sorted(data.glob("subset*/*.mhd")), points, predictions]:
        record[str(path.relative_to(work))] = _checksum(path.read_bytes())
    for path in sorted(store.glob("*.b2nd")):
        record[str(path.relative_to(work))] = _voxels(path)
    for folder in (first, second):
        for name, tensor in torch.load(folder / "model.pt", weights_only=True).items():
            record[f"{folder.name}/model.pt {name}"] = _checksum(tensor.contiguous().numpy().tobytes())
        for table in ("submission.csv", "candidates.csv", "nodules.csv", "rated_nodules.csv"):
            if (folder / table).exists():
                record[f"{folder.name}/{table}"] = _checksum((folder / table).read_bytes())
    for folder in (first, second, work / "evaluation"):
        _figures(f"{folder.name}/metrics.json", json.loads((folder / "metrics.json").read_text("utf-8")), record)
    return record


def _train(bundle: str, settings: dict[str, Any]) -> None:
    if (settings["output_dir"] / "model.pt").exists():
        return
    words = [*TRAINING, "training", "--config_file", ROOT / "bundles" / bundle / "configs" / "train.yaml"]
    _call([*words, *[word for key, value in settings.items() for word in (f"--{key}", value)]])


def _call(words: list[Any]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([str(word) for word in words], check=True, env=environment, stdout=subprocess.DEVNULL)


def _voxels(path: Path) -> str:
    import blosc2

    return _checksum(blosc2.open(str(path))[:].tobytes())


def _figures(name: str, value: Any, record: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            _figures(f"{name} {key}", one, record)
    else:
        record[name] = value


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
