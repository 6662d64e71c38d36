"""Nodules that a lung mask leaves out, and that nothing behind it can find."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from luna16_monai.ct.lungs import read_lung_mask
from luna16_monai.tables.points import PointTable


def lost_to_lung_mask(nodules: PointTable, masks: Path) -> list[int]:
    """Return the rows of the nodules whose middle lies outside the mask of their scan.

    Args:
        nodules: the annotations in the scans that are scored.
        masks: a folder with a mask named as each series that has nodules, or the mask of the one series.

    Raises:
        FileNotFoundError, ValueError: as `read_lung_mask`; one mask for nodules of several series.
    """
    with_nodules = [nodules.series_uids[code] for code in np.unique(nodules.series)]
    if not masks.is_dir() and len(with_nodules) > 1:
        raise ValueError(f"{masks} is one mask, and {len(with_nodules)} scans have nodules: give a folder of masks")
    lost: list[int] = []
    for uid in with_nodules:
        rows = np.flatnonzero(nodules.series_codes([uid]) == 0)
        inside = read_lung_mask(masks, None, uid).contains(nodules.points_xyz[rows])
        lost += rows[~inside].tolist()
    return lost
