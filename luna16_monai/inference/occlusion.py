"""Why the network says so: how its verdict changes when a part of the cutout is hidden, drawn over the slices.

MONAI's ``OcclusionSensitivity`` hides one soft-edged box after the other. What is hidden becomes lung, -850 HU: with
zeros in its place, as MONAI's default would have it, each box would put a ball of soft tissue into the lung, which is
what a nodule looks like. Where the log-odds fall, something there raised the network's probability.
Log-odds, because a probability of 0.9999 hardly moves whatever is hidden, and would explain nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from monai.visualize import OcclusionSensitivity
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit, logit
from torch import Tensor, nn
from tqdm import tqdm

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.slices import LUNG_WINDOW_HU, PIXELS, VIEWS, cut_slices, slices_through
from luna16_monai.geometry.volume import Volume
from luna16_monai.inference.classifier import Classifier
from luna16_monai.machine.files import atomic_write
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import PointTable, write_points

LUNG_HU = -850
HIDDEN_MM = 10.0
"""The side of what is hidden; its edges are soft, so half of it is half hidden."""
OVERLAP = 0.5
BATCH = 32
TABLE = "explanations.csv"
# for and against a nodule, distinct to colour-blind eyes too
FOR, AGAINST = (255, 128, 0), (40, 140, 255)
STRONGEST = 0.6
SMALLEST_SCALE = 1.0
"""A smaller change of the log-odds is never drawn in full colour: it would look like more than it is."""
NEAREST_TO_CERTAIN = 1e-12


@dataclass(frozen=True)
class Explanation:
    """What hiding parts of one candidate's cutout does.

    Attributes:
        series_uid: its scan.
        point_xyz: world LPS mm.
        probability: with nothing hidden.
        fall: on the cutout's grid, float32: by how much the log-odds fall when that place is hidden.
        pictures: each view, and below it the same with the fall over it, (row, column, RGB) uint8.
    """

    series_uid: str
    point_xyz: tuple[float, float, float]
    probability: float
    fall: Volume
    pictures: NDArray[np.uint8]

    def with_fall(self, fall: float) -> float:
        """The probability when the log-odds fall by so much."""
        return float(expit(logit(np.clip(self.probability, NEAREST_TO_CERTAIN, 1 - NEAREST_TO_CERTAIN)) - fall))


def explain(
    classifier: Classifier, table: PointTable, volumes: InMemoryStore, progress: bool = False
) -> Iterator[Explanation]:
    """Explain each row of a table, in its order; series by series is fastest.

    Args:
        classifier: whose probability is explained, without test-time augmentation.
        table: candidates inside their scans.
        volumes: the classifier's, from `Classifier.volumes`.
        progress: show a bar.

    Raises:
        ValueError: the bundle's preprocessing changes the cutout's size, or makes no number of lung tissue.
    """
    preprocessing = classifier.preprocessing(volumes)
    lung_preprocessing = classifier.preprocessing(_Lung(volumes))
    shape_zyx = classifier.config["shape_zyx"]
    for row in tqdm(range(len(table)), desc="explain", unit="candidate", disable=not progress):
        uid = table.series_uids[table.series[row]]
        x, y, z = table.points_xyz[row].tolist()
        volume = volumes.volume(uid)
        image = classifier.images(table, [row], preprocessing)
        lung = classifier.images(table, [row], lung_preprocessing)
        if tuple(image.shape[2:]) != tuple(shape_zyx) or not torch.isfinite(lung).all():
            raise ValueError(
                f"the preprocessing of {classifier.bundle.name} makes {tuple(image.shape[2:])} of a cutout of "
                f"{tuple(shape_zyx)} voxels, or no number of lung tissue: --explain needs one that changes HU only"
            )
        geometry = volume.cutout_geometry((x, y, z), shape_zyx)
        fall = Volume(hide_parts(classifier, image, lung, geometry), geometry, volume.scan)
        probability = float(classifier.score(image)[0])
        yield Explanation(uid, (x, y, z), probability, fall, draw(volume, fall, (x, y, z)))


def hide_parts(classifier: Classifier, image: Tensor, lung: Tensor, geometry: Geometry) -> NDArray[np.float32]:
    """By how much a cutout's log-odds fall when parts of it are hidden.

    Args:
        classifier: has the networks.
        image: (1, 1, z, y, x), as the network takes it.
        lung: what lung tissue is in its units, of the same shape.
        geometry: of the cutout.

    Returns:
        (z, y, x) float32, for each place; negative where they rise.
    """
    # an odd number has a middle, where it hides most
    sides = [round(HIDDEN_MM / step) | 1 for step in geometry.spacing_zyx]
    mask = [min(side, length) for side, length in zip(sides, geometry.shape_zyx, strict=True)]
    network = _LogOdds(classifier, lung)
    occlusion = OcclusionSensitivity(network, mask, BATCH, verbose=False, overlap=OVERLAP, activate=False)
    hidden, _ = occlusion(image - lung)
    return (network(image - lung).squeeze() - hidden.squeeze()).numpy()


class _LogOdds(nn.Module):
    """The classifier's log-odds of an image from which the lung was taken: 0, what hides, then is lung."""

    def __init__(self, classifier: Classifier, lung: Tensor) -> None:
        super().__init__()
        self.classifier, self.lung = classifier, lung

    def forward(self, image: Tensor) -> Tensor:
        return torch.logit(self.classifier.score(image + self.lung), NEAREST_TO_CERTAIN)[:, None].float()


