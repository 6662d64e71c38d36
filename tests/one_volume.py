"""A store of one volume."""

from __future__ import annotations

import numpy as np

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume


class OneVolume:
    """A store in which every scan is the same: air, and a bright ball of 12 mm around the origin."""

    def __init__(self) -> None:
        geometry = Geometry.from_axes((41, 41, 121), (1, 1, 1), (-20, -20, -20), np.eye(3))
        z, y, x = np.ogrid[-20:101, -20:21, -20:21]
        hu = np.where(z**2 + y**2 + x**2 <= 36, 50, -1000).astype(np.int16)
        self.one = Volume(hu, geometry, geometry)

    def volume(self, _: str) -> Volume:
        return self.one
