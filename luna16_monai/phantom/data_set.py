"""The embedded synthetic data set, in LUNA16's own layout, so that everything runs before anything is downloaded.

This module plans the set, writes it and takes an interrupted one up where it stopped; ``luna16_monai.phantom.scan``
draws one scan. A scan depends on the seed and its own number alone: any number of worker processes writes the same
data set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from luna16_monai.ct.folders import SUBSETS, subset_folder
from luna16_monai.ct.metaimage import write_mhd
from luna16_monai.machine.claims import claim, require_same
from luna16_monai.machine.files import write_csv, write_json
from luna16_monai.machine.processes import run_tasks
from luna16_monai.phantom.drawn import DRAWN, Drawn, write_drawn
from luna16_monai.phantom.lesions import load_shape_bank
from luna16_monai.phantom.nodules import ScanSettings
from luna16_monai.phantom.scan import Scan, ScanFindings, ScanPlan, draw_scan
from luna16_monai.tables.lidc import PATIENT_COLUMNS, READINGS, shape_ratings, write_readings
from luna16_monai.tables.points import write_points

RECIPE = 2
"""Version of what a seed gives; raised with any change of the voxels or tables."""
_MANIFEST = "phantom.json"
_UNFINISHED = ".unfinished"


def write_phantom(
    output: Path,
    scans: int = 60,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    settings: ScanSettings | None = None,
) -> dict[str, Any]:
    """Write the synthetic data set in LUNA16's layout.

    Beside LUNA16's own files stand ``patients.csv`` (seriesuid, patient_id), ``nodules.csv`` (each nodule's kind,
    location, number in the bank of shapes, and its ratings of texture and malignancy), ``nodule_readings.csv`` (what
    each reader of the real nodule with this shape said of its malignancy), ``drawn.json`` (what each scan is
    drawn from) and ``phantom.json``.

    Args:
        output: the folder; made if need be. What an interrupted call left there is taken up.
        scans: how many.
        seed: the same seed gives the same tables everywhere, and the same voxels within 1 HU.
        workers: processes; None for one a core.
        progress: show a bar on standard error, if that is a terminal.
        settings: what a scan holds; None for the defaults.

    Returns:
        ``output``, ``scans``, ``nodules``, ``excluded``, ``candidates``, ``positives`` and ``cached``: whether the
        set was complete already.

    Raises:
        ValueError: the folder holds another data set, or a number is out of range.
        RuntimeError: a worker process died.
    """
    settings = settings or ScanSettings()
    plans = plan_scans(scans, seed, load_shape_bank())
    recipe = {"kind": "synthetic", "recipe": RECIPE, "seed": seed, "scans": scans, **asdict(settings)}
    return write_data_set(output, recipe, plans, partial(draw_scan, seed=seed, settings=settings), workers, progress)


class Donors(Protocol):
    """A bank of nodules: whose each one is, (n,)."""

    @property
    def patient(self) -> NDArray[np.str_]:
        """The patient of each nodule."""
        ...


def plan_scans(scans: int, seed: int, bank: Donors, stream: int = 0, fewest: int = 1) -> list[ScanPlan]:
    """Name the scans, spread them over subsets, and deal the real patients' nodules out to them.

    No real patient's nodules go to two synthetic patients. Where there are more scans than real patients, scans share a
    synthetic patient, and with it one subset. Another ``stream`` gives other names to the same seed; sets of two seeds
    or streams share no patient, so that they can be trained on together. Scans share a synthetic patient too where each
    would own less than ``fewest`` real ones, as long as there is one in each subset.

    Raises:
        ValueError: less than one scan, or a negative seed.
    """
    if scans < 1:
        raise ValueError(f"scans {scans}: give 1 or more")
    if seed < 0:
        raise ValueError(f"seed {seed}: give 0 or more")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
    donors = rng.permutation(np.unique(bank.patient))
    patients = min(scans, max(len(donors) // fewest, min(len(donors), len(SUBSETS))))
    owner = {donor: i % patients for i, donor in enumerate(donors.tolist())}
    owner_of_shape = np.array([owner[donor] for donor in bank.patient.tolist()])
    names = rng.permutation(patients)
    # patients 0, 1, ... have the one scan more, if any: dealt out in that order, subsets differ by one or two scans
    return [
        ScanPlan(
            number=number,
            series_uid=f"2.25.{int.from_bytes(rng.bytes(16), 'big')}",
            patient_id=f"PHANTOM-{stream}-{seed}-{names[number % patients]:04d}",
            subset=number % patients % len(SUBSETS),
            shapes=tuple(np.flatnonzero(owner_of_shape == number % patients).tolist()),
            patients=tuple(sorted(donor for donor, i in owner.items() if i == number % patients)),
        )
        for number in range(scans)
    ]


def write_data_set(
    output: Path,
    recipe: dict[str, Any],
    plans: Sequence[ScanPlan],
    draw: Callable[[ScanPlan], Scan],
    workers: int | None,
    progress: bool,
    ratings: Mapping[int, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Draw and write the planned scans, then the tables, then the manifest that marks the set as complete.

    A finished scan leaves its findings in a hidden folder; a later call with the same recipe draws only what is
    missing. Arguments, result and errors as in `write_phantom`; ``draw`` is called in other processes. ``ratings`` are
    what readers said of each nodule's malignancy, by its number in the bank; None for the bank of shapes.
    """
    output = Path(output)
    recipe = json.loads(json.dumps(recipe))
    if (summary := _finished(output, recipe, plans)) is not None:
        if not (output / DRAWN).is_file():
            # a set of before this table; what it says needs no drawing
            write_drawn(output, drawn_from(recipe, plans))
        return {"output": str(output), **summary, "cached": True}
    unfinished = output / _UNFINISHED
    # a folder with a manifest is a phantom's, whatever else it holds
    foreign = () if (output / _MANIFEST).is_file() else _REAL
    claim(unfinished / "recipe.json", recipe, "unfinished phantom", _ANOTHER, output, foreign)
    findings = {plan.series_uid: f for plan in plans if (f := _read_findings(output, plan)) is not None}
    pending = [plan for plan in plans if plan.series_uid not in findings]
    work = run_tasks(partial(_write_scan, output=output, draw=draw), pending, workers)
    bar = tqdm(
        work, "phantom", total=len(plans), initial=len(findings), unit="scan", disable=None if progress else True
    )
    findings.update(bar)
    summary = _write_tables(output, plans, findings, shape_ratings() if ratings is None else ratings)
    write_drawn(output, drawn_from(recipe, plans))
    for left_by_a_killed_writer in output.glob("subset?/.*.tmp"):
        left_by_a_killed_writer.unlink(missing_ok=True)
    write_json(output / _MANIFEST, {**recipe, "summary": summary})
    shutil.rmtree(unfinished)
    return {"output": str(output), **summary, "cached": False}


