"""One synthetic half of a chest: lung, vessels, bronchi, wall, mediastinum.

It is a stand-in with the statistics of CT rather than a copy of a person: a lung bounded by a rough signed distance,
two trees of vessels that fill it, airways beside the larger arteries, fissure, septa, ribs, heart, aorta and spine.
Half a chest, since 192 voxels of 0.7 mm do not span a whole one. The alternative, to cut real scans, would make the
data set a download.

Positions are millimetres from the volume's corner in (z, y, x): voxel i covers i to i + 1 spacings, so that its
centre lies at ``(i + 0.5) * spacing``. z runs from feet to head, y from front to back, x to the patient's left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.phantom.trees import Branches, crossings, grow_tree, paint_tubes, wind_branches

Floats = NDArray[np.floating]

_LUNG_GRID = 4
"""Voxels per step of the coarse grid on which the lung's outline is kept."""
THIN_MM = 0.8
"""Thinner vessels, their forks and crossings, are candidates only where nothing else is left."""


def upsample(coarse: Floats, shape_zyx: tuple[int, ...]) -> Floats:
    """Resize a (z, y, x) array linearly, its outer edges kept in place; positions beyond the outer centres repeat."""
    out = coarse
    for axis, size in enumerate(shape_zyx):
        cells = out.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * (cells / size) - 0.5, 0, cells - 1)
        lower = np.minimum(position.astype(int), max(cells - 2, 0))
        weight = (position - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = out.take(lower, axis), out.take(np.minimum(lower + 1, cells - 1), axis)
        above -= below
        above *= weight
        out = np.add(below, above, out=below)
    return out


def shrink_slices(image: NDArray[np.generic], fold: int) -> Floats:
    """Return the mean of ``fold`` x ``fold`` voxels in each slice of (z, y, x), float32; a rest of rows is left out."""
    rows, columns = (n // fold for n in image.shape[1:])
    whole = image[:, : rows * fold, : columns * fold]
    return whole.reshape(-1, rows, fold, columns, fold).mean((2, 4), dtype=np.float32)


def smooth_field(rng: np.random.Generator, shape_zyx: tuple[int, ...], size_mm: Floats, grain_mm: float) -> Floats:
    """Return a random field of mean 0 and variance 1 that changes over about ``grain_mm``, float32 in (z, y, x)."""
    cells = np.maximum(4, np.rint(size_mm / grain_mm)).astype(int)
    field = upsample(rng.standard_normal(tuple(np.minimum(cells, shape_zyx)), dtype=np.float32), shape_zyx)
    return field / field.std()


@dataclass(frozen=True)
class Lung:
    """A lung's outline as a signed distance: negative inside, in mm.

    Attributes:
        distance_mm: the distance on the coarse grid, float32 (z, y, x).
        heart_mm, diaphragm_mm: signed distances to heart and diaphragm on the same grid, negative inside them.
        shape_zyx: the full volume's shape.
        spacing_zyx: the full volume's spacing, mm.
        hilum_zyx: where vessels and airways enter, mm.
        side: +1 where the mediastinum lies at high x, else -1.
        half_axes_zyx: the ellipsoid the lung started from, mm.
        middle_zyx: its middle, mm.
    """

    distance_mm: Floats
    heart_mm: Floats
    diaphragm_mm: Floats
    shape_zyx: tuple[int, int, int]
    spacing_zyx: Floats
    hilum_zyx: Floats
    side: int
    half_axes_zyx: Floats
    middle_zyx: Floats

    @property
    def size_mm(self) -> Floats:
        """Extent of the volume, (z, y, x)."""
        return np.asarray(self.shape_zyx) * self.spacing_zyx

    @property
    def edge_mm(self) -> float:
        """Width over which what is drawn ends: a voxel's, and 0.7 at least."""
        return max(0.7, float(self.spacing_zyx[2]))

    def to_voxels(self, coarse: Floats) -> Floats:
        """Return an array on the coarse grid, brought to the full volume's voxels."""
        z, y, x = self.shape_zyx
        return upsample(coarse, tuple(n * _LUNG_GRID for n in coarse.shape))[:z, :y, :x]

    def distance_at(self, points_zyx: Floats) -> Floats:
        """Return the signed distance in mm at points (n, 3): below 0 inside the lung."""
        index = np.atleast_2d(points_zyx) / (self.spacing_zyx * _LUNG_GRID) - 0.5
        return ndimage.map_coordinates(self.distance_mm, index.T, order=1, mode="nearest")

    def outward(self, point_zyx: Floats) -> Floats:
        """Return the unit vector towards the nearest wall at one point (3,)."""
        steps = np.eye(3) * 2.0
        gradient = self.distance_at(point_zyx + steps) - self.distance_at(point_zyx - steps)
        return gradient / (np.linalg.norm(gradient) + 1e-6)

    def sample(self, rng: np.random.Generator, count: int, depth_mm: float) -> Floats:
        """Return points (count, 3) that lie at least ``depth_mm`` inside.

        Raises:
            ValueError: nothing of the lung is that deep.
        """
        if self.distance_mm.min() > -depth_mm:
            raise ValueError(f"no point of the lung lies {depth_mm:.1f} mm deep; use a larger volume")
        found = np.empty((0, 3))
        while len(found) < count:
            points = rng.random((4 * count + 64, 3)) * self.size_mm
            found = np.concatenate([found, points[self.distance_at(points) < -depth_mm]])
        return found[:count]

    def slide_to_depth(self, point_zyx: Floats, depth_mm: float, steps: int = 25) -> Floats:
        """Move a point (3,) along the distance's gradient until it lies ``depth_mm`` inside the wall."""
        for _ in range(steps):
            point_zyx = point_zyx + self.outward(point_zyx) * (-depth_mm - self.distance_at(point_zyx)[0]) * 0.6
        return point_zyx


@dataclass(frozen=True)
class Frame:
    """What part of a chest a volume shows.

    Attributes:
        half_height_mm: of the lung.
        above_mm: by how much the volume's middle lies above the lung's.
        shrink: factor on the lung's width and depth, which else fill the volume.
    """

    half_height_mm: float
    above_mm: float
    shrink: float


def shape_lung(
    rng: np.random.Generator, shape_zyx: tuple[int, int, int], spacing_zyx: Floats, frame: Frame | None = None
) -> Lung:
    """Draw a lung's outline: a blunt ellipsoid less heart and diaphragm, roughened; in the volume, or framed."""
    coarse = tuple(-(-n // _LUNG_GRID) for n in shape_zyx)
    size = np.asarray(shape_zyx) * spacing_zyx
    side = int(rng.choice([-1, 1]))
    axes = size * [0.62, rng.uniform(0.40, 0.46), rng.uniform(0.36, 0.43)]
    axes[0] = min(axes[0], rng.uniform(115, 140))
    middle = size * [0.5 + rng.uniform(-0.06, 0.06), 0.5, 0.5 - 0.03 * side]
    if frame is not None:
        axes = np.array([frame.half_height_mm, *(axes[1:] * frame.shrink)])
        middle[0] = size[0] / 2 - frame.above_mm
    centres = [(np.arange(n) + 0.5) * _LUNG_GRID * step for n, step in zip(coarse, spacing_zyx, strict=True)]
    z, y, x = np.meshgrid(*[c - m for c, m in zip(centres, middle, strict=True)], indexing="ij", sparse=True)

    blunt = 2.4
    norm = sum(np.abs(v / a) ** blunt for v, a in zip((z, y, x), axes, strict=True)) ** (1 / blunt)
    outline = (norm - 1) * axes[1:].mean()
    medial = side * axes[2]
    heart = (
        np.sqrt((z + 15) ** 2 / 2.2 + (y + 8) ** 2 + (x - medial * 1.05) ** 2)
        - rng.uniform(0.30, 0.42) * size[1] * 0.75
    )
    dome = np.sqrt((z + axes[0]) ** 2 + (0.55 * y) ** 2 + (0.55 * x) ** 2) - axes[0] * rng.uniform(0.45, 0.6)
    distance = _rounded_max(_rounded_max(outline, -heart), -dome)
    distance = distance + 1.6 * smooth_field(rng, coarse, size, 7 * _LUNG_GRID * spacing_zyx[2])
    distance, heart, dome = (grid.astype(np.float32) for grid in (distance, heart, dome))

    lung = Lung(distance, heart, dome, shape_zyx, spacing_zyx, middle, side, axes, middle)
    hilum = middle + np.array([5, 0, 0.45 * medial])
    for _ in range(40):
        if lung.distance_at(hilum)[0] < -6:
            break
        hilum[2] -= 2 * side
    return replace(lung, hilum_zyx=hilum)


def _rounded_max(a: Floats, b: Floats) -> Floats:
    """Return the larger of two signed distances, with the corner between them rounded over about 4 mm."""
    return 3 * np.logaddexp(a / 3, b / 3)


@dataclass(frozen=True)
class Chest:
    """A drawn half chest before the scanner blurs it.

    Attributes:
        image_hu: float32 (z, y, x).
        wall_distance_mm: signed distance to the lung's outline for each voxel, below 0 inside.
        lung: its outline.
        vessels_zyx, vessel_radius_mm, vessel_direction_zyx: one row a vessel branch, at its middle.
        bifurcations_zyx, bifurcation_radius_mm: branching points of vessels thicker than 0.8 mm.
        crossings_zyx: points where an artery and a vein thicker than 0.8 mm touch.
        bronchi_zyx: points on the airways.
    """

    image_hu: Floats
    wall_distance_mm: Floats
    lung: Lung
    vessels_zyx: Floats
    vessel_radius_mm: Floats
    vessel_direction_zyx: Floats
    bifurcations_zyx: Floats
    bifurcation_radius_mm: Floats
    crossings_zyx: Floats
    bronchi_zyx: Floats


def draw_chest(
    rng: np.random.Generator, shape_zyx: tuple[int, int, int], spacing_zyx: Floats, frame: Frame | None = None
) -> Chest:
    """Draw one half of a chest of the given shape and spacing (mm), both in (z, y, x), or the part of a frame."""
    lung = shape_lung(rng, shape_zyx, spacing_zyx, frame)
    wall = lung.to_voxels(lung.distance_mm)
    vessel_share = np.zeros(shape_zyx, np.float32)
    airway_wall, airway_lumen = np.zeros((2, *shape_zyx), np.float32)

    volume_l = (lung.distance_mm < 0).sum() * np.prod(spacing_zyx) * _LUNG_GRID**3 / 1e6
    leaves = int(volume_l * rng.uniform(1800, 2600)) + 150
    trees, branches, bronchi = [], [], []
    for carries_airways in (True, False):
        root = lung.hilum_zyx + rng.normal(0, 4, 3)
        tree = grow_tree(lung.sample(rng, leaves, 1.5), root, rng.uniform(0.29, 0.38))
        paths = wind_branches(rng, tree)
        paint_tubes(vessel_share, paths.points_zyx, paths.radius_mm, spacing_zyx, lung.edge_mm)
        if carries_airways:
            bronchi.append(_paint_airways(rng, paths, airway_wall, airway_lumen, spacing_zyx, lung.edge_mm))
        trees.append(tree)
        branches.append(paths)

    contrast_agent = rng.random() < 0.35
    blood_hu = rng.uniform(120, 190) if contrast_agent else rng.uniform(25, 60)
    inside = np.clip(0.5 - wall / 0.9, 0, 1)
    image = _draw_wall(rng, lung, wall, blood_hu)
    image += (_draw_parenchyma(rng, lung, wall) - image) * inside
    image += (blood_hu - image) * (vessel_share * np.clip(1 - wall / 1.5, 0, 1))
    image += (rng.uniform(-500, -250) - image) * (airway_wall * inside * 0.7)
    image += (rng.uniform(-950, -900) - image) * (airway_lumen * inside)

    fork = [(t.children >= 2) & (t.radius_mm > THIN_MM) for t in trees]
    return Chest(
        image,
        wall,
        lung,
        np.concatenate([b.middle_zyx for b in branches]),
        np.concatenate([b.middle_radius_mm for b in branches]),
        np.concatenate([b.direction_zyx for b in branches]),
        np.concatenate([t.points_zyx[at] for t, at in zip(trees, fork, strict=True)]),
        np.concatenate([t.radius_mm[at] for t, at in zip(trees, fork, strict=True)]),
        crossings(branches[0], branches[1], THIN_MM),
        np.concatenate(bronchi),
    )


def _paint_airways(
    rng: np.random.Generator, paths: Branches, wall: Floats, lumen: Floats, spacing_zyx: Floats, edge_mm: float
) -> Floats:
    """Lay an airway beside some of the larger arteries; returns points on the airways wider than 1.2 mm."""
    artery = paths.middle_radius_mm
    chosen = (artery > 1.2) & (rng.random(len(artery)) < 0.45)
    radius = artery * rng.uniform(0.6, 0.95, len(artery))
    aside = np.cross(paths.direction_zyx, [0.3, 1.0, 0.2])
    aside /= np.linalg.norm(aside, axis=1, keepdims=True) + 1e-6
    shift = aside * (artery + radius + 0.5)[:, None]
    samples = chosen[paths.branch]
    branch = paths.branch[samples]
    points = paths.points_zyx[samples] + shift[branch]
    paint_tubes(wall, points, radius[branch] + 0.3 + 0.1 * radius[branch], spacing_zyx, edge_mm)
    paint_tubes(lumen, points, radius[branch], spacing_zyx, edge_mm)
    return (paths.middle_zyx + shift)[chosen & (radius > 1.2)]


def _draw_parenchyma(rng: np.random.Generator, lung: Lung, wall_mm: Floats) -> Floats:
    """Return aerated lung in HU: gravity, patchy density, emphysema in a third, septa, haze, a fissure."""
    shape, size = lung.shape_zyx, lung.size_mm
    patches = smooth_field(rng, shape, size, 6)
    clouds = smooth_field(rng, shape, size, 16)
    haze = smooth_field(rng, shape, size, 2.2)
    grain = smooth_field(rng, shape, size, 1.4)
    z, y, x = _axes_mm(lung)

    image = rng.uniform(-950, -860) + patches * rng.uniform(8, 16) + clouds * 15
    image += (y / size[1]) * rng.uniform(10, 70)
    if rng.random() < 0.35:
        image -= np.clip(patches[::-1] - 1, 0, 2) * 60
    # acini and the vessels between them, too small to be seen singly: bright specks, and a fine grain
    image += np.clip(haze - 0.3, 0, 3) * rng.uniform(14, 34)
    image += grain * rng.uniform(15, 40)
    # septa: thin sheets where a smooth field changes its sign
    image += np.clip(1 - np.abs(smooth_field(rng, shape, size, 11)) / 0.10, 0, 1) * rng.uniform(15, 55)
    fissure = lung.middle_zyx[0] + (y - lung.middle_zyx[1]) * rng.uniform(0.5, 0.9)
    fissure = fissure + 12 * np.sin((x - lung.middle_zyx[2]) / rng.uniform(30, 60))
    image += np.clip(1 - np.abs(z - fissure) / rng.uniform(1, 1.6), 0, 1) * rng.uniform(60, 170)
    return image.astype(np.float32)


def _draw_wall(rng: np.random.Generator, lung: Lung, wall_mm: Floats, blood_hu: float) -> Floats:
    """Return all outside the lung in HU: muscle, fat and ribs laterally; medially heart, aorta and spine in fat."""
    shape, size = lung.shape_zyx, lung.size_mm
    fine = smooth_field(rng, shape, size, 6)
    coarse = smooth_field(rng, shape, size, 16)
    z, y, x = _axes_mm(lung)
    medial = (x - lung.middle_zyx[2]) * lung.side - 0.45 * lung.half_axes_zyx[2]
    behind = y - lung.middle_zyx[1]

    muscle = rng.uniform(40, 60)
    image = np.full(shape, muscle, np.float32)
    fat = coarse + np.clip((wall_mm - 9) / 8, -0.6, 1.2) > 0.8
    image[fat & (medial < 0) & (wall_mm > 3.5)] = -100
    phase = (z + behind * rng.uniform(0.25, 0.5) + rng.uniform(0, 30)) % rng.uniform(24, 32)
    rib = np.sqrt((phase - 12) ** 2 + ((wall_mm - rng.uniform(9, 11)) / 0.62) ** 2) - 5.4
    cortex_hu, marrow_hu = rng.uniform(600, 950), rng.uniform(150, 300)
    _fill_bone(image, np.where(medial < 0, rib, 9), cortex_hu, marrow_hu)

    heart = lung.to_voxels(lung.heart_mm)
    mediastinum = (medial > 0) & (wall_mm > 1.5) & (lung.to_voxels(lung.diaphragm_mm) > 0)
    image[mediastinum & ((heart < 4) | (coarse > -0.2))] = -95
    radius = rng.uniform(10, 14)
    from_aorta = np.hypot(medial - 0.5 * lung.half_axes_zyx[2], behind - 0.42 * lung.half_axes_zyx[1])
    for surface in (heart + 3, from_aorta - radius):
        image += (blood_hu - image) * (np.clip(0.5 - surface, 0, 1) * (mediastinum | (surface < 0)))
    from_spine = np.hypot((medial - 0.78 * lung.half_axes_zyx[2]) / 1.25, behind - 0.85 * lung.half_axes_zyx[1])
    vertebra = (z + rng.uniform(0, 28)) % 28 < 23
    _fill_bone(image, np.where(vertebra, from_spine - rng.uniform(13, 16), 9), cortex_hu, marrow_hu)
    image += 12 * fine
    return image


def _fill_bone(image: Floats, distance_mm: Floats, cortex_hu: float, marrow_hu: float) -> None:
    """Set what lies inside a bone's surface (distance below 0) to its cortex, 1.6 mm thick, and its marrow."""
    bone = distance_mm < 0
    image[bone] = np.where(distance_mm[bone] > -1.6, cortex_hu, marrow_hu)


def _axes_mm(lung: Lung) -> tuple[Floats, Floats, Floats]:
    z, y, x = (
        (np.arange(n, dtype=np.float32) + 0.5) * np.float32(s)
        for n, s in zip(lung.shape_zyx, lung.spacing_zyx, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]
