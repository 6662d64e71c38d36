"""Nodules in a real CT: the phantom's nodules and candidates on real anatomy.

A real scan lends its lungs; nodules in the shapes of real ones are added to it, blurred in the plane and along z as its
own edges are. Its own noise stays on top of them, as much stronger as it is in its vessels. The scans that are written
are spread over the backgrounds, with other nodules in each. A network trained on them can learn a background by heart:
with few of them a run shows that the machinery works on real anatomy, and nothing about how well the network
generalises. Lesions that a background has of its own are unknown here, and may be listed as class 0.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna16_monai.ct.folders import SUBSETS
from luna16_monai.ct.lungs import find_cut_lungs, find_lungs, lung_mask
from luna16_monai.ct.opening import open_ct
from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.anatomy import shrink_slices
from luna16_monai.phantom.candidates import jitter, propose_blobs
from luna16_monai.phantom.data_set import RECIPE, plan_scans, write_data_set
from luna16_monai.phantom.estimates import estimate_blur, estimate_noise_growth, split_noise
from luna16_monai.phantom.lesions import (
    BANK_SPACING_MM,
    Box,
    Look,
    ShapeBank,
    choose_look,
    load_shape_bank,
    nodule_increment,
    nodule_share,
    random_turn,
)
from luna16_monai.phantom.nodules import CLEARANCE_MM, Location, Nodule, clearance
from luna16_monai.phantom.scan import Scan, ScanPlan, finish_scan

Floats = NDArray[np.floating]

_SMALLEST_LUNG_ML = 20
_MARGIN_MM = 12.0
STREAM = 1
"""Of chance: other names and places than the drawn set has with the same seed."""
_DRAWN_BLUR_MM = 0.25
"""Deviation that the edge of a nodule's share has as drawn: 0.23 mm for a sharp margin, 0.35 for a blurred one."""


@dataclass(frozen=True)
class Background:
    """A real CT, cut to the box of its lungs.

    Attributes:
        hu: int16 (z, y, x).
        geometry: where the cut volume lies.
        lung_zyx: points in the lungs, (n, 3), one for each 2 x 2 voxels of a slice; mm from the volume's corner.
        depth_mm: their distances to the lung's outline, (n,).
        lung_hu: the mean HU there, (n,).
        around_hu: the same over about 1 cm, (n,): high in the hilum, at the wall, and in the wall itself.
        blobs_zyx: what the blob detector finds, mm, (n, 3).
        blur_zyx_mm: standard deviation of the scan's blur, (3,).
        noise_growth: by which share the scan's noise grows with each HU from lung to tissue.
    """

    hu: NDArray[np.int16]
    geometry: Geometry
    lung_zyx: Floats
    depth_mm: Floats
    lung_hu: Floats
    around_hu: Floats
    blobs_zyx: Floats
    blur_zyx_mm: Floats
    noise_growth: float

    @property
    def spacing_zyx(self) -> Floats:
        """mm."""
        return np.array(self.geometry.spacing_zyx)


def write_background_phantom(
    backgrounds: Path | Sequence[Path],
    output: Path,
    scans: int = 10,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    nodules: tuple[int, int] = (6, 10),
    negatives: int = 60,
) -> dict[str, Any]:
    """Write a data set in LUNA16's layout whose scans are real CTs with different nodules put into them.

    Each scan counts as a patient of its own, since training needs several. With fewer backgrounds than subsets that is
    a fiction: a background is the same in training and validation, so that scores show that everything works, not how
    well it generalises.

    Args:
        backgrounds: .mhd, .mha, .nii, .nii.gz, .nrrd, or a folder of DICOM files; in HU, with the lungs in view.
        output, scans, seed, workers, progress: as `data_set.write_phantom`.
        nodules: fewest and most nodules a scan.
        negatives: candidates of class 0 a scan, fewer where the blob detector finds less.

    Returns:
        As `data_set.write_phantom`.

    Raises:
        FileNotFoundError: no such CT.
        ValueError: no lungs are found in it; or as `data_set.write_phantom`.
        RuntimeError: a worker process died.
    """
    if not 1 <= nodules[0] <= nodules[1]:
        raise ValueError(f"nodules {nodules}: give two whole numbers, 1 or more, the smaller one first")
    if negatives < 0:
        raise ValueError(f"negatives {negatives}: give 0 or more")
    paths, hashes = identify_backgrounds([backgrounds] if isinstance(backgrounds, Path) else backgrounds)
    plans = spread_backgrounds(plan_scans(scans, seed, load_shape_bank(), STREAM), len(paths))
    recipe = {
        "kind": "background",
        "recipe": RECIPE,
        "background_sha256": hashes[0] if len(hashes) == 1 else hashes,
        "seed": seed,
        "scans": scans,
        "nodules": nodules,
        "negatives": negatives,
    }
    draw = partial(draw_on_background, backgrounds=paths, seed=seed, nodules=nodules, negatives=negatives)
    return write_data_set(output, recipe, plans, draw, workers, progress)


