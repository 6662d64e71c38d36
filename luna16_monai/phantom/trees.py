"""Branching trees of vessels and airways: grown to fill a lung, wound a little, painted as tubes.

Positions are mm in (z, y, x) from the volume's corner, as in ``luna16_monai.phantom.anatomy``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Floats = NDArray[np.floating]

_STEP_MM = 0.6
"""Distance between neighbouring samples of a branch's centre line."""
_MAX_RADIUS_MM = 7.5
_MURRAY = 2.7
_DIRECT = 0.35
"""What a mm of the way back to the root costs against a mm to the tree: small values make winding detours."""


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
    the tree (Cuntz et al., PLoS Comput Biol 2010). Radii follow Murray's law (Proc Natl Acad Sci 1926) with exponent
    2.7: radius**2.7 adds up over leaves. Then forks are drawn towards the line that their thickest branch takes, so
    that a vessel runs on through its forks and only thins.
    """
    points = points_zyx[np.argsort(((points_zyx - root_zyx) ** 2).sum(1), kind="stable")]
    nodes = np.vstack([root_zyx, points])
    count = len(nodes)
    parent = np.full(count, -1)
    travelled = np.zeros(count)
    for i in range(1, count):
        length = np.sqrt(((nodes[:i] - nodes[i]) ** 2).sum(1))
        parent[i] = np.argmin(length + _DIRECT * travelled[:i])
        travelled[i] = travelled[parent[i]] + length[parent[i]]
    children = np.bincount(parent[1:], minlength=count)
    leaves = (children == 0).astype(float)
    for i in range(count - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    radius = np.minimum(leaf_radius_mm * np.maximum(leaves, 1) ** (1 / _MURRAY), _MAX_RADIUS_MM)

    thickest = np.arange(count)
    ordered = np.argsort(leaves[1:], kind="stable") + 1
    thickest[parent[ordered]] = ordered
    inner = np.flatnonzero(children[1:] > 0) + 1
    for _ in range(4):
        nodes[inner] += 0.6 * ((nodes[parent[inner]] + nodes[thickest[inner]]) / 2 - nodes[inner])
    return Tree(nodes, parent, radius, children)


@dataclass(frozen=True)
class Branches:
    """Sampled centre lines: ``points_zyx`` (n, 3) and ``radius_mm`` (n,), ``branch`` (n,) is the branch of each.

    ``middle_zyx``, ``middle_radius_mm`` and ``direction_zyx`` hold one row a branch.
    """

    points_zyx: Floats
    radius_mm: Floats
    branch: NDArray[np.intp]
    middle_zyx: Floats
    middle_radius_mm: Floats
    direction_zyx: Floats


def wind_branches(rng: np.random.Generator, tree: Tree) -> Branches:
    """Sample each branch of a tree along a winding line: two waves across it, which vanish at both ends.

    A branch tapers from its parent's radius, or little more than its own at a side branch, to its own; a twig to half
    of its own at its tip.
    """
    start, end = tree.points_zyx[tree.parent[1:]], tree.points_zyx[1:]
    along = end - start
    length = np.linalg.norm(along, axis=1)
    direction = along / (length[:, None] + 1e-6)
    across = np.cross(direction, rng.standard_normal(direction.shape))
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-6
    third = np.cross(direction, across)
    waves = np.arange(1, 3)
    swing = rng.normal(0, 0.055, (2, len(length), 2)) * np.minimum(length, 25)[:, None] / waves**1.5

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
    own = tree.radius_mm[1:]
    thick = np.minimum(tree.radius_mm[tree.parent[1:]], 1.25 * own)
    thin = np.where(tree.children[1:] == 0, 0.5 * own, own)
    radius = thick[branch] + (thin - thick)[branch] * t
    middle = first + counts // 2
    return Branches(points, radius, branch, points[middle], radius[middle], direction)


def crossings(one: Branches, other: Branches, thinnest_mm: float) -> Floats:
    """Return points (n, 3) where branches of two trees, both of that radius and more, pass each other and touch."""
    first, second = (np.flatnonzero(b.radius_mm >= thinnest_mm) for b in (one, other))
    if not len(first) or not len(second):
        return np.empty((0, 3))
    gap, nearest = KDTree(other.points_zyx[second]).query(one.points_zyx[first])
    nearest = second[nearest]
    touching = gap < one.radius_mm[first] + other.radius_mm[nearest]
    # one point a pair of branches: where they are nearest
    closest: dict[tuple[int, int], tuple[float, int, int]] = {}
    for distance, i, j in zip(gap[touching], first[touching], nearest[touching], strict=True):
        pair = (int(one.branch[i]), int(other.branch[j]))
        closest[pair] = min(closest.get(pair, (np.inf, 0, 0)), (float(distance), int(i), int(j)))
    return np.array([(one.points_zyx[i] + other.points_zyx[j]) / 2 for _, i, j in closest.values()]).reshape(-1, 3)


def paint_tubes(coverage: Floats, points_zyx: Floats, radius_mm: Floats, spacing_zyx: Floats, edge_mm: float) -> None:
    """Raise ``coverage`` (z, y, x) in place to the share of each voxel that tubes along the centre lines fill.

    The share falls from 1 to 0 over ``edge_mm``, and is scaled so that a tube keeps its cross-section however thin it
    is: with a ramp of half-width h, r**2 / (r**2 + h**2 / 3) where r > h, and 6 h r**2 / (r + h)**3 below.

    Args:
        coverage: float (z, y, x), changed in place.
        points_zyx, radius_mm: (n, 3) and (n,), mm.
        spacing_zyx: mm.
        edge_mm: 2 h.
    """
    shape = np.asarray(coverage.shape)
    flat = coverage.reshape(-1)
    half = edge_mm / 2
    scale = np.where(
        radius_mm > half, radius_mm**2 / (radius_mm**2 + half**2 / 3), 6 * half * radius_mm**2 / (radius_mm + half) ** 3
    )
    nearest = np.floor(points_zyx / spacing_zyx).astype(int)
    reach = np.ceil((radius_mm[:, None] + half) / spacing_zyx).astype(int)
    for box in np.unique(reach, axis=0):
        members = np.flatnonzero((reach == box).all(1))
        offsets = np.stack(np.meshgrid(*[np.arange(-b, b + 1) for b in box], indexing="ij"), -1).reshape(-1, 3)
        for chunk in np.array_split(members, max(1, len(members) * len(offsets) // 2_000_000)):
            voxels = nearest[chunk, None] + offsets
            gap = (voxels + 0.5) * spacing_zyx - points_zyx[chunk, None]
            share = (radius_mm[chunk, None] - np.sqrt((gap * gap).sum(-1))) / edge_mm + 0.5
            keep = (share > 0) & ((voxels >= 0) & (voxels < shape)).all(-1)
            z, y, x = voxels[keep].T
            filled = (np.minimum(share, 1) * scale[chunk, None])[keep].astype(coverage.dtype)
            np.maximum.at(flat, (z * shape[1] + y) * shape[2] + x, filled)
