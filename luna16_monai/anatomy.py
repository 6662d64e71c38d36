"""One synthetic half of a chest: lung, vessels, bronchi, wall, and the scanner that looks at it.

It is a stand-in with the statistics of CT rather than a copy of a person: a lung bounded by a rough signed distance,
two trees of winding vessels that fill it, airways beside the larger arteries, fissure, septa, ribs and soft tissue.
Half a chest, since 192 voxels of 0.7 mm do not span a whole one. The alternative, to cut real scans, would make the
data set a download.

Positions are millimetres from the volume's corner in (z, y, x): voxel i covers i to i + 1 spacings, so that its
centre lies at ``(i + 0.5) * spacing``. z runs from feet to head, y from front to back, x to the patient's left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Floats = NDArray[np.floating]

_LUNG_GRID = 4
"""Voxels per step of the coarse grid on which the lung's outline is kept."""
_STEP_MM = 0.6
"""Distance between neighbouring samples of a vessel's centre line."""
_MAX_VESSEL_RADIUS_MM = 7.5


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


def smooth_field(rng: np.random.Generator, shape_zyx: tuple[int, ...], size_mm: Floats, grain_mm: float) -> Floats:
    """A random field of mean 0 and variance 1 that changes over about ``grain_mm``, float32 in (z, y, x)."""
    cells = np.maximum(4, np.rint(size_mm / grain_mm)).astype(int)
    field = upsample(rng.standard_normal(tuple(np.minimum(cells, shape_zyx)), dtype=np.float32), shape_zyx)
    return field / field.std()