def identify_backgrounds(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return absolute paths of real CTs, and the SHA-256 of the voxels that each one lends, in the same order.

    Raises:
        FileNotFoundError: no such CT.
        ValueError: no lungs are found in one of them, or two are the same.
    """
    resolved = [Path(path).resolve() for path in paths]
    hashes: list[str] = []
    for path in resolved:
        found = hashlib.sha256(read_background(path).hu.tobytes()).hexdigest()
        if found in hashes:
            raise ValueError(f"backgrounds {resolved[hashes.index(found)]} and {path} are one CT: name it once")
        hashes.append(found)
    return resolved, hashes


def spread_backgrounds(plans: Sequence[ScanPlan], backgrounds: int) -> list[ScanPlan]:
    """Return the plans with the number of a background each, in the order of the backgrounds.

    Scans of one subset take turns with as few backgrounds as there can be: with ten and more of them no background is
    in two subsets, so that training and validation share none.
    """
    spread, of_subset = [], Counter[int]()
    for plan in plans:
        own = list(range(plan.subset % backgrounds, backgrounds, len(SUBSETS)))
        spread.append(replace(plan, background=own[of_subset[plan.subset] % len(own)]))
        of_subset[plan.subset] += 1
    # scans of one background after each other: each process reads few of them
    return sorted(spread, key=lambda plan: (plan.background, plan.number))


@lru_cache(1)
def read_background(path: Path) -> Background:
    """Read a CT, find its lungs, and cut it to their box; once a process.

    Raises:
        ValueError: no lungs are found, or the CT is refused.
        FileNotFoundError: no such CT.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"background CT {str(path)!r} does not exist: give a CT file or a folder of DICOM files"
        )
    ct = open_ct(path)
    hu = ct.read()
    hu = np.clip(np.rint(hu), -32768, 32767).astype(np.int16) if hu.dtype != np.int16 else hu
    return background_of(hu, ct.geometry, ct.name)


