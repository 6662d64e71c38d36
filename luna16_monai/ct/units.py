"""Whether the voxels of a file are Hounsfield units (HU).

The scale is fixed by air, -1000 HU, and water, 0 HU, so that a CT of a chest has voxels on either side: lung and air
far below, soft tissue around 0. A mask, grey values of 0 to 255, values of 0 to 1, and values with 1024 added have
nothing below. What is clipped at -1000 or -1024, padded below, holds metal, or shows the inside of the body alone
passes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

HIGHEST_LUNG_HU = -300
"""A CT without a voxel of this or less holds neither lung nor air."""
LEAST_SPAN_HU = 1000
"""Without lung and air, voxels that span less than this are refused, others get a warning."""
SOFT_TISSUE_HU = (-300, 300)
LEAST_SOFT_TISSUE = 0.001
"""A CT with a smaller share of voxels in that range gets a warning."""
FEWEST_VOXELS = 4096
"""Volumes of fewer voxels are not judged."""
FEWEST_SLICES = 4
"""A CT that has fewer along an axis gets a warning."""


def check_hounsfield(voxels: NDArray[Any], name: str) -> None:
    """Check that voxels can be HU, and log a warning where they may not be.

    Args:
        voxels: (z, y, x), finite.
        name: the file or folder, for the message.

    Raises:
        ValueError: no voxel can be lung or air, and they span too little for a CT.
    """
    if min(voxels.shape) < FEWEST_SLICES:
        logger.warning("%s has only %d voxels along an axis: is this a whole CT?", name, min(voxels.shape))
    if (doubt := doubt_of_units(voxels, name)) is not None:
        logger.warning("%s", doubt)


def doubt_of_units(voxels: NDArray[Any], name: str) -> str | None:
    """Return why voxels may not be HU, in a line; None where nothing contradicts it.

    Raises:
        ValueError: as `check_hounsfield`.
    """
    if voxels.size < FEWEST_VOXELS:
        return None
    low, high = float(voxels.min()), float(voxels.max())
    if low > HIGHEST_LUNG_HU:
        what = f"all voxels are {low:g}" if low == high else f"voxels from {low:g} to {high:g}"
        none = f"so none can be lung or air (up to {HIGHEST_LUNG_HU} HU)"
        if high - low < LEAST_SPAN_HU:
            raise ValueError(f"{name} is not in HU: {what}, {none}: convert it to HU, or give the CT itself")
        return f"{name} is hardly in HU: {what}, {none}; was 1024 added to its values? convert it to HU"
    # a whole CT has 10⁸ voxels: some twenty slices are as good, one by one to save memory
    slices = voxels[:: max(1, voxels.shape[0] // 16)]
    soft = sum(int(np.count_nonzero((one >= SOFT_TISSUE_HU[0]) & (one <= SOFT_TISSUE_HU[1]))) for one in slices)
    share = soft / slices.size
    if share < LEAST_SOFT_TISSUE:
        return (
            f"{name} may not be in HU: only {100 * share:.3g} % of its voxels lie from {SOFT_TISSUE_HU[0]} to "
            f"{SOFT_TISSUE_HU[1]} HU, where soft tissue is"
        )
    return None