class _Lung:
    """In place of the CTs: nothing but lung tissue, to learn what the preprocessing makes of it."""

    def __init__(self, like: InMemoryStore) -> None:
        self.like = like

    def volume(self, series_uid: str, /) -> Volume:
        like = self.like.volume(series_uid)
        return Volume(np.broadcast_to(np.int16(LUNG_HU), like.geometry.shape_zyx), like.geometry, like.scan)


def draw(volume: Volume, fall: Volume, point_xyz: Sequence[float]) -> NDArray[np.uint8]:
    """The slices through a point, and below them the same under the fall's colours.

    Args:
        volume: the CT.
        fall: as in `Explanation`.
        point_xyz: (3,) world LPS mm.

    Returns:
        (2 x side, 3 x side, 3) uint8, (row, column, RGB): axial, coronal, sagittal.
    """
    pixels = 2 * PIXELS - 1
    grey = slices_through(volume, point_xyz, pixels=pixels, window_hu=LUNG_WINDOW_HU)
    # nothing is known finer than the steps of the boxes, so their edges would only distract
    blur = (1 - OVERLAP) * HIDDEN_MM / 3 / np.array(fall.geometry.spacing_zyx)
    shown = replace(fall, voxels=gaussian_filter(fall.voxels, blur))
    falls = cut_slices(shown, point_xyz, pixels=pixels, outside=0.0)
    scale = full_colour(shown)
    below = []
    for view in VIEWS:
        share = STRONGEST * np.clip(np.abs(falls[view]) / scale, 0, 1)[..., None]
        colour = np.where(falls[view][..., None] > 0, FOR, AGAINST)
        below.append(np.rint(grey[view][..., None] * (1 - share) + colour * share).astype(np.uint8))
    above = np.concatenate(list(grey.values()), axis=1)
    return np.concatenate([np.repeat(above[..., None], 3, axis=2), np.concatenate(below, axis=1)])


def full_colour(fall: Volume) -> float:
    """The change of the log-odds that is drawn in full colour."""
    return max(float(np.abs(fall.voxels).max()), SMALLEST_SCALE)


def write_explanations(folder: Path, explanations: Sequence[Explanation]) -> None:
    """Write a PNG for each explanation, in their order (001.png is the first), and a table of them.

    The table has a submission's columns, the lowest and the highest probability with a part hidden, and the picture.
    The probability is that of one look, without test-time augmentation.
    """
    names = [f"{number:03d}.png" for number in range(1, len(explanations) + 1)]
    for name, one in zip(names, explanations, strict=True):
        content = _png(one)
        with atomic_write(folder / name) as stream:
            stream.write(content)
    write_points(
        folder / TABLE,
        [one.series_uid for one in explanations],
        [one.point_xyz for one in explanations],
        [one.probability for one in explanations],
        "probability",
        lowest_hidden=[one.with_fall(one.fall.voxels.max()) for one in explanations],
        highest_hidden=[one.with_fall(one.fall.voxels.min()) for one in explanations],
        picture=names,
    )


def _png(one: Explanation) -> bytes:
    """The pictures with a line below that says what the colours mean."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = one.pictures.shape[:2]
    sheet = Image.new("RGB", (width, height + 44), (18, 20, 23))
    sheet.paste(Image.fromarray(one.pictures), (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    place = 14.0
    for text, colour in (
        (f"probability {one.probability:.3f}", (255, 255, 255)),
        (f"hide orange: down to {one.with_fall(one.fall.voxels.max()):.3f}", FOR),
        (f"hide blue: up to {one.with_fall(one.fall.voxels.min()):.3f}", AGAINST),
    ):
        pen.text((place, height + 10), text, colour, font)
        place += pen.textlength(text, font) + 40
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()