def background_of(hu: NDArray[np.int16], geometry: Geometry, name: str) -> Background:
    """Find the lungs of a CT, and cut it to their box.

    Args:
        hu: (z, y, x).
        geometry: of ``hu``.
        name: of the CT, for the message.

    Raises:
        ValueError: no lungs are found.
    """
    spacing = np.array(geometry.spacing_zyx)
    step = spacing * [1, 2, 2]
    pairs = shrink_slices(hu, 2)
    lungs = find_lungs(pairs, step)
    if lungs.sum() * step.prod() < _SMALLEST_LUNG_ML * 1000:
        affine = geometry.affine.copy()
        affine[:3, :3] *= [1, 2, 2]
        affine[:3, 3] = geometry.world_from_voxel([0, 0.5, 0.5])
        lungs = find_cut_lungs(pairs, step, lung_mask(hu, geometry), Geometry(pairs.shape, affine))
    if lungs.sum() * step.prod() < _SMALLEST_LUNG_ML * 1000:
        raise ValueError(
            f"no lungs in {name} (less than {_SMALLEST_LUNG_ML} ml of air enclosed by the body): "
            "give a chest CT in HU that shows the body around the lungs"
        )

    z, y, x = _box(lungs, np.ceil(_MARGIN_MM / step).astype(int).tolist())
    lungs, pairs = lungs[z, y, x], pairs[z, y, x]
    low = (z.start, 2 * y.start, 2 * x.start)
    hu = np.ascontiguousarray(hu[z, low[1] : 2 * y.stop, low[2] : 2 * x.stop])
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.world_from_voxel(low)

    depth = ndimage.distance_transform_edt(np.pad(lungs, 1), sampling=step)[1:-1, 1:-1, 1:-1]
    voxels = np.argwhere(lungs)
    inside = lungs.repeat(2, 1).repeat(2, 2)
    return Background(
        hu=hu,
        geometry=Geometry(hu.shape, affine),
        lung_zyx=(voxels + 0.5) * step,
        depth_mm=depth[lungs],
        lung_hu=pairs[lungs],
        around_hu=ndimage.gaussian_filter(pairs, 5 / step, truncate=2)[lungs],
        blobs_zyx=propose_blobs(hu, spacing, inside, 600),
        blur_zyx_mm=estimate_blur(hu, inside, spacing),
        noise_growth=estimate_noise_growth(hu, inside, spacing),
    )


def draw_on_background(
    plan: ScanPlan, backgrounds: Sequence[Path], seed: int, nodules: tuple[int, int], negatives: int
) -> Scan:
    """Return one scan: its background with the plan's nodules in it; the same arguments give the same scan."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, plan.number], spawn_key=(STREAM,)))
    scene, bank = read_background(backgrounds[plan.background]), load_shape_bank()
    hu = scene.hu.copy()
    placed: list[Nodule] = []
    wanted = int(rng.integers(nodules[0], nodules[1] + 1))
    for _ in range(60 * wanted):
        if len(placed) == wanted:
            break
        shape = int(rng.choice(plan.shapes))
        radius = float(bank.diameter_mm[shape]) / 2
        spot = _position(rng, scene, radius)
        if spot is None or clearance(spot[0][None], placed)[0] <= radius + CLEARANCE_MM:
            continue
        placed.append(insert_nodule(rng, hu, scene, bank, shape, *spot))
    if not placed:
        raise ValueError("no nodule finds a place in the lungs of the background: give a CT of whole lungs")
    marks = list_candidates(rng, scene.blobs_zyx, placed, negatives)
    return finish_scan(hu, scene.geometry, placed, [], marks, flipped=rng.random() < 1 / 3)


def list_candidates(
    rng: np.random.Generator, blobs_zyx: Floats, placed: Sequence[Nodule], negatives: int
) -> list[tuple[Floats, int]]:
    """Return candidates (position mm, class) in random order: one or two a nodule, and blobs off the nodules."""
    marks = np.repeat([n.position_zyx for n in placed], np.where(rng.random(len(placed)) > 0.8, 2, 1), axis=0)
    others = rng.permutation(blobs_zyx[clearance(blobs_zyx, placed) > CLEARANCE_MM])[:negatives]
    points = jitter(rng, np.concatenate([marks, others]))
    labels = np.repeat([1, 0], [len(marks), len(others)])
    return [(points[i], int(labels[i])) for i in rng.permutation(len(points))]


def _position(rng: np.random.Generator, scene: Background, radius_mm: float) -> tuple[Floats, Location] | None:
    """Return a place for a nodule: free in the lung, on a vessel, or at the wall; None in too small a lung."""
    fate = rng.random()
    location: Location = "isolated" if fate < 0.28 else "vascular" if fate < 0.72 else "pleural"
    point = place_in_lung(rng, scene, radius_mm, location)
    return None if point is None else (point, location)


def place_in_lung(
    rng: np.random.Generator,
    scene: Background,
    radius_mm: float,
    location: Location,
    depth_mm: float | None = None,
) -> Floats | None:
    """Return a place (z, y, x) in mm where a nodule of this location lies; None where the lung has none.

    Args:
        rng: source of chance.
        scene: the CT.
        radius_mm: of the nodule.
        location: free in the lung, on a vessel, or at the wall.
        depth_mm: of the middle of a nodule at the wall; None for a random share of the radius.
    """
    if location == "isolated":
        allowed = (scene.depth_mm > radius_mm + 2) & (scene.lung_hu < -700)
    elif location == "vascular":
        allowed = (scene.depth_mm > radius_mm) & (scene.lung_hu > -500) & (scene.around_hu < -550)
    else:
        depth_mm = radius_mm * rng.uniform(0.45, 0.9) if depth_mm is None else depth_mm
        allowed = (np.abs(scene.depth_mm - depth_mm) < 1) & (scene.around_hu < -350)
    if not allowed.any():
        return None
    point = scene.lung_zyx[rng.choice(np.flatnonzero(allowed))]
    if location == "vascular":
        aside = rng.standard_normal(3)
        point = point + aside * (radius_mm * rng.uniform(0.35, 0.95) / np.linalg.norm(aside))
    size = np.array(scene.hu.shape) * scene.spacing_zyx
    return point if ((point > 6) & (point < size - 6)).all() else None


def insert_nodule(
    rng: np.random.Generator,
    hu: NDArray[np.int16],
    scene: Background,
    bank: ShapeBank,
    shape: int,
    position_zyx: Floats,
    location: Location,
) -> Nodule:
    """Add a nodule to ``hu`` in place, blurred as the scan is; the scan's noise stays, and grows with what is added."""
    look = choose_look(rng, bank, shape)
    box, share = blurred_share(scene, bank, shape, look, random_turn(rng), position_zyx)
    structure, noise = split_noise(hu[box], scene.spacing_zyx)
    increment = nodule_increment(rng, look, share, structure) * (1 + scene.noise_growth * noise)
    hu[box] = np.clip(hu[box] + np.rint(increment), -32768, 3071).astype(np.int16)
    ratings = (round(float(bank.texture[shape]), 4), round(float(bank.malignancy[shape]), 4))
    return Nodule(position_zyx, round(float(bank.diameter_mm[shape]), 6), look.kind, location, shape, *ratings)


