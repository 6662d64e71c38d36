"""Find the lungs in a CT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.floating]

_AIR_HU = -400


def find_lungs(hu: Floats, spacing_zyx: Floats) -> NDArray[np.bool_]:
    """Mask the lungs of a CT: air that the body encloses, with the vessels in it.

    Args:
        hu: (z, y, x).
        spacing_zyx: mm.

    Returns:
        (z, y, x) mask; empty where the body encloses no air. The trachea belongs to it.
    """
    parts, count = ndimage.label(hu < _AIR_HU)
    outside = np.unique(np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()]))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[outside] = sizes[0] = 0
    lungs = np.isin(parts, np.flatnonzero((sizes > 0) & (sizes >= 0.2 * sizes.max())))
    # close over vessels of up to 8 mm, which reach the mask's edge and are no holes
    beyond = ndimage.distance_transform_edt(~np.pad(lungs, 4), sampling=spacing_zyx)
    closed = ndimage.distance_transform_edt(beyond < 4, sampling=spacing_zyx) >= 4
    lungs |= closed[4:-4, 4:-4, 4:-4]
    return np.stack([ndimage.binary_fill_holes(section) for section in lungs])
