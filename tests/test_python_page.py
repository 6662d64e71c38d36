"""The page docs/python.md: its examples run word for word, one after the other, and give what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from luna16_monai.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(phantom_dir: Path, store_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples have defined, run in a folder as make demo leaves it.

    The run's submission has a mark of 0.5 in the middle of each nodule but the first.
    """
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    (folder / "data" / "phantom").symlink_to(phantom_dir)
    (folder / "data" / "store").symlink_to(store_dir)
    run = folder / "runs" / "demo"
    run.mkdir(parents=True)
    nodules = (phantom_dir / "annotations.csv").read_text(encoding="utf-8").splitlines()[1:]
    marks = [",".join([*line.split(",")[:4], "0.5"]) for line in nodules[1:]]
    submission = "\n".join(["seriesuid,coordX,coordY,coordZ,probability", *marks, ""])
    (run / "submission.csv").write_text(submission, encoding="utf-8")
    words = ["--submission", run / "submission.csv", "--annotations", phantom_dir / "annotations.csv"]
    words += ["--excluded", phantom_dir / "annotations_excluded.csv", "--seriesuids", phantom_dir / "seriesuids.csv"]
    assert main(["evaluate", *map(str, words), "--bootstrap", "0", "--output", str(run)]) == 0
    found: dict[str, Any] = {"nodules": nodules}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in EXAMPLES:
            exec(compile(example, "docs/python.md", "exec"), found)
    return found


def test_every_section_has_its_example():
    assert len(EXAMPLES) == len(re.findall(r"^## ", PAGE, re.MULTILINE)) == 7


def test_open_ct_example_gives_the_voxels_and_their_place(names, phantom_dir):
    (path,) = phantom_dir.glob(f"subset?/{names['scan'].series_uid}.mhd")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(names["hu"], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(names["first_xyz"], image.TransformIndexToPhysicalPoint((0, 0, 0)), atol=1e-6)
    np.testing.assert_allclose(names["first_zyx"], (0, 0, 0), atol=1e-6)


def test_open_ct_example_loads_neither_torch_nor_monai(phantom_dir, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "phantom").symlink_to(phantom_dir)
    code = EXAMPLES[0] + "\nimport sys\nprint(sorted({'torch', 'monai'} & set(sys.modules)))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_store_example_puts_the_nearest_voxel_at_the_index_that_the_page_says(names):
    volume = names["volume"]
    z, y, x = np.rint(volume.geometry.voxel_from_world(names["points"].points_xyz[0])).astype(int)
    assert names["cutout"].shape == (32, 48, 48)
    assert names["cutout"].dtype == np.int16
    assert "(16, 24, 24)" in PAGE
    assert names["cutout"][16, 24, 24] == volume.voxels[z : z + 1, y : y + 1, x : x + 1].item()


def test_classifier_example_gives_what_predict_writes(names, phantom_dir, tmp_path):
    rows = (phantom_dir / "candidates_V2.csv").read_text(encoding="utf-8").splitlines()
    uid = names["scan"].series_uid
    own = [rows[0], *(row for row in rows if row.startswith(f"{uid},"))]
    (tmp_path / "points.csv").write_text("\n".join(own) + "\n", encoding="utf-8")
    (path,) = phantom_dir.glob(f"subset?/{uid}.mhd")
    words = ["predict", "--ct", path, "--candidates", tmp_path / "points.csv", "--output", tmp_path / "out.csv"]
    assert main([*map(str, words), "--device", "cpu", "--quiet"]) == 0
    header, *lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    column = header.split(",").index("probability")
    assert len(names["probability"]) == len(own) - 1 > 0
    np.testing.assert_allclose(names["probability"], [float(line.split(",")[column]) for line in lines], atol=1e-6)


def test_detector_and_format_examples_keep_the_points_of_the_scan(names):
    found, listed = names["found"], names["listed"]
    assert 0 < len(found.table) <= 20
    assert found.table.row_series() == [names["scan"].series_uid] * len(found.table)
    assert np.all(np.diff(found.table.values) <= 0)
    np.testing.assert_allclose(listed.points_xyz, found.table.points_xyz, atol=1e-6)
    assert [path.name for path in names["files"]] == ["found.mrk.json"]


def test_evaluation_example_scores_all_nodules_but_one(names):
    nodules = len(names["nodules"])
    scores = names["evaluation"].scores
    assert (scores["true_positives"], scores["false_positives"], scores["false_negatives"]) == (nodules - 1, 0, 1)
    assert scores["cpm"] == pytest.approx((nodules - 1) / nodules)


def test_results_example_names_the_missed_nodule(names):
    first = [float(value) for value in names["nodules"][0].split(",")[1:4]]
    np.testing.assert_allclose(names["missed_xyz"], [first], atol=1e-6)
    assert names["results"].metrics["cpm"] == pytest.approx(names["evaluation"].scores["cpm"])
