"""The commands of docs/own-data.md, word by word, on two small drawn sets that stand for LUNA16 and for a hospital."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luna16_monai.cli import main as cli
from luna16_monai.phantom.data_set import write_phantom
from luna16_monai.phantom.nodules import ScanSettings
from luna16_monai.runs.calibrated import read_calibrated

ROOT = Path(__file__).parents[1]
SMALL = {
    "nodule_detection": [
        "--max_epochs",
        "1",
        "--samples_per_epoch",
        "8",
        "--num_workers",
        "0",
        "--mining_epochs",
        "[]",
    ],
    "nodule_classification": ["--max_epochs", "1", "--samples_per_epoch", "48", "--batch_size", "16"],
}


def page_commands() -> list[list[str]]:
    """The words of each command, in the order of the page."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in page.splitlines() if line.startswith("    ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the bundles, ``luna16`` and, without a list of candidates, ``my_hospital``."""
    common = {"slices": (32, 36), "rows": 80, "negatives_per_positive": 4.0}
    write_phantom(
        tmp_path / "luna16", scans=4, seed=11, workers=1, progress=False,
        settings=ScanSettings(nodules=(2, 3), **common),
    )  # fmt: skip
    hospital = tmp_path / "my_hospital"
    write_phantom(
        hospital, scans=6, seed=12, workers=1, progress=False,
        settings=ScanSettings(nodules=(1, 2), difficulty=1.5, **common),
    )  # fmt: skip
    # CTs in the folder itself, as people have them, and a list of nodules: nothing else
    for path in sorted(hospital.glob("subset*/*")):
        path.rename(hospital / path.name)
    for table in ("candidates_V2.csv", "seriesuids.csv", "annotations_excluded.csv"):
        (hospital / table).unlink()
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    monkeypatch.chdir(tmp_path)
    for variable in ("LUNA16_DATA", "LUNA16_STORE", "LUNA16_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_page_fine_tune_calibrate_and_choose(place, monkeypatch):
    """Two trainings in processes of their own, and all verbs of the page: two minutes."""
    told = {}
    for words in page_commands():
        if words[0] == "export":
            for word in words[1:]:
                monkeypatch.setenv(*word.split("=", 1))
        elif words[0] == "python":
            bundle = next(name for name in SMALL if any(name in word for word in words))
            settings = dict(zip(words[5::2], words[6::2], strict=True))
            settings |= dict(zip(SMALL[bundle][::2], SMALL[bundle][1::2], strict=True))
            given = [word for pair in settings.items() for word in pair]
            subprocess.run(
                [sys.executable, "-W", "ignore", *words[1:5], *given, "--device", "cpu", "--num_workers", "0"],
                check=True,
                env={**os.environ},
            )
        else:
            assert words[0] == "luna16"
            # doctor has findings of the machine that runs the test
            assert cli.main(words[1:]) in ((0, 1) if words[1] == "doctor" else (0,)), words
            told[words[1]] = words
    assert set(told) == {"detect", "convert", "doctor", "prepare", "report", "calibrate", "predict"}
    runs = place / "runs"
    for name, keys in (("nodule_classification", {"cpm", "roc_auc"}), ("nodule_detection", {"cpm", "nodules"})):
        metrics = json.loads((runs / name / "metrics.json").read_text())
        assert list(metrics["by_data_set"]) == ["luna16", "my_hospital"]
        assert all(keys <= set(one) for one in metrics["by_data_set"].values())
        data = json.loads((runs / name / "run.json").read_text())["data"]
        assert (data["name"], data["kind"]) == ("luna16, my_hospital", "synthetic")
        # of each set every fifth scan is held out, the first of four, the first and the last of six
        parts = {
            key: (one["train"]["series"], metrics["by_data_set"][key]["series"])
            for key, one in data["data_sets"].items()
        }
        assert parts == {"luna16": (3, 1), "my_hospital": (4, 2)}
        settings = json.loads((runs / name / "run.json").read_text())["settings"]
        assert settings["dataset_dir"] == ["luna16", "my_hospital"]
    assert "my_hospital" in (runs / "nodule_classification" / "report.html").read_text()
    content = json.loads((runs / "nodule_classification" / "calibration.json").read_text())
    assert content["threshold"]["wanted"] == 1
    assert content["threshold_of_both_stages"]["wanted"] == 2
    chosen = read_calibrated(runs / "nodule_classification" / "model.pt")
    assert chosen.threshold == pytest.approx(content["threshold"]["calibrated_threshold"])
    assert chosen.both_stages == content["threshold_of_both_stages"]["threshold"]