@dataclass(frozen=True)
class Lung:
    """A lung's outline as a signed distance: negative inside, in mm.

    Attributes:
        distance_mm: the distance on the coarse grid, float32 (z, y, x).
        shape_zyx: the full volume's shape.
        spacing_zyx: the full volume's spacing, mm.
        hilum_zyx: where vessels and airways enter, mm.
        side: +1 where the mediastinum lies at high x, else -1.
        half_axes_zyx: the ellipsoid the lung started from, mm.
        middle_zyx: its middle, mm.
    """

    distance_mm: Floats
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

    def distance_at(self, points_zyx: Floats) -> Floats:
        """Signed distance in mm at points (n, 3): below 0 inside the lung."""
        index = np.atleast_2d(points_zyx) / (self.spacing_zyx * _LUNG_GRID) - 0.5
        return ndimage.map_coordinates(self.distance_mm, index.T, order=1, mode="nearest")

    def outward(self, point_zyx: Floats) -> Floats:
        """Unit vector towards the nearest wall at one point (3,)."""
        steps = np.eye(3) * 2.0
        gradient = self.distance_at(point_zyx + steps) - self.distance_at(point_zyx - steps)
        return gradient / (np.linalg.norm(gradient) + 1e-6)

    def sample(self, rng: np.random.Generator, count: int, depth_mm: float) -> Floats:
        """Points (count, 3) that lie at least ``depth_mm`` inside.

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


def shape_lung(rng: np.random.Generator, shape_zyx: tuple[int, int, int], spacing_zyx: Floats) -> Lung:
    """Draw a lung's outline: a blunt ellipsoid less heart and diaphragm, roughened."""
    coarse = tuple(-(-n // _LUNG_GRID) for n in shape_zyx)
    size = np.asarray(shape_zyx) * spacing_zyx
    side = int(rng.choice([-1, 1]))
    axes = size * [0.62, rng.uniform(0.40, 0.46), rng.uniform(0.36, 0.43)]
    axes[0] = min(axes[0], rng.uniform(115, 140))
    middle = size * [0.5 + rng.uniform(-0.06, 0.06), 0.5, 0.5 - 0.03 * side]
    centres = [(np.arange(n) + 0.5) * _LUNG_GRID * step for n, step in zip(coarse, spacing_zyx, strict=True)]
    z, y, x = np.meshgrid(*[c - m for c, m in zip(centres, middle, strict=True)], indexing="ij", sparse=True)

    blunt = 2.4
    norm = sum(np.abs(v / a) ** blunt for v, a in zip((z, y, x), axes, strict=True)) ** (1 / blunt)
    distance = (norm - 1) * axes[1:].mean()
    medial = side * axes[2]
    heart = (
        np.sqrt((z + 15) ** 2 / 2.2 + (y + 8) ** 2 + (x - medial * 1.05) ** 2)
        - rng.uniform(0.30, 0.42) * size[1] * 0.75
    )
    dome = np.sqrt((z + axes[0]) ** 2 + (0.55 * y) ** 2 + (0.55 * x) ** 2) - axes[0] * rng.uniform(0.45, 0.6)
    distance = np.maximum(np.maximum(distance, -heart), -dome)
    distance = (distance + 2.2 * smooth_field(rng, coarse, size, 5 * _LUNG_GRID * spacing_zyx[2])).astype(np.float32)

    lung = Lung(distance, shape_zyx, spacing_zyx, middle, side, axes, middle)
    hilum = middle + np.array([5, 0, 0.45 * medial])
    for _ in range(40):
        if lung.distance_at(hilum)[0] < -6:
            break
        hilum[2] -= 2 * side
    return Lung(distance, shape_zyx, spacing_zyx, hilum, side, axes, middle)


@dataclass(frozen=True)
class Tree:
    """A branching tree: node i hangs on ``parent[i]``, the root (node 0) on -1; radii and points (z, y, x) in mm."""

    points_zyx: Floats
    parent: NDArray[np.intp]
    radius_mm: Floats
    children: NDArray[np.intp]


def grow_tree(points_zyx: Floats, root_zyx: Floats, leaf_radius_mm: float) -> Tree:
    """Join points (n, 3) to a tree that starts at the root.

    Each point, in order of its distance from the root, hangs on the node that is near itself and near the root along
    the tree. Radii follow Murray's law (Proc Natl Acad Sci 1926) with exponent 2.7: radius**2.7 adds up over leaves.
    """
    points = points_zyx[np.argsort(((points_zyx - root_zyx) ** 2).sum(1), kind="stable")]
    nodes = np.vstack([root_zyx, points])
    count = len(nodes)
    parent = np.full(count, -1)
    travelled = np.zeros(count)
    for i in range(1, count):
        length = np.sqrt(((nodes[:i] - nodes[i]) ** 2).sum(1))
        parent[i] = np.argmin(length + 0.09 * travelled[:i])
        travelled[i] = travelled[parent[i]] + length[parent[i]]
    children = np.bincount(parent[1:], minlength=count)
    leaves = (children == 0).astype(float)
    for i in range(count - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    radius = np.minimum(leaf_radius_mm * np.maximum(leaves, 1) ** (1 / 2.7), _MAX_VESSEL_RADIUS_MM)
    return Tree(nodes, parent, radius, children)


@dataclass(frozen=True)
class Branches:
    """Sampled centre lines: ``points_zyx`` (n, 3) and ``radius_mm`` (n,), ``branch`` (n,) tells whose sample each is.

    ``middle_zyx``, ``middle_radius_mm`` and ``direction_zyx`` hold one row a branch.
    """

    points_zyx: Floats
    radius_mm: Floats
    branch: NDArray[np.intp]
    middle_zyx: Floats
    middle_radius_mm: Floats
    direction_zyx: Floats


def wind_branches(rng: np.random.Generator, tree: Tree) -> Branches:
    """Sample each branch of a tree along a winding line: three waves across it, which vanish at both ends."""
    start, end = tree.points_zyx[tree.parent[1:]], tree.points_zyx[1:]
    along = end - start
    length = np.linalg.norm(along, axis=1)
    direction = along / (length[:, None] + 1e-6)
    across = np.cross(direction, rng.standard_normal(direction.shape))
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-6
    third = np.cross(direction, across)
    waves = np.arange(1, 4)
    swing = rng.normal(0, 0.07, (2, len(length), 3)) * np.minimum(length, 25)[:, None] / waves**1.5

    counts = np.maximum(2, np.ceil(length / _STEP_MM).astype(int) + 1)
    branch = np.repeat(np.arange(len(length)), counts)
    first = np.cumsum(counts) - counts
    t = (np.arange(len(branch)) - first[branch]) / (counts[branch] - 1)
    sines = np.sin(np.pi * t[:, None] * waves)
    points = (
        start[branch]
        + along[branch] * t[:, None]
        + across[branch] * (swing[0, branch] * sines).sum(1, keepdims=True)
        + third[branch] * (swing[1, branch] * sines).sum(1, keepdims=True)
    )
    thin = tree.radius_mm[1:]
    thick = np.minimum(tree.radius_mm[tree.parent[1:]], 1.25 * thin)
    radius = thick[branch] + (thin - thick)[branch] * t
    middle = first + counts // 2
    return Branches(points, radius, branch, points[middle], radius[middle], direction)


def paint_tubes(coverage: Floats, points_zyx: Floats, radius_mm: Floats, spacing_zyx: Floats, edge_mm: float) -> None:
    """Raise ``coverage`` (z, y, x) in place to the share of each voxel that spheres along the centre lines fill.

    Points (n, 3) and radii (n,) in mm; ``edge_mm`` is the width over which the share falls from 1 to 0.
    """
    shape = np.asarray(coverage.shape)
    flat = coverage.reshape(-1)
    nearest = np.floor(points_zyx / spacing_zyx).astype(int)
    reach = np.ceil((radius_mm[:, None] + edge_mm / 2) / spacing_zyx).astype(int)
    for box in np.unique(reach, axis=0):
        members = np.flatnonzero((reach == box).all(1))
        offsets = np.stack(np.meshgrid(*[np.arange(-b, b + 1) for b in box], indexing="ij"), -1).reshape(-1, 3)
        for chunk in np.array_split(members, max(1, len(members) * len(offsets) // 2_000_000)):
            voxels = nearest[chunk, None] + offsets
            gap = (voxels + 0.5) * spacing_zyx - points_zyx[chunk, None]
            share = (radius_mm[chunk, None] - np.sqrt((gap * gap).sum(-1))) / edge_mm + 0.5
            keep = (share > 0) & ((voxels >= 0) & (voxels < shape)).all(-1)
            z, y, x = voxels[keep].T
            np.maximum.at(flat, (z * shape[1] + y) * shape[2] + x, np.minimum(share[keep], 1).astype(coverage.dtype))


@dataclass(frozen=True)
class Chest:
    """A drawn half chest before the scanner blurs it.

    Attributes:
        image_hu: float32 (z, y, x).
        wall_distance_mm: signed distance to the lung's outline for each voxel, below 0 inside.
        lung: its outline.
        vessels_zyx, vessel_radius_mm, vessel_direction_zyx: one row a vessel branch, at its middle.
        bifurcations_zyx: branching points of vessels thicker than 1 mm.
        bronchi_zyx: points on the airways.
    """

    image_hu: Floats
    wall_distance_mm: Floats
    lung: Lung
    vessels_zyx: Floats
    vessel_radius_mm: Floats
    vessel_direction_zyx: Floats
    bifurcations_zyx: Floats
    bronchi_zyx: Floats


def draw_chest(rng: np.random.Generator, shape_zyx: tuple[int, int, int], spacing_zyx: Floats) -> Chest:
    """Draw one half of a chest of the given shape and spacing (mm), both in (z, y, x)."""
    lung = shape_lung(rng, shape_zyx, spacing_zyx)
    wall = upsample(lung.distance_mm, _padded(lung))[tuple(slice(n) for n in shape_zyx)]
    edge = max(0.7, float(spacing_zyx[2]))
    vessel_share = np.zeros(shape_zyx, np.float32)
    airway_wall, airway_lumen = np.zeros((2, *shape_zyx), np.float32)

    volume_l = (lung.distance_mm < 0).sum() * np.prod(spacing_zyx) * _LUNG_GRID**3 / 1e6
    leaves = int(volume_l * rng.uniform(550, 800)) + 150
    trees, branches, bronchi = [], [], []
    for carries_airways in (True, False):
        root = lung.hilum_zyx + rng.normal(0, 4, 3)
        tree = grow_tree(lung.sample(rng, leaves, 2.0), root, rng.uniform(0.44, 0.58))
        paths = wind_branches(rng, tree)
        paint_tubes(vessel_share, paths.points_zyx, paths.radius_mm, spacing_zyx, edge)
        if carries_airways:
            bronchi.append(_paint_airways(rng, paths, airway_wall, airway_lumen, spacing_zyx, edge))
        trees.append(tree)
        branches.append(paths)

    contrast_agent = rng.random() < 0.35
    blood_hu = rng.uniform(120, 190) if contrast_agent else rng.uniform(25, 60)
    inside = np.clip(0.5 - wall / 0.9, 0, 1)
    image = _draw_wall(rng, lung, wall, blood_hu if contrast_agent else None)
    image += (_draw_parenchyma(rng, lung, wall) - image) * inside
    image += (blood_hu - image) * (vessel_share * np.clip(1 - wall / 1.5, 0, 1))
    image += (rng.uniform(-450, -200) - image) * (airway_wall * inside * 0.7)
    image += (rng.uniform(-950, -900) - image) * (airway_lumen * inside)

    forks = [t.points_zyx[(t.children >= 2) & (t.radius_mm > 1.0)] for t in trees]
    return Chest(
        image,
        wall,
        lung,
        np.concatenate([b.middle_zyx for b in branches]),
        np.concatenate([b.middle_radius_mm for b in branches]),
        np.concatenate([b.direction_zyx for b in branches]),
        np.concatenate(forks),
        np.concatenate(bronchi),
    )


def _padded(lung: Lung) -> tuple[int, int, int]:
    z, y, x = (n * _LUNG_GRID for n in lung.distance_mm.shape)
    return z, y, x


def _paint_airways(
    rng: np.random.Generator, paths: Branches, wall: Floats, lumen: Floats, spacing_zyx: Floats, edge_mm: float
) -> Floats:
    """Lay an airway beside some of the larger arteries; returns points on the airways wider than 1.2 mm."""
    artery = paths.middle_radius_mm
    chosen = (artery > 1.3) & (rng.random(len(artery)) < 0.45)
    radius = artery * rng.uniform(0.75, 1.1, len(artery))
    aside = np.cross(paths.direction_zyx, [0.3, 1.0, 0.2])
    aside /= np.linalg.norm(aside, axis=1, keepdims=True) + 1e-6
    shift = aside * (artery + radius + 0.5)[:, None]
    samples = chosen[paths.branch]
    branch = paths.branch[samples]
    points = paths.points_zyx[samples] + shift[branch]
    paint_tubes(wall, points, radius[branch] + 0.45 + 0.12 * radius[branch], spacing_zyx, edge_mm)
    paint_tubes(lumen, points, radius[branch], spacing_zyx, edge_mm)
    return (paths.middle_zyx + shift)[chosen & (radius > 1.2)]


def _draw_parenchyma(rng: np.random.Generator, lung: Lung, wall_mm: Floats) -> Floats:
    """Aerated lung in HU: gravity, patchy density, emphysema in a third, septa, haze, a fissure."""
    shape, size = lung.shape_zyx, lung.size_mm
    patches = smooth_field(rng, shape, size, 6)
    clouds = smooth_field(rng, shape, size, 16)
    haze = smooth_field(rng, shape, size, 2.2)
    z, y, x = _axes_mm(lung)

    image = rng.uniform(-905, -830) + patches * rng.uniform(8, 16) + clouds * 12
    image += (y / size[1]) * rng.uniform(10, 70)
    if rng.random() < 0.35:
        image -= np.clip(patches[::-1] - 1, 0, 2) * 60
    # unresolved small vessels: bright specks rather than symmetric noise
    image += np.clip(haze - 0.3, 0, 3) * rng.uniform(14, 34)
    # septa: thin sheets where a smooth field changes its sign
    image += np.clip(1 - np.abs(smooth_field(rng, shape, size, 11)) / 0.10, 0, 1) * rng.uniform(15, 55)
    fissure = lung.middle_zyx[0] + (y - lung.middle_zyx[1]) * rng.uniform(0.5, 0.9)
    fissure = fissure + 12 * np.sin((x - lung.middle_zyx[2]) / rng.uniform(30, 60))
    image += np.clip(1 - np.abs(z - fissure) / rng.uniform(1, 1.6), 0, 1) * rng.uniform(60, 170)
    return image.astype(np.float32)


def _draw_wall(rng: np.random.Generator, lung: Lung, wall_mm: Floats, enhanced_hu: float | None) -> Floats:
    """Everything outside the lung in HU: muscle, fat and ribs on the lateral side, mediastinum on the other."""
    shape, size = lung.shape_zyx, lung.size_mm
    fine = smooth_field(rng, shape, size, 6)
    coarse = smooth_field(rng, shape, size, 16)
    z, y, x = _axes_mm(lung)
    lateral = (x - lung.middle_zyx[2]) * lung.side < 0.45 * lung.half_axes_zyx[2]

    image = rng.uniform(30, 60) + 12 * fine
    fat = coarse + np.clip((wall_mm - 9) / 8, -0.6, 1.2) > 0.8
    image[fat & lateral & (wall_mm > 3.5)] = -100
    spacing_mm = rng.uniform(24, 32)
    phase = (z + (y - lung.middle_zyx[1]) * rng.uniform(0.25, 0.5) + rng.uniform(0, 30)) % spacing_mm
    rib = np.sqrt((phase - 12) ** 2 + ((wall_mm - rng.uniform(9, 11)) / 0.62) ** 2) - 5.4
    cortex_hu, marrow_hu = rng.uniform(600, 950), rng.uniform(150, 300)
    image = np.where(lateral & (rib < 0), np.where(rib > -1.6, cortex_hu, marrow_hu), image)
    if enhanced_hu is not None:
        image[~lateral & (coarse[::-1] > 0.4)] = enhanced_hu + 20
    return image.astype(np.float32)


def _axes_mm(lung: Lung) -> tuple[Floats, Floats, Floats]:
    z, y, x = (
        (np.arange(n, dtype=np.float32) + 0.5) * np.float32(s)
        for n, s in zip(lung.shape_zyx, lung.spacing_zyx, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def scan_chest(rng: np.random.Generator, image_hu: Floats, spacing_zyx: Floats) -> tuple[Floats, Floats]:
    """What a scanner makes of a drawn image: slice profile, blur of the kernel, and correlated noise.

    Args:
        image_hu: float32 (z, y, x).
        spacing_zyx: mm.

    Returns:
        The blurred image without and with noise, float32 HU of the same shape.
    """
    sharp = rng.random() < 0.4
    sigma_in_plane = rng.uniform(0.95, 1.6) / 2.355 / spacing_zyx[2]
    slab = max(spacing_zyx[0], rng.uniform(1.0, 2.5))
    clean = ndimage.gaussian_filter(image_hu, (slab / spacing_zyx[0] / 3, sigma_in_plane, sigma_in_plane), truncate=3)
    if sharp:
        clean += 0.5 * (clean - ndimage.gaussian_filter(clean, (0, 1.2, 1.2), truncate=3))
    deviation = rng.uniform(30, 60) if sharp else rng.uniform(9, 28)
    cutoff_per_mm = rng.uniform(0.55, 0.75) if sharp else rng.uniform(0.28, 0.45)
    noise = _ct_noise(rng, image_hu.shape, float(spacing_zyx[2]), cutoff_per_mm)
    strength = 1 + 0.15 * smooth_field(rng, image_hu.shape, np.asarray(image_hu.shape, float), max(image_hu.shape) / 4)
    noise *= deviation * strength
    noise += clean
    return clean, noise


def _ct_noise(rng: np.random.Generator, shape_zyx: tuple[int, ...], spacing_mm: float, cutoff_per_mm: float) -> Floats:
    """Noise of deviation 1 with the spectrum of filtered back-projection: a ramp, rolled off, in each slice."""
    rows, columns = shape_zyx[1:]
    frequency = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(columns)) / spacing_mm
    transfer = (np.sqrt(frequency) * np.exp(-((frequency / cutoff_per_mm) ** 2))).astype(np.float32)
    spectrum = fft.rfft2(rng.standard_normal(shape_zyx, dtype=np.float32))
    spectrum *= transfer
    noise = fft.irfft2(spectrum, s=(rows, columns), overwrite_x=True)
    return noise / noise.std()
