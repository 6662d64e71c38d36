"""A data set whose scans are real or drawn CTs with real nodules put into them, in LUNA16's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.opening import series_uid
from luna16_monai.machine.files import sha256
from luna16_monai.phantom.background import (
    Background,
    background_of,
    identify_backgrounds,
    list_candidates,
    place_in_lung,
    read_background,
    spread_backgrounds,
)
from luna16_monai.phantom.data_set import RECIPE, plan_scans, write_data_set
from luna16_monai.phantom.nodules import CLEARANCE_MM, Nodule, ScanSettings, clearance
from luna16_monai.phantom.scan import Scan, ScanPlan, draw_scan, finish_scan
from luna16_monai.semi_real.bank import NoduleBank, read_bank
from luna16_monai.semi_real.blend import Prepared, blend, prepare_nodule, random_turn
from luna16_monai.tables.lidc import read_patients
from luna16_monai.tables.luna16 import read_nodules

Floats = NDArray[np.floating]

KIND = "semi-real"
_STREAM = 2
_OWN_NODULES = 8
"""Real patients' nodules that a synthetic patient has, if there are enough of them."""
_TRIES = 40
_ALIGNED = 0.8
"""Cosine between the wall's direction in the CT and in the nodule's box, as turned, at least."""


@dataclass(frozen=True)
class Insertion:
    """What is put into each scan.

    Attributes:
        nodules: fewest and most nodules a scan.
        negatives: candidates of class 0 a scan, fewer where the blob detector finds less.
    """

    nodules: tuple[int, int] = (4, 8)
    negatives: int = 60

    def __post_init__(self) -> None:
        if not 1 <= self.nodules[0] <= self.nodules[1]:
            raise ValueError(f"nodules {self.nodules}: give two whole numbers, 1 or more, the smaller one first")
        if self.negatives < 0:
            raise ValueError(f"negatives {self.negatives}: give 0 or more")


def write_semi_real(
    bank: Path,
    output: Path,
    backgrounds: Sequence[Path] = (),
    scans: int = 10,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    insertion: Insertion | None = None,
    drawn: ScanSettings | None = None,
    known: Path | None = None,
) -> dict[str, Any]:
    """Write a data set in LUNA16's layout with the nodules of a bank.

    Scans of one subset share their nodules' patients, and no two subsets do. A nodule is used several times, mirrored
    and turned anew each time.

    Args:
        bank: of real nodules, see `bank.read_bank`.
        output, scans, seed, workers, progress: as `phantom.data_set.write_phantom`.
        backgrounds: real CTs, see `phantom.background.write_background_phantom`; none: into drawn lungs.
        insertion: what is put into each scan; None for the defaults.
        drawn: settings of drawn lungs; their nodules and negatives are not used.
        known: table of the nodules that the backgrounds have of their own (seriesuid, coordX, coordY, coordZ,
            diameter_mm): they are listed beside those that are put in, which keep away from them.

    Returns:
        As `phantom.data_set.write_phantom`.

    Raises:
        FileNotFoundError: no such bank or CT.
        ValueError: the bank is damaged, no lungs are found in a CT, or as `phantom.data_set.write_phantom`.
        RuntimeError: a worker process died.
    """
    insertion = insertion or Insertion()
    bank = Path(bank).resolve()
    nodules = _bank(bank)
    paths, hashes = identify_backgrounds(backgrounds)
    plans = plan_scans(scans, seed, nodules, _STREAM, _OWN_NODULES)
    plans = [replace(plan, patients=_public(plan.patients, nodules.sha256)) for plan in plans]
    plans = spread_backgrounds(plans, len(paths)) if paths else plans
    recipe = {
        "kind": KIND,
        "recipe": RECIPE,
        "bank_sha256": nodules.sha256,
        "background_sha256": hashes or "",
        "seed": seed,
        "scans": scans,
        "nodules": insertion.nodules,
        "negatives": insertion.negatives,
        **({} if known is None else {"known_sha256": sha256(known)}),
    }
    settings = drawn or ScanSettings()
    own = [[] for _ in paths] if known is None else [own_nodules(path, known) for path in paths]
    if known is not None and not any(own):
        raise ValueError(f"{known} lists no nodule in any of the {len(paths)} backgrounds: is it their table?")
    draw = partial(
        draw_semi_real, bank=bank, backgrounds=paths, seed=seed, insertion=insertion, drawn=settings, own=own
    )
    return write_data_set(output, recipe, plans, draw, workers, progress, nodules.ratings())


