"""Malignancy by size: the nodule's diameter and mean HU, and how well these alone rank nodules."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.machine.extras import require
from luna16_monai.store.reading import Store
from luna16_monai.tables.points import PointTable

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]


def measure_nodules(nodules: PointTable, store: Store) -> FloatArray:
    """Return diameter (mm) and mean HU of each nodule, (n, 2): of the ball with its diameter around its middle."""
    measured = np.empty((len(nodules), 2))
    for row, (code, point, diameter) in enumerate(zip(nodules.series, nodules.points_xyz, nodules.values, strict=True)):
        volume = store.volume(nodules.series_uids[code])
        spacing = np.array(volume.geometry.spacing_zyx)
        reach = np.ceil(diameter / 2 / spacing).astype(int)
        cutout = volume.cutout(point, (2 * reach + 1).tolist())
        offsets = [np.arange(-n, n + 1) * step for n, step in zip(reach, spacing, strict=True)]
        z, y, x = np.meshgrid(*offsets, indexing="ij", sparse=True)
        # the middle voxel belongs to it in any case
        ball = z**2 + y**2 + x**2 <= max(diameter / 2, 1e-6) ** 2
        measured[row] = diameter, cutout[ball].mean()
    return measured


def score_ruler(train: FloatArray, train_malignant: IntArray, test: FloatArray) -> dict[str, FloatArray]:
    """Return what plain measurements say of nodules.

    Args:
        train: (n, 2) diameter and mean HU, of other patients than ``test``.
        train_malignant: (n,) 0 or 1.
        test: (m, 2).

    Returns:
        ``diameter``, mm as it is, and ``diameter_and_mean_hu``, the probability of a logistic regression; (m,) each.

    Raises:
        ValueError: the training nodules are of one class.
        ModuleNotFoundError: scikit-learn is missing.
    """
    require_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train_malignant)) < 2:
        raise ValueError(f"{len(train)} nodules to train on, all of one class: both malignant and benign are needed")
    regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(train, train_malignant)
    return {"diameter": test[:, 0], "diameter_and_mean_hu": regression.predict_proba(test)[:, 1]}


def require_scikit_learn() -> None:
    """Check that the ruler can be made.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    require("baselines", "the comparison with a ruler", "sklearn")
