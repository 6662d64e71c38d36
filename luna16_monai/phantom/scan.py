"""One synthetic scan, from its plan to voxels and tables: chest, nodules and mimics, scanner, candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.anatomy import draw_chest
from luna16_monai.phantom.candidates import choose_candidates
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.phantom.mimics import place_mimics
from luna16_monai.phantom.nodules import Nodule, ScanSettings, place_nodules
from luna16_monai.phantom.scanner import drawn_per_slice, scan_chest

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ScanPlan:
    """One scan before it is drawn: its names, its place, and the shapes of nodules that are its own.

    Attributes:
        number: in the data set; with the seed it fixes the anatomy.
        shapes: numbers in a bank of nodules; none for a scan without nodules.
        patients: real patients whose nodules these are, sorted.
        background: number of the real CT that the nodules are put into.
    """

    number: int
    series_uid: str
    patient_id: str
    subset: int
    shapes: tuple[int, ...]
    patients: tuple[str, ...] = ()
    background: int = 0


@dataclass(frozen=True)
class ScanFindings:
    """What is known about a scan, world LPS in mm, as plain values that go to JSON and back.

    Attributes:
        nodules: (x, y, z, diameter, kind, location, shape, texture, malignancy).
        excluded: (x, y, z, diameter or -1): findings that count neither way.
        candidates: (x, y, z, class).
    """

    nodules: list[list[Any]]
    excluded: list[list[float]]
    candidates: list[list[float]]


@dataclass(frozen=True)
class Scan:
    """A scan as it is stored: int16 HU in (z, y, x), where it lies, and what is in it."""

    hu: NDArray[np.int16]
    geometry: Geometry
    findings: ScanFindings


def draw_scan(plan: ScanPlan, seed: int, settings: ScanSettings) -> Scan:
    """Draw one scan; the same plan, seed and settings give the same scan. A plan without shapes has no nodules."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, plan.number]))
    bank = load_shape_bank()
    in_plane = round(rng.uniform(0.6, 0.8), 6)
    between = float(rng.choice([1.0, 1.25, 1.8, 2.0, 2.5], p=[0.15, 0.35, 0.1, 0.05, 0.35]))
    spacing = np.array([between, in_plane, in_plane])
    shape = (int(rng.integers(settings.slices[0], settings.slices[1] + 1)), settings.rows, settings.rows)
    per_slice = drawn_per_slice(between)
    chest = draw_chest(rng, (shape[0] * per_slice, *shape[1:]), spacing / [per_slice, 1, 1])
    wanted = int(rng.integers(settings.nodules[0], settings.nodules[1] + 1))
    nodules = place_nodules(rng, chest, bank, plan.shapes, wanted, settings.likeness) if plan.shapes else []
    mimics, excluded = place_mimics(rng, chest, nodules, settings)
    clean, noisy = scan_chest(rng, chest, per_slice)
    hu = np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
    pad_outside_view(rng, hu)
    marks = choose_candidates(rng, chest, clean, nodules, mimics, excluded, settings)

    geometry = random_geometry(rng, shape, spacing)
    return finish_scan(hu, geometry, nodules, excluded, marks, flipped=rng.random() < 1 / 3)


def finish_scan(
    hu: NDArray[np.int16],
    geometry: Geometry,
    nodules: Sequence[Nodule],
    excluded: Sequence[tuple[Floats, float]],
    marks: Sequence[tuple[Floats, int]],
    flipped: bool,
) -> Scan:
    """Give the findings of a scan their world coordinates, and store it turned by half a circle if it is flipped.

    Args:
        hu, geometry: the scan as drawn.
        nodules, excluded, marks: what is in it, at mm in (z, y, x) from the volume's corner. A mark beyond the
            outermost voxels' centres, as where a scan shows a part of the lungs alone, is moved onto them.
        flipped: whether rows and columns are stored backwards; no point of the world moves.
    """

    def world(points_zyx: list[Floats]) -> list[list[float]]:
        index = np.reshape(points_zyx, (-1, 3)) / geometry.spacing_zyx - 0.5
        return geometry.world_from_voxel(index).round(6).tolist()

    half = np.array(geometry.spacing_zyx) / 2
    places = [np.clip(p, half, np.array(hu.shape) * geometry.spacing_zyx - half) for p, _ in marks]
    findings = ScanFindings(
        nodules=[
            [*point, n.diameter_mm, n.kind, n.location, n.shape, n.texture, n.malignancy]
            for point, n in zip(world([n.position_zyx for n in nodules]), nodules, strict=True)
        ],
        excluded=[[*p, d] for p, (_, d) in zip(world([p for p, _ in excluded]), excluded, strict=True)],
        candidates=[[*p, label] for p, (_, label) in zip(world(places), marks, strict=True)],
    )
    if flipped:
        backwards = np.diag([1.0, -1.0, -1.0, 1.0])
        backwards[1:3, 3] = np.array(hu.shape[1:]) - 1
        geometry = Geometry(geometry.shape_zyx, geometry.affine @ backwards)
        hu = np.ascontiguousarray(hu[:, ::-1, ::-1])
    return Scan(hu, geometry, findings)


def random_geometry(rng: np.random.Generator, shape_zyx: tuple[int, int, int], spacing_zyx: Floats) -> Geometry:
    """Return a random origin, with six decimals as in LUNA16's headers, and the direction of identity."""
    z, y, x = shape_zyx
    origin = np.array([rng.uniform(-180, 40), rng.uniform(-200, -120), rng.uniform(-340, -150)]).round(6)
    return Geometry.from_axes((x, y, z), spacing_zyx[::-1], origin, np.eye(3))


def pad_outside_view(rng: np.random.Generator, hu: NDArray[np.int16], always: bool = False) -> None:
    """In three of ten scans, or always, fill what lies outside the round field of view with a scanner's padding."""
    padding = rng.choice([-2000, -3024])
    if always or rng.random() < 0.3:
        y, x = (np.arange(n) + 0.5 - n / 2 for n in hu.shape[1:])
        hu[:, np.hypot(y[:, None], x) > 0.505 * hu.shape[1]] = padding