def drawn_from(recipe: Mapping[str, Any], plans: Sequence[ScanPlan]) -> dict[str, Drawn]:
    """Return what each planned scan is drawn from, by series."""
    hashes = recipe.get("background_sha256", "")
    return {
        plan.series_uid: Drawn(
            kind=recipe["kind"],
            recipe=recipe["recipe"],
            seed=recipe["seed"],
            number=plan.number,
            background=hashes if isinstance(hashes, str) else hashes[plan.background],
            patients=plan.patients,
        )
        for plan in plans
    }


def _write_scan(plan: ScanPlan, output: Path, draw: Callable[[ScanPlan], Scan]) -> tuple[str, ScanFindings]:
    scan = draw(plan)
    header = _header_path(output, plan)
    write_mhd(header, scan.hu, scan.geometry)
    write_json(_findings_path(output, plan), {"bytes": scan.hu.nbytes, **asdict(scan.findings)})
    return plan.series_uid, scan.findings


def _finished(output: Path, recipe: dict[str, Any], plans: Sequence[ScanPlan]) -> dict[str, Any] | None:
    """Return the summary of a complete data set of this recipe; None where there is none."""
    manifest = output / _MANIFEST
    if not manifest.is_file():
        return None
    found = json.loads(manifest.read_text("utf-8"))
    summary = found.pop("summary", None)
    require_same(output, "phantom", found, recipe, _ANOTHER)
    tables = all((output / table).is_file() for table in _TABLES)
    volumes = all(h.is_file() and h.with_suffix(".raw").is_file() for h in (_header_path(output, p) for p in plans))
    return summary if tables and volumes else None