def blurred_share(
    scene: Background, bank: ShapeBank, shape: int, look: Look, turn: Floats, position_zyx: Floats
) -> tuple[Box, Floats]:
    """Return the share of each voxel that a nodule fills, drawn on a finer grid and blurred as the scan is."""
    spacing = scene.spacing_zyx
    fold = np.ceil(spacing / BANK_SPACING_MM).astype(int)
    volume = tuple((np.array(scene.hu.shape) * fold).tolist())
    fine_box, fine = nodule_share(bank, shape, look, turn, position_zyx, volume, spacing / fold)
    # the mean over a voxel's parts is a blur as well
    done = _DRAWN_BLUR_MM**2 + spacing**2 / 12 * (1 - 1 / fold**2)
    missing_mm = np.sqrt(np.maximum(scene.blur_zyx_mm**2 - done, 0))
    box = [slice(s.start // f, -(-s.stop // f)) for s, f in zip(fine_box, fold.tolist(), strict=True)]
    ends = [(s.start - b.start * f, b.stop * f - s.stop) for s, b, f in zip(fine_box, box, fold.tolist(), strict=True)]
    fine = ndimage.gaussian_filter(np.pad(fine, ends), missing_mm / spacing * fold, mode="constant")
    parts = [n for s, f in zip(fine.shape, fold.tolist(), strict=True) for n in (s // f, f)]
    return (box[0], box[1], box[2]), fine.reshape(parts).mean((1, 3, 5))


def _box(mask: NDArray[np.bool_], margin: Sequence[int]) -> list[slice]:
    """Return the box of a mask, widened by a margin of voxels on each axis."""
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return [
        slice(max(int(span[0]) - m, 0), min(int(span[-1]) + 1 + m, n))
        for span, m, n in zip(spans, margin, mask.shape, strict=True)
    ]
