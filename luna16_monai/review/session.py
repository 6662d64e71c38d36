"""What a review shows and stores: the candidates, their pictures, and the decisions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.geometry.slices import LUNG_WINDOW_HU, NORMALS, PIXELS, SIDE_MM, as_jpeg, slices_through, steps_across
from luna16_monai.geometry.volume import Volume
from luna16_monai.review.decisions import Decision, Decisions
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import Key, from_ras, has_column, point_key, read_points

WINDOWS_HU = {"lung": LUNG_WINDOW_HU, "soft tissue": (-160.0, 240.0)}
SIDES_MM = (SIDE_MM, 2 * SIDE_MM, 4 * SIDE_MM, 8 * SIDE_MM)
SHARPEST = 2
"""The most by which a picture has more pixels than the report's."""
MOST_CANDIDATES = 10_000


class Review:
    """Candidates of one prediction, the slices through them, and what was decided.

    Args:
        predictions: the table that ``luna16 predict`` wrote, or any submission.
        cts: CT files, folders of DICOM files, or a data folder in LUNA16's layout.
        decisions: where to and under whose name.
        least: only candidates of at least this probability.
        ras: the predictions are RAS; decisions are LPS all the same, as training reads them.
        allow_symlinks: take CTs that are linked into place.

    Attributes:
        candidates: by falling probability; ``number``, ``series_uid``, ``point_xyz``, ``probability``,
            ``calibrated``.

    Raises:
        FileNotFoundError: no such CT.
        ValueError: the predictions belong to other CTs, a table is damaged, or there is nothing (or far too much) to
            show.
    """

    def __init__(
        self,
        predictions: Path,
        cts: Sequence[Path],
        decisions: Decisions,
        least: float = 0.0,
        ras: bool = False,
        allow_symlinks: bool = False,
    ) -> None:
        # the nodule bundle's way of reading a CT, but on the CT's own grid: what was scanned is what is judged
        self.volumes = InMemoryStore(
            cts, bundle_dir() / "configs" / "prepare.yaml", None, allow_symlinks=allow_symlinks
        )
        self.decisions = decisions
        table = read_points(predictions, "probability")
        table = from_ras(table) if ras else table
        self.volumes.require_inside(table)
        calibrated = (
            read_points(predictions, "calibrated_probability").values
            if has_column(predictions, "calibrated_probability")
            else None
        )
        rows = np.argsort(-table.values, kind="stable")
        rows = rows[table.values[rows] >= least]
        if not 0 < len(rows) <= MOST_CANDIDATES:
            raise ValueError(
                f"{predictions} holds {len(rows)} candidates of probability {least:g} and more: give a table with 1 "
                f"to {MOST_CANDIDATES}, or another --least"
            )
        self.candidates: list[dict[str, Any]] = [
            {
                "number": number,
                "series_uid": table.series_uids[table.series[row]],
                "point_xyz": table.points_xyz[row].tolist(),
                "probability": float(table.values[row]),
                "calibrated": None if calibrated is None else float(calibrated[row]),
            }
            for number, row in enumerate(rows)
        ]
        self.keys = [point_key(one["series_uid"], one["point_xyz"]) for one in self.candidates]
        self._reading = threading.Lock()
        self._volume(self.candidates[0]["series_uid"])

    def picture(self, number: int, view: str, step: int, side_mm: float, window: str) -> tuple[bytes, dict[str, Any]]:
        """One slice as JPEG, so many steps across the view from the candidate, and how far one can scroll.

        Raises:
            LookupError: no such candidate, view or window.
            ValueError: the step leads out of the scan.
            OSError: the CT is gone.
        """
        if number < 0:
            raise IndexError(f"candidate {number}: there is none below 0")
        candidate = self.candidates[number]
        scan = self.volumes.cts[candidate["series_uid"]].geometry
        step_mm, low, high = steps_across(scan, candidate["point_xyz"], view)
        if not low <= step <= high:
            raise ValueError(f"step {step} leads out of the scan: choose one from {low} to {high}")
        point = np.array(candidate["point_xyz"]) + step * step_mm * np.array(NORMALS[view])
        # a wide picture with the pixels of a small one would hide what lies between them
        pixels = round(PIXELS * min(side_mm / SIDE_MM, SHARPEST)) | 1
        volume = self._volume(candidate["series_uid"])
        cut = slices_through(volume, point, side_mm, pixels, WINDOWS_HU[window], [view])
        return as_jpeg(cut[view]), {"step_mm": step_mm, "low": low, "high": high}

    def decided(self, now: Mapping[Key, Decision] | None = None) -> dict[str, Any]:
        """What the decisions file says of the candidates: ``decisions`` by number, ``decided``, their count."""
        known = self.decisions.read() if now is None else now
        found = {number: vars(known[key]) for number, key in enumerate(self.keys) if key in known}
        return {"decisions": found, "decided": len(found)}

    def decide(self, number: int, label: int | None) -> dict[str, Any]:
        """Save a decision (1, 0, or None to take it back); gives what `decided` gives."""
        if number < 0:
            raise IndexError(f"candidate {number}: there is none below 0")
        return self.decided(self.decisions.decide(self.keys[number], label))

    def _volume(self, uid: str) -> Volume:
        with self._reading:
            return self.volumes.volume(uid)
