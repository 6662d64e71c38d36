"""The page "What we read" states what the readers do: its numbers, keys and tags are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luna16_monai.ct import checks, metaimage, units
from luna16_monai.ct.dicom_pixels import AIR_HU
from luna16_monai.ct.dicom_slice import TAGS
from luna16_monai.ct.opening import SUFFIXES

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
DICOM = PAGE.split("## DICOM")[1]
METAIMAGE = PAGE.split("## MetaImage")[1].split("## NIfTI")[0]


def test_page_names_every_dicom_tag_that_is_looked_at_and_no_other():
    rows = re.search(r"\| tag \| what for \|\n\|[-|]+\|\n((?:\|.*\n)+)", DICOM)
    assert rows is not None
    named = {tag for row in rows[1].splitlines() for tag in row.split("|")[1].replace(",", " ").split()}
    assert named == set(TAGS)


def test_page_names_every_metaimage_key_that_is_required_or_refused():
    for key in (*metaimage._REQUIRED, *(key for key in metaimage._REFUSED if "Intensity" not in key)):
        assert f"`{key}`" in METAIMAGE


def test_page_names_every_suffix():
    assert all(f"`{suffix}`" in PAGE.splitlines()[2] for suffix in SUFFIXES)


@pytest.mark.parametrize(
    "text",
    [
        f"up to {checks.MAX_VOXELS} voxels",
        f"above\n{checks.ROUNDED_COSINES:g}, and the nearest axes",
        f"by more than {checks.ROUNDED_VOXELS:g} voxels",
        f"in volumes of {units.FEWEST_VOXELS} voxels and more",
        f"no voxel of {units.HIGHEST_LUNG_HU} HU or less (neither lung nor air), and the values span less than "
        f"{units.LEAST_SPAN_HU}:",
        f"less than {100 * units.LEAST_SOFT_TISSUE:g} % of the voxels from {units.SOFT_TISSUE_HU[0]} to "
        f"{units.SOFT_TISSUE_HU[1]} HU",
        f"fewer than {units.FEWEST_SLICES} voxels along an axis",
        f"read as {AIR_HU} HU",
    ],
)
def test_page_states_the_numbers_of_the_code(text):
    assert text in PAGE
