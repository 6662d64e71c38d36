"""What a scan of recipe 3 may hold, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields

SHARES = (
    "empty", "large", "hollow", "spiculated", "ground_glass", "calcified",
    "emphysema", "fibrosis", "consolidation", "wide_field", "table", "arms", "padded",
    "azygos", "hilar_nodes", "calcified_nodes", "dome", "rib_ends", "apical_scars",
)  # fmt: skip
RANGES = ("slice_mm", "pixel_mm", "field_mm", "height_mm", "kernel_mm", "edge", "noise_hu", "large_mm")


@dataclass(frozen=True)
class Variety:
    """Settings of recipe 3. Ranges are (least, most); shares are from 0, never, to 1, always.

    Attributes:
        empty: share of the scans without any nodule.
        nodules: fewest and most nodules of the others.
        negatives_per_positive: candidates of class 0 for each of class 1; a scan without nodules has as many as one
            with the fewest.
        difficulty: as `phantom.nodules.ScanSettings`.
        slice_mm, pixel_mm: distance of slices, and of pixels, evenly over their logarithms.
        field_mm: width of the field of view, which shows half a chest.
        height_mm: from the first to the last slice; most scans show a part of the lung. Cut where the scan would have
            more than ``voxels``.
        voxels: most voxels that a scan is drawn with; thick slices are drawn as several thin ones.
        kernel_mm: width of an edge's blur at half of its maximum, in the plane.
        edge: share by which a kernel enhances edges; the sharper it is, the more.
        noise_hu: standard deviation of noise, over its logarithm.
        large: share of the nodules that are made as large as ``large_mm``, half of them at the wall.
        large_mm: diameter of these.
        hollow: share of the nodules of 10 mm and more that have a cavity.
        spiculated: share of the nodules of 8 mm and more with spicules.
        ground_glass, calcified: share of the nodules that look so, whatever the readers said of the shape.
        emphysema, fibrosis, consolidation: share of the scans with it.
        wide_field: share of the scans whose field of view reaches beyond the skin.
        table, arms: share of these that show it.
        padded: share of the scans with padding outside of a round field of view.
        azygos, hilar_nodes, calcified_nodes, dome, rib_ends, apical_scars: share of the scans with it, as far as that
            part of the chest is in view.
    """

    empty: float = 0.25
    nodules: tuple[int, int] = (2, 8)
    negatives_per_positive: float = 10.0
    difficulty: float = 1.0
    slice_mm: tuple[float, float] = (0.6, 5.0)
    pixel_mm: tuple[float, float] = (0.5, 0.98)
    field_mm: tuple[float, float] = (118.0, 165.0)
    height_mm: tuple[float, float] = (60.0, 240.0)
    voxels: int = 5_000_000
    kernel_mm: tuple[float, float] = (0.7, 2.0)
    edge: tuple[float, float] = (0.0, 0.8)
    noise_hu: tuple[float, float] = (8.0, 90.0)
    large: float = 0.12
    large_mm: tuple[float, float] = (22.0, 30.0)
    hollow: float = 0.15
    spiculated: float = 0.3
    ground_glass: float = 0.12
    calcified: float = 0.1
    emphysema: float = 0.3
    fibrosis: float = 0.15
    consolidation: float = 0.12
    wide_field: float = 0.35
    table: float = 0.6
    arms: float = 0.3
    padded: float = 0.3
    azygos: float = 0.4
    hilar_nodes: float = 0.6
    calcified_nodes: float = 0.3
    dome: float = 0.4
    rib_ends: float = 0.5
    apical_scars: float = 0.5

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: give a share from 0 to 1")
        for name in RANGES:
            least, most = getattr(self, name)
            if not 0 <= least <= most < 1000:
                raise ValueError(f"{name} {(least, most)}: give two numbers, the smaller one first")
        for name in ("slice_mm", "pixel_mm", "noise_hu", "kernel_mm", "large_mm"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: give numbers above 0")
        if not 1 <= self.nodules[0] <= self.nodules[1]:
            raise ValueError(f"nodules {self.nodules}: give two whole numbers, 1 or more, the smaller one first")
        if self.field_mm[0] < 50 or self.height_mm[0] < 40 or self.voxels < 100_000:
            raise ValueError(
                f"field_mm {self.field_mm}, height_mm {self.height_mm}, voxels {self.voxels}: a chest needs 50 mm, "
                "40 mm and 100,000 voxels at least"
            )
        if not 0 <= self.difficulty <= 2:
            raise ValueError(f"difficulty {self.difficulty}: give a number from 0 (easy) to 2 (hard)")
        if not 0 <= self.negatives_per_positive < 1e6:
            raise ValueError(f"negatives_per_positive {self.negatives_per_positive}: give 0 or more")


DEFAULTS = {field.name: field.default for field in fields(Variety)}
