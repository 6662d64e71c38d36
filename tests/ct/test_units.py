"""What is and is not in HU."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from luna16_monai.ct.units import check_hounsfield


def chest(rng: np.random.Generator) -> np.ndarray:
    """A body of 40 HU in air with a lung of -860 HU, and 12 HU of noise."""
    hu = np.full((20, 30, 30), -1000.0)
    hu[:, 3:27, 3:27] = 40
    hu[:, 8:22, 6:14] = -860
    return (hu + rng.normal(0, 12, hu.shape)).astype(np.int16)


CHEST = chest(np.random.default_rng(0))


@pytest.mark.parametrize(
    "hu",
    [
        CHEST,
        CHEST.clip(-1000, 400),
        # padded outside the field of view, metal, the inside of the body alone, in fractions
        np.where(np.arange(30) < 4, np.int16(-3024), CHEST),
        np.where(CHEST > 70, np.int16(30000), CHEST),
        CHEST[:, 4:26, 4:26],
        CHEST.astype(np.float32) + 0.25,
    ],
)
def test_check_hounsfield_takes_a_ct_in_silence(hu, caplog):
    check_hounsfield(hu, "scan.mhd")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("voxels", "told"),
    [
        (CHEST.clip(-160, 240), "voxels from -160 to"),
        ((CHEST.clip(-1000, 400) + 1000) / 1400 * 255, "voxels from 0 to"),
        ((CHEST.clip(-1000, 400) + 1000) / 1400, "voxels from 0 to"),
        (np.where(CHEST < -600, 3, 0), "voxels from 0 to 3"),
        (np.zeros((20, 20, 20), np.int16), "all voxels are 0"),
    ],
)
def test_check_hounsfield_refuses_what_has_no_lung_and_no_air(voxels, told):
    with pytest.raises(ValueError, match=rf"^scan\.mhd is not in HU: {told}.*none can be lung or air"):
        check_hounsfield(voxels, "scan.mhd")


def test_check_hounsfield_warns_of_values_with_1024_added(caplog):
    with caplog.at_level(logging.WARNING):
        check_hounsfield(CHEST.clip(-1024, None) + np.int16(1024), "scan.mhd")
    assert re.search(r"scan\.mhd is hardly in HU: voxels from 0 to \d+, so none can be lung or air", caplog.text)
    assert "was 1024 added to its values? convert it to HU" in caplog.text


def test_check_hounsfield_warns_where_there_is_no_soft_tissue(caplog):
    # 1024 added, over a padding of -2000: what is left below is the padding
    voxels = np.where(np.arange(30) < 4, np.int16(-976), CHEST + np.int16(1400))
    with caplog.at_level(logging.WARNING):
        check_hounsfield(voxels, "scan.mhd")
    assert (
        "scan.mhd may not be in HU: only 0 % of its voxels lie from -300 to 300 HU, where soft tissue is" in caplog.text
    )


def test_check_hounsfield_warns_of_three_slices(caplog):
    with caplog.at_level(logging.WARNING):
        check_hounsfield(CHEST[:3], "scan.mhd")
    assert "scan.mhd has only 3 voxels along an axis: is this a whole CT?" in caplog.text
