"""The folders of LUNA16's subsets."""

from __future__ import annotations

from luna16_monai.ct.folders import SUBSETS, subset_folder


def test_subset_folders_are_luna16s_ten():
    assert [subset_folder(number) for number in SUBSETS] == [f"subset{digit}" for digit in "0123456789"]
