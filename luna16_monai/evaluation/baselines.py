"""What a network has to beat: boosted trees on a handful of plain numbers about each cutout.

Where such numbers alone tell the classes apart, a good score of the network says little about it. Each baseline
knows more than the one before: brightness at the centre, size and brightness of the central blob, brightness by
distance from the centre, the shape of the central blob.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from luna16_monai.machine.extras import require

CENTRE_MM = 3.0
NEAR_MM = 5.0
BLOB_REACH_MM = 10.0
PROFILE_MM = np.arange(0.0, 15.01, 1.25)
BLOB_HU = -400
SHAPE_HU = (-600, -300)
_CHUNK = 256


def baseline_features(cutouts: NDArray[np.int16], spacing_zyx: ArrayLike) -> dict[str, NDArray[np.float32]]:
    """Measure each cutout.

    Args:
        cutouts: (n, z, y, x) HU, the candidate at the middle of the box.
        spacing_zyx: (3,) mm, the same for all.

    Returns:
        ``mean_hu_centre`` (n, 1): mean HU within 3 mm of the centre.
        ``size_brightness`` (n, 4): mean and highest HU within 5 mm; volume (mm³) and mean HU of the connected part
        above -400 HU nearest to the centre, in a box that reaches 10 mm; 0 and -1000 where none begins within 5 mm.
        ``radial_profile`` (n, 12): mean HU in shells of 1.25 mm; shells beyond the box repeat the last one inside.
        ``component_shape`` (n, 18): for the connected part above -600 HU and that above -300 HU nearest to the centre,
        in a ball of 10 mm: volume (mm³), the standard deviations (mm) along its three main axes and their ratios, the
        share of its voxels at its surface and at the ball's, and its mean HU; zeros and -1000 where there is none.

    Raises:
        ValueError: cutouts that are not (n, z, y, x), or a spacing that is not three numbers above 0.
    """
    spacing = np.asarray(spacing_zyx, np.float64)
    if cutouts.ndim != 4:
        raise ValueError(f"cutouts of shape {cutouts.shape}: give (n, z, y, x)")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ValueError(f"spacing {spacing.tolist()} mm: give three numbers above 0, (z, y, x)")
    middle, distance = _central_box(cutouts.shape[1:], spacing, float(PROFILE_MM[-1]))
    blob_box, blob_distance = _central_box(cutouts.shape[1:], spacing, BLOB_REACH_MM)
    shells = np.digitize(distance, PROFILE_MM) - 1
    weights = np.stack([distance <= CENTRE_MM, distance <= NEAR_MM, *(shells == k for k in range(len(PROFILE_MM) - 1))])
    weights = weights.reshape(len(weights), -1).T.astype(np.float32)
    counts = weights.sum(0)
    counts[2:], filled = np.maximum(counts[2:], 1), np.flatnonzero(counts[2:])
    nearest_shell = filled[np.abs(np.arange(len(PROFILE_MM) - 1)[:, None] - filled).argmin(1)]

    means, blobs, parts = (
        [np.empty((0, columns), np.float32)] for columns in (weights.shape[1], 3, _SHAPE_NUMBERS * len(SHAPE_HU))
    )
    grid = np.stack(np.meshgrid(*map(np.arange, blob_distance.shape), indexing="ij"), -1) * spacing
    for start in range(0, len(cutouts), _CHUNK):
        chunk = cutouts[start : start + _CHUNK]
        means.append(chunk[(slice(None), *middle)].reshape(len(chunk), -1).astype(np.float32) @ weights / counts)
        boxes = chunk[(slice(None), *blob_box)]
        blobs.append(np.array([_measure_blob(box, blob_distance, spacing) for box in boxes], np.float32))
        shapes = [[_measure_shape(box, hu, blob_distance, grid, spacing) for hu in SHAPE_HU] for box in boxes]
        parts.append(np.array(shapes, np.float32).reshape(len(boxes), -1))
    mean, blob = np.concatenate(means), np.concatenate(blobs)
    return {
        "mean_hu_centre": mean[:, :1],
        "size_brightness": np.concatenate([mean[:, 1:2], blob], axis=1),
        "radial_profile": mean[:, 2:][:, nearest_shell],
        "component_shape": np.concatenate(parts),
    }


def score_baselines(
    train_cutouts: NDArray[np.int16],
    train_labels: ArrayLike,
    test_cutouts: NDArray[np.int16],
    spacing_zyx: ArrayLike,
    names: Sequence[str] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Train boosted trees on each set of features, and return their probabilities of class 1 on other cutouts.

    Args:
        train_cutouts, test_cutouts: (n, z, y, x) HU, of different patients.
        train_labels: (n,) 0 or 1.
        spacing_zyx: (3,) mm.
        names: of the features; None for all.

    Raises:
        ValueError: the labels name one class only, or as `baseline_features`.
        ModuleNotFoundError: scikit-learn is missing.
    """
    require("baselines", "the comparison with boosted trees", "sklearn")
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    labels = np.asarray(train_labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"train_labels hold class {np.unique(labels).tolist()} only: give both classes")
    train, test = (baseline_features(c, spacing_zyx) for c in (train_cutouts, test_cutouts))
    scores = {}
    for name in names or train:
        trees = HistGradientBoostingClassifier(
            learning_rate=0.06, max_iter=150, max_leaf_nodes=12, l2_regularization=1.0, random_state=0
        )
        # on so few rows its threads mostly wait for each other: 50 times slower on a busy machine
        with threadpool_limits(1, user_api="openmp"):
            scores[name] = trees.fit(train[name], labels).predict_proba(test[name])[:, 1]
    return scores


