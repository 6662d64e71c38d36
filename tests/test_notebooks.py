"""The notebooks in docs/notebooks: they run on other data than the demo's, and tell what is there."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from luna16_monai.evaluation.calibration import calibrate
from luna16_monai.evaluation.match import MarkStatus
from luna16_monai.evaluation.submission import evaluate, validation_reference
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.results import write_results
from luna16_monai.store.reading import Store
from luna16_monai.tables.luna16 import read_candidates

pytest.importorskip("matplotlib", reason="the notebooks need the extra 'report'")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def executed(name: str, folders: dict[str, Path], ask: str) -> tuple[str, Any]:
    """What a notebook prints where it lies, and what an expression gives after its last cell, through JSON."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({ask}))"))
    environment = {**os.environ, **{key: str(path) for key, path in folders.items()}}
    # the package is found where the tests have it, installed or not
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # where the extra 'mlflow' is installed, MONAI imports a tqdm that misses ipywidgets
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    answer = "".join(output["text"] for output in notebook.cells[-1]["outputs"])
    return "".join(printed), json.loads(answer)


def test_explore_tells_what_lies_in_the_data(phantom_dir, store_dir):
    ask = """{
        "drawn": len(drawn),
        "as_it_is": drawn[0].tolist() == cutouts_of(candidates, [row])[0].tolist(),
        "moved": float(np.abs(drawn[1] - drawn[0]).mean()),
        "same_middle": float(np.abs((drawn[1] - with_margin[1])[12:20, 20:28, 20:28]).max()),
        "same_corner": float(np.abs((drawn[1] - with_margin[1])).max()),
    }"""
    printed, answer = executed("explore.ipynb", {"LUNA16_DATA": phantom_dir, "LUNA16_STORE": store_dir}, ask)
    tables = {name: rows_of(phantom_dir / f"{name}.csv") for name in ("annotations", "annotations_excluded")}
    candidates = rows_of(phantom_dir / "candidates_V2.csv")
    positives = sum(row["class"] == "1" for row in candidates)
    counts = f"{len(tables['annotations'])} nodules, {len(tables['annotations_excluded'])} findings"
    assert f"8 scans, {counts} that do not count\n" in printed
    assert f"{len(candidates)} candidates, {positives} of them on a nodule: one in" in printed
    headers = [path.read_text(encoding="utf-8") for path in phantom_dir.glob("subset*/*.mhd")]
    flipped = sum("TransformMatrix = -1" in header for header in headers)
    assert f"{flipped} of 8 scans are stored flipped\n" in printed
    # eleven draws after the cutout itself, all different from it
    assert answer["drawn"] == 12
    assert answer["as_it_is"] is True
    assert answer["moved"] > 10
    # the margin changes the corners, not what lies in the middle; rounding of HU in float32
    assert answer["same_middle"] < 0.1
    assert answer["same_corner"] > 10


@pytest.fixture
def runs_dir(phantom_dir, store_dir, tmp_path) -> Path:
    """Runs with one that says 0.9 to all positives and 0.1 to the others of three scans, but for one false alarm."""
    series = Store(store_dir).series_uids[:3]
    truth = validation_reference(phantom_dir, series)
    assert truth is not None
    given = read_candidates(phantom_dir)
    table = given.select(given.series_codes(series) >= 0)
    label = table.values.astype(int)
    probability = np.where(label == 1, 0.9, 0.1)
    status = truth.match(table, probability).mark_status
    probability[np.flatnonzero((label == 0) & (status == MarkStatus.FALSE_POSITIVE))[0]] = 0.95
    marks = replace(table, values=probability)
    evaluation = evaluate(marks, truth, draws=20)
    calibrated, calibration = calibrate(probability, label, table.series)
    metrics = {**evaluation.scores, "calibration": calibration}
    run = tmp_path / "runs" / "demo"
    write_results(run, metrics, marks, probability, evaluation, label, calibrated)
    torch.manual_seed(0)
    torch.save(NoduleNet(two_scales=True, return_probabilities=False).state_dict(), run / "model.pt")
    return run.parent


def test_inspect_tells_what_a_run_got_right_and_wrong(store_dir, runs_dir):
    ask = """{
        "nodules": match.nodule_scan.size, "reached": int(match.nodule_reached.sum()), "cpm": cpm(match),
        "false": [one.probability for one in false], "counted": counted, "positives": int(label.sum()),
    }"""
    printed, answer = executed("inspect.ipynb", {"LUNA16_STORE": store_dir, "LUNA16_RUNS": runs_dir}, ask)
    # one false alarm in three scans stands above all nodules: nothing at 1/8 and 1/4, all that can be found from 1/2 on
    found = answer["reached"] / answer["nodules"]
    assert answer["cpm"] == pytest.approx(5 / 7 * found)
    assert f"CPM {5 / 7 * found:.3f}, 95 % interval" in printed
    assert "  0.000 at 0.25 false positives a scan\n" in printed
    assert f"  {found:.3f} at 0.5 false positives a scan\n" in printed
    assert "at a threshold of 0.90: 1 false positives, 1 in the worst scan, none in 2\n" in printed
    assert answer["false"][:2] == [0.95, 0.1]
    counted = {name: answer["counted"][name] for name in ("tp", "fp", "fn", "recall")}
    assert counted == {"tp": answer["positives"], "fp": 1, "fn": 0, "recall": 1.0}
    assert "candidates with a probability around 0.10: 0.00 of them are nodules\n" in printed


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebook_is_small_and_says_nothing_of_the_machine_that_ran_it(name):
    path = FOLDER / name
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 500_000
    for word in ("/home/", "/root", "/work", "/tmp", "site-packages", "Traceback"):
        assert word not in text, word
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it as a whole, from above"
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert "say nothing about real ones" in text