def draw_semi_real(
    plan: ScanPlan,
    bank: Path,
    backgrounds: Sequence[Path],
    seed: int,
    insertion: Insertion,
    drawn: ScanSettings,
    own: Sequence[Sequence[Nodule]] = (),
) -> Scan:
    """Return one scan: its background with nodules of the bank in it; the same arguments give the same scan.

    ``own`` holds the nodules that each background has of its own.

    Raises:
        ValueError: no nodule finds a place in it.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, plan.number], spawn_key=(_STREAM,)))
    nodules = _bank(bank)
    scene = read_background(backgrounds[plan.background]) if backgrounds else _drawn_lungs(plan, seed, drawn)
    hu = scene.hu.copy()
    prepared: dict[int, Prepared] = {}
    known = list(own[plan.background]) if own else []
    placed: list[Nodule] = []
    wanted = int(rng.integers(insertion.nodules[0], insertion.nodules[1] + 1))
    for _ in range(_TRIES * wanted):
        if len(placed) == wanted:
            break
        number = int(rng.choice(plan.shapes))
        if number not in prepared:
            prepared[number] = prepare_nodule(nodules.nodules[number], scene.blur_zyx_mm)
        one = prepared[number]
        found = find_place(rng, scene, one)
        radius = one.nodule.diameter_mm / 2
        if found is None or clearance(found[0][None], [*known, *placed])[0] <= radius + CLEARANCE_MM:
            continue
        position, turn = found
        blend(hu, scene, one, position, turn)
        placed.append(_as_placed(nodules, number, one, position))
    if not placed:
        raise ValueError(f"{_name(plan, backgrounds)}: no nodule of the bank finds a place in its lungs: give another")
    marks = list_candidates(rng, scene.blobs_zyx, [*known, *placed], insertion.negatives)
    return finish_scan(hu, scene.geometry, [*known, *placed], [], marks, flipped=rng.random() < 1 / 3)


def own_nodules(background: Path, table: Path) -> list[Nodule]:
    """Return the nodules that a real CT has of its own, as far as they lie in the box of its lungs.

    Raises:
        ValueError: the table is malformed.
    """
    scene, uid = read_background(background), series_uid(background)
    points = read_nodules(table)
    rows = [row for row in range(len(points)) if points.series_uids[points.series[row]] == uid]
    rows = [row for row in rows if scene.geometry.contains(points.points_xyz[row])]
    return [
        Nodule(
            (scene.geometry.voxel_from_world(points.points_xyz[row]) + 0.5) * scene.spacing_zyx,
            round(float(points.values[row]), 6),
            "own",
            "unknown",
            -1,
            None,
            None,
        )
        for row in rows
    ]


def find_place(rng: np.random.Generator, scene: Background, one: Prepared) -> tuple[Floats, Floats] | None:
    """Return a place for a nodule, (z, y, x) in mm, and how it is turned there; None where a try finds none.

    It lies as in its own CT: free, on a vessel, or as deep in the wall, the wall's side turned to the wall.
    """
    radius, contact = one.nodule.diameter_mm / 2, one.contact
    position = place_in_lung(rng, scene, radius, contact.location, contact.depth_mm or None)
    if position is None:
        return None
    outward = wall_direction(scene, position) if contact.location == "pleural" else np.zeros(3)
    turn = random_turn(rng, contact, outward)
    if contact.location == "pleural" and (turn @ outward) @ contact.outward < _ALIGNED:
        return None
    return position, turn


def wall_direction(scene: Background, position_zyx: Floats, around_mm: float = 6.0) -> Floats:
    """Return the unit vector (z, y, x) to the wall at a place in the lung: against the gradient of the depth in it."""
    offsets = scene.lung_zyx - position_zyx
    near = (np.abs(offsets) < around_mm).all(1)
    if near.sum() < 10:
        return np.zeros(3)
    system = np.c_[offsets[near], np.ones(near.sum())]
    slope = np.linalg.lstsq(system, scene.depth_mm[near], rcond=None)[0][:3]
    length = float(np.linalg.norm(slope))
    return -slope / length if length > 1e-6 else np.zeros(3)


def _public(patients: Sequence[str], salt: str) -> tuple[str, ...]:
    """Return names that may go with weights: those of LIDC-IDRI's public patients, of others a salted hash."""
    public = set(read_patients().values())
    hashes = {one: hashlib.sha256(f"{salt}{one}".encode()).hexdigest()[:16] for one in patients}
    return tuple(sorted(one if one in public else hashes[one] for one in patients))


@lru_cache(1)
def _bank(path: Path) -> NoduleBank:
    return read_bank(path)


def _drawn_lungs(plan: ScanPlan, seed: int, settings: ScanSettings) -> Background:
    """Return drawn lungs without nodules, as a real CT is taken; blobs lie nowhere in what pads it."""
    empty = draw_scan(ScanPlan(plan.number, plan.series_uid, plan.patient_id, plan.subset, ()), seed, settings)
    return background_of(empty.hu, empty.geometry, f"drawn scan {plan.number}")


def _as_placed(bank: NoduleBank, number: int, one: Prepared, position_zyx: Floats) -> Nodule:
    nodule = one.nodule
    ratings = [round(v, 4) if np.isfinite(v) else None for v in (nodule.texture, nodule.malignancy)]
    diameter = round(nodule.diameter_mm, 6)
    return Nodule(position_zyx, diameter, nodule.kind, one.contact.location, number, ratings[0], ratings[1])


def _name(plan: ScanPlan, backgrounds: Sequence[Path]) -> str:
    return backgrounds[plan.background].name if backgrounds else f"drawn scan {plan.number}"
