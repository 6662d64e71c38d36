"""Boxes of MONAI's data list: by hand, and as MONAI's own transforms place them in an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ct_files import write_ct
from monai.apps.detection.transforms.dictionary import AffineBoxToImageCoordinated, ConvertBoxToStandardModed
from monai.data import MetaTensor

from luna16_monai.ct.opening import open_ct
from luna16_monai.interchange.formats import Conventions, read, write
from luna16_monai.interchange.monai_boxes import is_data_list, read_boxes
from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points
from luna16_monai.interchange.scans import Scans

LIST: dict[str, Any] = {
    "training": [{"image": "deep/er/1.3.6.nii.gz", "box": [[1, 2, 3, 2, 4, 8]], "label": [0]}],
    "validation": [
        {
            "image": "1.3.9.nii.gz",
            "box": [[5, 6, 7, 3, 3, 3], [-1, -2, -3, 1, 1, 1]],
            "label": [0, 0],
            "score": [0.5, 1],
        }
    ],
}


def saved(folder: Path, document: Any, name: str = "list.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def test_read_boxes_by_hand(tmp_path):
    """The first box has 64 mm³: the side of a cube of that volume is 4 mm."""
    points = read_boxes(saved(tmp_path, LIST), Scans())
    assert points.series == ("1.3.6", "1.3.9", "1.3.9")
    assert points.points_xyz.tolist() == [[1, 2, 3], [5, 6, 7], [-1, -2, -3]]
    np.testing.assert_allclose(points.value(DIAMETER), [4, 3, 1], rtol=1e-15)
    assert points.value(PROBABILITY).tolist()[1:] == [0.5, 1]
    assert np.isnan(points.value(PROBABILITY)[0])
    assert points.place(2).endswith("list.json, box 2")
    assert read_boxes(saved(tmp_path, LIST), Scans(), ras=True).points_xyz.tolist() == [
        [-1, -2, 3], [-5, -6, 7], [1, 2, -3],
    ]  # fmt: skip


def test_read_boxes_of_a_list_without_scores_are_nodules(tmp_path):
    points = read_boxes(saved(tmp_path, {"training": LIST["training"]}), Scans())
    assert points.value(CLASS).tolist() == [1]
    assert not points.knows(PROBABILITY)


@pytest.mark.parametrize("key", ["score", "scores", "label_scores"])
def test_read_boxes_of_a_result_file(tmp_path, key):
    entry = {"image": "a.nii.gz", "box": [[1, 2, 3, 2, 2, 2]], "label": [0], key: [0.25]}
    for document in (entry, [entry]):
        assert is_data_list(document)
        assert read_boxes(saved(tmp_path, document), Scans()).value(PROBABILITY).tolist() == [0.25]


def test_written_list_is_what_mine_reads_back(tmp_path):
    points = Points(
        "rows", ("a", "a", "b"), np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]),
        {CLASS: np.array([1.0, 0, 1]), DIAMETER: np.array([4.0, 5, np.nan])},
    )  # fmt: skip
    _, notes = write(tmp_path / "a.json", points, "monai")
    assert notes == (
        "1 points of class 0 left out: a data list holds nodules alone",
        "1 points without a diameter left out: they have no box",
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "validation": [{"image": "a.nii.gz", "box": [[1.0, 2.0, 3.0, 4.0, 4.0, 4.0]], "label": [0]}]
    }
    with pytest.raises(ValueError, match="rows: no nodule in it has a diameter"):
        write(tmp_path / "b.json", points.select([2]), "monai")


@pytest.mark.parametrize("direction", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("ras", [False, True])
def test_monai_places_the_boxes_where_the_geometry_says(tmp_path, direction, ras):
    """Voxel (z, y, x) = (1, 2, 3) of a CT whose axes are flipped or not, in a list that is LPS or RAS.

    MONAI's boxes are half-open, so where an axis is flipped its `apply_affine_to_boxes` moves both ends by one voxel
    (its issue 7740): the middle of a cube of four voxels is compared with that in mind, and ours is what the
    geometry says.
    """
    path = write_ct(tmp_path / "a.mhd", direction=np.diag(direction))
    geometry = open_ct(path).geometry
    middle = np.array([10.0, 20, 30]) + np.array(direction) * np.array([3, 2, 1]) * np.array([0.5, 0.75, 2])
    np.testing.assert_allclose(geometry.world_from_voxel([1, 2, 3]), middle)
    points = Points("rows", ("a",), middle[None], {DIAMETER: np.array([3.0])})
    write(tmp_path / "lps.json", points, "monai")
    entry = json.loads((tmp_path / "lps.json").read_text())["validation"][0]
    boxes = np.array(entry["box"])
    if ras:
        boxes[:, :2] *= -1
        entry["box"] = boxes.tolist()
        path = saved(tmp_path, [entry], "ras.json")
        back = read(path, conventions=Conventions(Scans.open([tmp_path / "a.mhd"]), ras=True))
        np.testing.assert_allclose(back.points_xyz, middle[None])
    image = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.as_tensor(geometry.ras_affine_xyz()))
    data: Any = {"image": image, "box": torch.as_tensor(boxes, dtype=torch.float64)}
    data = ConvertBoxToStandardModed(box_keys=["box"], mode="cccwhd")(data)
    data = AffineBoxToImageCoordinated(box_keys=["box"], box_ref_image_keys="image", affine_lps_to_ras=not ras)(data)
    low, high = data["box"][0, :3].numpy(), data["box"][0, 3:].numpy()
    sides = 3 / np.array([0.5, 0.75, 2])
    np.testing.assert_allclose(high - low, sides, rtol=1e-6)
    moved = np.array([one < 0 for one in direction], float)
    np.testing.assert_allclose((low + high) / 2 - [3, 2, 1], moved * _shift_of_monai(), atol=1e-6)


def _shift_of_monai() -> float:
    """How far MONAI moves a box along a flipped axis, in voxels: measured with a box of its own."""
    from monai.apps.detection.transforms.box_ops import apply_affine_to_boxes

    box = torch.tensor([[0.0, 0, 0, 1, 1, 1]], dtype=torch.float64)
    flipped = apply_affine_to_boxes(box, torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)))
    return float(flipped[0, [0, 3]].mean() + 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [[1, 2, 3, 2, 0, 2]]}, "box 1: sides [2.0, 0.0, 2.0] mm make no volume"),
        ({"box": [[1, 2, 3, 2, -1, 2]]}, "make no volume"),
        ({"box": [[1, 2, 3, 2, 2]]}, "box 1: box is [1, 2, 3, 2, 2], 6 numbers were expected"),
        ({"box": [[1, 2, "x", 2, 2, 2]]}, "6 numbers were expected"),
        ({"box": [[1, 2, True, 2, 2, 2]]}, "6 numbers were expected"),
        ({"box": [[10**400, 2, 3, 2, 2, 2]]}, "which is not finite"),
        ({"box": 3}, "'box' is 3, a list was expected"),
        ({"label": [1]}, "box 1: label 1 is not 0, a nodule"),
        ({"label": [0, 0]}, "1 boxes, 2 labels and 1 scores: give one of each a box"),
        ({"score": [2]}, "probability is 2, expected a probability between 0 and 1"),
        ({"score": ["x"]}, "box 1: score is ['x'], 1 numbers were expected"),
        ({"image": 3}, "'image' is 3, a text was expected"),
        ({"image": "a/"}, None),
        ({"image": "a/.."}, "names no file"),
    ],
)
def test_read_boxes_refuses(tmp_path, change, message):
    entry = {"image": "a.nii.gz", "box": [[1, 2, 3, 2, 2, 2]], "label": [0], **change}
    path = saved(tmp_path, {"validation": [entry]})
    if message is None:
        assert read_boxes(path, Scans()).series == ("a",)
        return
    with pytest.raises(ValueError, match=r"list\.json") as caught:
        read_boxes(path, Scans())
    assert message in str(caught.value)


def test_read_boxes_refuses_images_that_are_none_of_the_cts(tmp_path):
    scans = Scans.open([write_ct(tmp_path / "a.mhd")])
    with pytest.raises(ValueError, match=r"list.json, training 1: 1.3.6 is none of the CTs \(a\): name its CT"):
        read_boxes(saved(tmp_path, LIST), scans)
    with pytest.raises(ValueError, match="none of training, validation, testing, test is there"):
        read_boxes(saved(tmp_path, {"train": []}), scans)
