"""Measure whether the seam around a nodule that was put in gives it away.

    python tools/seams.py --nodules BANK --output seams.png

A classifier sees the ring around a nodule alone, not the nodule: brightness, spread, edges and fine grain in shells
from its outlines to 7 mm outside. It is to tell the bank's nodules in their own boxes from the same nodules put into
boxes of others, as `luna16 phantom --nodules` puts them, beside the nodule that is there. So both kinds are the same
nodules in the same CTs, and the seam, and the place in the box, alone tell them apart. Chance is an AUC of 0.5. Folds
and bootstrap are over boxes. The picture shows both kinds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.background import Background
from luna16_monai.phantom.estimates import estimate_noise_growth
from luna16_monai.semi_real.bank import RealNodule, read_bank
from luna16_monai.semi_real.blend import blend, index_in_box, own_blur, prepare_nodule
from luna16_monai.semi_real.contact import distance_outside
from luna16_monai.semi_real.data_set import find_place

Floats = NDArray[np.floating]

SHELLS_MM = (0.0, 0.75, 1.5, 2.5, 3.5, 5.0, 7.0)
LARGEST_MM = 14.0
"""Larger nodules find no place beside another one in a box of 51 mm."""
LOW_HU, HIGH_HU = -1000, 400


@dataclass
class Ring:
    """What the classifier sees of one nodule, whose box it lies in, and a slice through it."""

    seen: list[float]
    box: int
    put_in: bool
    picture: Floats


def scene_of(nodule: RealNodule) -> Background:
    """The box of a nodule as a CT to put others into."""
    spacing, hu = nodule.spacing_zyx, nodule.hu
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), 1 / spacing)
    lungs = ndimage.binary_closing(np.pad(smooth < -500, 5, mode="edge"), iterations=3)
    depth = ndimage.distance_transform_edt(lungs, sampling=spacing)[5:-5, 5:-5, 5:-5]
    lungs = lungs[5:-5, 5:-5, 5:-5]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    return Background(
        hu=hu,
        geometry=Geometry(hu.shape, affine),
        lung_zyx=(np.argwhere(lungs) + 0.5) * spacing,
        depth_mm=depth[lungs],
        lung_hu=smooth[lungs],
        around_hu=ndimage.gaussian_filter(smooth, 5 / spacing, truncate=2)[lungs],
        blobs_zyx=np.empty((0, 3)),
        blur_zyx_mm=own_blur(nodule),
        noise_growth=estimate_noise_growth(hu, lungs, spacing),
    )


def ring_of(hu: Floats, distance_mm: Floats, spacing: Floats) -> list[float]:
    """Brightness, spread, edges and grain in the shells around a nodule; all inside its outlines is left out."""
    hu = np.clip(hu, LOW_HU, HIGH_HU).astype(np.float32)
    slope = np.sqrt(sum(g**2 for g in np.gradient(hu, *spacing)))
    grain = np.abs(hu - ndimage.gaussian_filter(hu, (0, 1, 1)))
    seen: list[float] = []
    for low, high in pairwise(SHELLS_MM):
        shell = (distance_mm > low) & (distance_mm <= high)
        values = hu[shell] if shell.sum() > 5 else np.full(6, np.nan)
        seen += [float(f) for f in (values.mean(), values.std(), *np.percentile(values, (10, 50, 90)))]
        seen += [float(np.median(a[shell])) if shell.sum() > 5 else float("nan") for a in (slope, grain)]
    return seen


def slice_at(hu: Floats, middle: Floats) -> Floats:
    """An axial slice of 31 x 31 voxels."""
    z, y, x = np.rint(middle).astype(int).tolist()
    return np.pad(hu[z], 15, constant_values=LOW_HU)[y : y + 31, x : x + 31]


def rings_of(nodules: list[RealNodule], each: int, rng: np.random.Generator) -> list[Ring]:
    """The ring of each nodule in its own box, and in up to ``each`` boxes of others that it is put into.

    A nodule that finds a place nowhere is left out, so that both kinds are the same nodules.
    """
    scenes = [scene_of(host) for host in nodules]
    found = []
    for own, nodule in enumerate(nodules):
        put: list[Ring] = []
        for box in rng.permutation(len(nodules)).tolist():
            if len(put) == each:
                break
            if nodules[box].patient != nodule.patient:
                put += put_into(nodules[box], scenes[box], box, nodule, rng)
        if put:
            middle, distance = np.array(ndimage.center_of_mass(nodule.share)), distance_outside(nodule)
            seen = ring_of(nodule.hu, distance, nodule.spacing_zyx)
            found += [Ring(seen, own, False, slice_at(nodule.hu, middle)), *put]
    return found


def put_into(host: RealNodule, scene: Background, box: int, nodule: RealNodule, rng: np.random.Generator) -> list[Ring]:
    """The ring of a nodule that is put into the box of another one; none where no place is found."""
    one, own = prepare_nodule(nodule, scene.blur_zyx_mm), distance_outside(host)
    size, radius = np.array(host.hu.shape) * host.spacing_zyx, nodule.diameter_mm / 2
    for _ in range(60):
        place = find_place(rng, scene, one)
        if place is None or (place[0] < radius + 4).any() or (place[0] > size - radius - 4).any():
            continue
        z, y, x = (slice(0, n) for n in host.hu.shape)
        index = index_in_box(scene, one, *place, (z, y, x))
        distance = ndimage.map_coordinates(one.distance_mm, index, order=1, mode="constant", cval=99.0)
        # the ring to 5 mm lies off the nodule that is there
        if own[distance < 5].min() < 3:
            continue
        hu = host.hu.copy()
        blend(hu, scene, one, *place)
        middle = place[0] / host.spacing_zyx - 0.5
        return [Ring(ring_of(hu, distance, host.spacing_zyx), box, True, slice_at(hu, middle))]
    return []


def auc(rings: list[Ring], classifier: object, draws: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """AUC of a classifier on boxes that it was not trained on, with a 95 % interval over boxes."""
    seen, box = np.array([r.seen for r in rings]), np.array([r.box for r in rings])
    label = np.array([r.put_in for r in rings])
    seen = np.where(np.isfinite(seen), seen, np.nanmean(seen, 0))
    folds = GroupKFold(n_splits=min(8, len(set(box.tolist()))))
    scores = cross_val_predict(classifier, seen, label, groups=box, cv=folds, method="predict_proba")[:, 1]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([np.flatnonzero(box == b) for b in rng.choice(np.unique(box), len(np.unique(box)))])
        if 0 < label[rows].sum() < len(rows):
            drawn.append(roc_auc_score(label[rows], scores[rows]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(roc_auc_score(label, scores)), float(low), float(high)


def draw(rings: list[Ring], output: Path, columns: int = 14) -> None:
    """Two rows of both kinds."""
    figure, axes = plt.subplots(4, columns, figsize=(1.2 * columns, 5))
    kinds = [[r for r in rings if r.put_in == kind] for kind in (False, True)]
    shown = [
        kinds[0][:columns],
        kinds[0][columns : 2 * columns],
        kinds[1][: 3 * columns : 3],
        kinds[1][1 : 3 * columns : 3],
    ]
    for line, row, name in zip(axes, shown, ("real", "real", "put in", "put in"), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, ring in zip(line, row, strict=False):
            axis.imshow(ring.picture, cmap="gray", vmin=LOW_HU, vmax=HIGH_HU)
            axis.set_title(name, fontsize=6)
    figure.tight_layout()
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodules", type=Path, required=True, metavar="BANK")
    parser.add_argument("--each", type=int, default=4, metavar="N", help="boxes that each nodule is put into")
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="draw both kinds")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    nodules = [n for n in read_bank(options.nodules).nodules if n.diameter_mm <= LARGEST_MM and min(n.hu.shape) > 30]
    rings = rings_of(nodules, options.each, rng)
    classifiers = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)),
        "trees": HistGradientBoostingClassifier(
            max_iter=60, min_samples_leaf=5, class_weight="balanced", random_state=0
        ),
    }
    told = {
        "boxes": len(nodules),
        "real": sum(not r.put_in for r in rings),
        "put_in": sum(r.put_in for r in rings),
        "auc": {name: [round(v, 3) for v in auc(rings, c, options.draws, rng)] for name, c in classifiers.items()},
    }
    print(json.dumps(told, indent=2))
    if options.output:
        draw(rings, options.output)


if __name__ == "__main__":
    main()