def _central_box(
    shape_zyx: tuple[int, ...], spacing_zyx: NDArray[np.float64], reach_mm: float
) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Return the middle part of a cutout, and the distances (mm) of its voxels from the cutout's middle voxel."""
    middle = [n // 2 for n in shape_zyx]
    reach = np.ceil(reach_mm / spacing_zyx).astype(int).tolist()
    box = tuple(slice(max(m - r, 0), m + r + 1) for m, r in zip(middle, reach, strict=True))
    offsets = [(np.arange(n) - m)[s] * step for n, m, s, step in zip(shape_zyx, middle, box, spacing_zyx, strict=True)]
    z, y, x = np.meshgrid(*offsets, indexing="ij", sparse=True)
    return box, np.sqrt(z**2 + y**2 + x**2)


def _measure_blob(
    box: NDArray[np.int16], distance_mm: NDArray[np.float64], spacing_zyx: NDArray[np.float64]
) -> list[float]:
    """Return the highest HU within 5 mm, then volume (mm³) and mean HU of the blob nearest to the centre."""
    near = distance_mm <= NEAR_MM
    highest = float(box[near].max())
    blob = box[_central_part(box > BLOB_HU, distance_mm)]
    if not blob.size:
        return [highest, 0.0, -1000.0]
    return [highest, float(blob.size * spacing_zyx.prod()), float(blob.mean())]


def _central_part(mask: NDArray[np.bool_], distance_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the connected part of a mask that is nearest to the centre; empty where none begins within 5 mm."""
    parts, _ = ndimage.label(mask)
    seeds = np.where((distance_mm <= NEAR_MM) & mask, distance_mm, np.inf)
    nearest = np.unravel_index(seeds.argmin(), seeds.shape)
    return parts == parts[nearest] if np.isfinite(seeds[nearest]) else np.zeros_like(mask)


_SHAPE_NUMBERS = 9


def _measure_shape(
    box: NDArray[np.int16],
    above_hu: int,
    distance_mm: NDArray[np.float64],
    grid_mm: NDArray[np.float64],
    spacing_zyx: NDArray[np.float64],
) -> list[float]:
    part = _central_part((box > above_hu) & (distance_mm <= BLOB_REACH_MM), distance_mm)
    count = int(part.sum())
    if not count:
        return [0.0] * (_SHAPE_NUMBERS - 1) + [-1000.0]
    # each voxel counts as a box, so that flat and thin parts have a width too
    spread = np.cov(grid_mm[part].T, bias=True) + np.diag(spacing_zyx**2 / 12)
    shortest, middle, longest = np.sqrt(np.linalg.eigvalsh(spread))
    surface = count - int(ndimage.binary_erosion(part, border_value=1).sum())
    at_ball = int((part & (distance_mm > BLOB_REACH_MM - 1)).sum())
    return [
        *(count * float(spacing_zyx.prod()), shortest, middle, longest),
        *(shortest / longest, middle / longest, surface / count, at_ball / count),
        float(box[part].mean()),
    ]
