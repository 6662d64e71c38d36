"""The detector on whole volumes: where it finds a candidate, what it keeps, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ct_files import write_ct
from torch import Tensor, nn

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.ct.opening import open_ct
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.inference.detect import Detector, found_lungs, lungs_from, read_detector
from luna16_monai.store.in_memory import InMemoryStore

STRIDE = 4


class BrightCells(nn.Module):
    """A network whose heat is high in each cell with a voxel above 0 HU, by how bright it is; all nodules are 8 mm."""

    def forward(self, image: Tensor) -> Tensor:
        bright = nn.functional.max_pool3d(image.float(), STRIDE)
        output = torch.zeros(len(image), 5, *bright.shape[2:])
        # nothing has a probability of 1e-9, 100 HU one of 0.73, 200 HU one of 0.88
        output[:, :1] = torch.where(bright > 0, bright / 100, -20.0)
        output[:, 4] = np.log(8.0)
        return output


def volume() -> Volume:
    """64 mm of lung in each direction from the origin on, with two bright voxels."""
    hu = np.full((64, 64, 64), -850, np.int16)
    hu[22, 30, 38], hu[50, 10, 14] = 200, 100
    geometry = Geometry.from_axes((64, 64, 64), (1, 1, 1), (0, 0, 0), np.eye(3))
    return Volume(hu, geometry, geometry)


@pytest.fixture
def detector() -> Detector:
    return Detector(BrightCells(), (STRIDE,) * 3, (8, 8, 8), lambda image, network: network(image))  # type: ignore[arg-type]


def test_find_gives_the_bright_cells_most_probable_first(detector):
    one = volume()
    found = detector.find(one, lungs_from(None, whole=True)("a", one), limit=10)
    kept = found.select(found.probability > 0.5)
    # the middle of the cell with the voxel (38, 30, 22) mm: voxels 36 to 39, 28 to 31 and 20 to 23
    assert kept.points_xyz.tolist() == [[37.5, 29.5, 21.5], [13.5, 9.5, 49.5]]
    assert kept.probability.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))], abs=1e-3)
    assert kept.diameter_mm.tolist() == pytest.approx([8, 8], rel=1e-3)
    assert len(detector.find(one, lungs_from(None, whole=True)("a", one), limit=1)) == 1


def test_candidates_refuse_a_limit_and_a_threshold_that_cannot_be(detector):
    for limit, threshold in ((0, 0.0), (1, 1.5), (1, -0.1)):
        with pytest.raises(ValueError, match="give 1 or more, and a probability from 0 to 1"):
            detector.candidates(None, limit, threshold)  # type: ignore[arg-type]


def test_lungs_are_a_masks_the_whole_scan_or_found(tmp_path):
    path = write_ct(tmp_path / "a.mhd")
    geometry = open_ct(path).geometry
    scan = Volume(np.zeros(geometry.shape_zyx, np.int16), geometry, geometry)
    assert lungs_from(None, whole=True)("a", scan).voxels.all()
    half = np.zeros(geometry.shape_zyx, np.int16)
    half[:2] = 3
    mask = write_ct(tmp_path / "mask.mhd", half)
    inside = lungs_from(mask)("a", scan)
    # voxels (x, y, z) 0 of the spacing (0.5, 0.75, 2) from (10, 20, 30), and the last of z
    assert inside.contains([[10, 20, 30], [10, 20, 36]]).tolist() == [True, False]
    assert lungs_from(None) is found_lungs
    with pytest.raises(ValueError, match="no lungs are found in series a: give a chest CT in HU"):
        found_lungs("a", scan)


def test_read_detector_refuses_a_folder_and_a_bundle_that_detects_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*inference.yaml: name the folder of a bundle that detects"):
        read_detector(tmp_path)
    with pytest.raises(ValueError, match="bundle nodule_classification has no detector: name one that detects"):
        read_detector(bundle_dir("nodule_classification"))


@pytest.mark.parametrize(("slices", "told"), [(15, 1), (21, 0)])
def test_detector_tells_of_a_ct_shorter_than_a_cutout(tmp_path, detector, slices, told):
    path = write_ct(tmp_path / "short.mhd", np.full((slices, 60, 80), -800, np.int16))
    recipe = bundle_dir() / "configs" / "prepare.yaml"
    volumes = InMemoryStore([path], recipe, (1.25, 0.7, 0.7))
    warnings = detector.candidates(volumes, lungs=lungs_from(None, whole=True)).warnings
    expected = ["series short is shorter than a cutout (28.75 of 40 mm along z), which is air beyond it"]
    assert [line.split(":")[0] for line in warnings] == expected[:told]