_TABLES = (
    "annotations.csv",
    "annotations_excluded.csv",
    "candidates_V2.csv",
    "seriesuids.csv",
    "patients.csv",
    "nodules.csv",
    READINGS,
)
_ANOTHER = "remove the folder, or choose another one"
_REAL = ("*.csv", "subset*", "*.zip", "*.mhd")
"""Names in a folder with the real data set, which is not to be mixed with a phantom."""


def _header_path(output: Path, plan: ScanPlan) -> Path:
    return output / subset_folder(plan.subset) / f"{plan.series_uid}.mhd"


def _findings_path(output: Path, plan: ScanPlan) -> Path:
    return output / _UNFINISHED / f"{plan.series_uid}.json"


def _read_findings(output: Path, plan: ScanPlan) -> ScanFindings | None:
    """Return what an earlier call found out about a scan, if it is written."""
    path, header = _findings_path(output, plan), _header_path(output, plan)
    raw = header.with_suffix(".raw")
    if not (path.is_file() and header.is_file() and raw.is_file()):
        return None
    content = json.loads(path.read_text("utf-8"))
    return ScanFindings(**content) if content.pop("bytes") == raw.stat().st_size else None


def _write_tables(
    output: Path, plans: Sequence[ScanPlan], findings: dict[str, ScanFindings], ratings: Mapping[int, Sequence[int]]
) -> dict[str, int]:
    """Write the tables of the whole set, series by series in the order of their identifiers; returns what they hold."""
    by_uid = sorted(plans, key=lambda plan: plan.series_uid)
    uids = [plan.series_uid for plan in by_uid]

    def rows(part: str) -> tuple[list[str], list[list[Any]]]:
        pairs = [(uid, row) for uid in uids for row in getattr(findings[uid], part)]
        return [uid for uid, _ in pairs], [row for _, row in pairs]

    def table(name: str, part: str, value: str, *more: str) -> list[list[Any]]:
        series, values = rows(part)
        columns = {column: [row[4 + i] for row in values] for i, column in enumerate(more)}
        write_points(output / name, series, [row[:3] for row in values], [row[3] for row in values], value, **columns)
        return values

    nodules = table("annotations.csv", "nodules", "diameter_mm")
    table("nodules.csv", "nodules", "diameter_mm", "kind", "location", "shape", "texture", "malignancy")
    rated = [(uid, row) for uid, row in zip(rows("nodules")[0], nodules, strict=True) if ratings.get(row[6])]
    write_readings(
        output / READINGS,
        [uid for uid, _ in rated],
        [row[2] for _, row in rated],
        [row[3] for _, row in rated],
        [ratings[row[6]] for _, row in rated],
    )
    excluded = table("annotations_excluded.csv", "excluded", "diameter_mm")
    candidates = table("candidates_V2.csv", "candidates", "class")
    write_csv(output / "seriesuids.csv", None, ([uid] for uid in uids))
    write_csv(output / "patients.csv", PATIENT_COLUMNS, ([one.series_uid, one.patient_id] for one in by_uid))
    return {
        "scans": len(plans),
        "nodules": len(nodules),
        "excluded": len(excluded),
        "candidates": len(candidates),
        "positives": sum(row[3] for row in candidates),
    }
