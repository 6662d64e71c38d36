"""What a review shows and stores: the candidates, their pictures, and the decisions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.geometry.slices import (
    LUNG_WINDOW_HU,
    NORMALS,
    PIXELS,
    SIDE_MM,
    Plane,
    as_jpeg,
    planes_of,
    slices_through,
    steps_across,
    whole_slice,
)
from luna16_monai.geometry.volume import Volume
from luna16_monai.interchange.formats import LUNA16, Conventions, format_of, read_as_table
from luna16_monai.interchange.scans import Scans
from luna16_monai.review.decisions import Decision, Decisions
from luna16_monai.store.in_memory import InMemoryStore
from luna16_monai.tables.points import Key, has_column, point_key, read_points

WINDOWS_HU = {"lung": LUNG_WINDOW_HU, "mediastinum": (-160.0, 240.0)}
SIDES_MM = (SIDE_MM, 2 * SIDE_MM, 4 * SIDE_MM, 8 * SIDE_MM)
SHARPEST = 2
"""The most by which a picture has more pixels than the report's."""
MOST_CANDIDATES = 10_000
LEAST_MM, MOST_MM = 1.0, 200.0
"""The diameters that a reviewer may give."""


class Review:
    """Candidates of one prediction, the slices through them, and what was decided.

    Args:
        predictions: what ``luna16 predict`` wrote, or any submission, in any format.
        cts: CT files, folders of DICOM files, or a data folder in LUNA16's layout.
        decisions: where to and under whose name.
        least: only candidates of at least this probability.
        ras: the predictions are RAS; decisions are LPS all the same, as training reads them.
        allow_symlinks: take CTs that are linked into place.
        may_be_empty: whether there may be no candidate at all, as where the detector found none.

    Attributes:
        candidates: by falling probability, behind them those that reviewers have added; ``number``, ``series_uid``,
            ``point_xyz``, ``probability`` (None for one that was added), ``calibrated``, ``diameter_mm``.
        planes: by series, the whole slices of each view.

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
        may_be_empty: bool = False,
    ) -> None:
        # the nodule bundle's way of reading a CT, but on the CT's own grid: what was scanned is what is judged
        self.volumes = InMemoryStore(
            cts, bundle_dir() / "configs" / "prepare.yaml", None, allow_symlinks=allow_symlinks
        )
        self.decisions = decisions
        conventions = Conventions(Scans(self.volumes.cts, self.volumes.wrong), ras)
        table, _ = read_as_table(predictions, "probability", conventions)
        self.volumes.require_inside(table)
        calibrated, diameters = (_column(predictions, name) for name in ("calibrated_probability", "diameter_mm"))
        rows = np.argsort(-table.values, kind="stable")
        rows = rows[table.values[rows] >= least]
        if not (0 if may_be_empty else 1) <= len(rows) <= MOST_CANDIDATES:
            raise ValueError(
                f"{predictions} holds {len(rows)} candidates of probability {least:g} and more: give a table with 1 "
                f"to {MOST_CANDIDATES}, or another --least"
            )
        self.candidates: list[dict[str, Any]] = []
        self.keys: list[Key] = []
        self._reading, self._adding = threading.Lock(), threading.Lock()
        for row in rows:
            diameter = None if diameters is None or not diameters[row] > 0 else float(diameters[row])
            told = (float(table.values[row]), None if calibrated is None else float(calibrated[row]), diameter)
            self._append(table.series_uids[table.series[row]], table.points_xyz[row].tolist(), *told)
        # also those that --least leaves out: a decision about one of them adds no candidate
        self._predicted = {table.row_key(row) for row in range(len(table))}
        self.planes = {uid: planes_of(ct.geometry) for uid, ct in sorted(self.volumes.cts.items())}
        self._volume(self.candidates[0]["series_uid"] if self.candidates else next(iter(self.planes)))

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

    def whole(self, series_uid: str, view: str, number: int, window: str) -> bytes:
        """One slice through a whole CT as JPEG; see ``planes``.

        Raises:
            LookupError: no such series, view or window.
            ValueError: no such slice.
            OSError: the CT is gone.
        """
        plane: Plane = self.planes[series_uid][view]
        return as_jpeg(whole_slice(self._volume(series_uid), plane, number, WINDOWS_HU[window]))

    def decided(self, now: Mapping[Key, Decision] | None = None) -> dict[str, Any]:
        """What the decisions file says of the candidates.

        Candidates that somebody has added to the file since then are taken up.

        Returns:
            ``decisions`` by number, ``decided``, their count, and ``candidates``, the count of all.
        """
        known = self.decisions.read() if now is None else now
        self._take_up(known)
        found = {number: vars(known[key]) for number, key in enumerate(self.keys) if key in known}
        return {"decisions": found, "decided": len(found), "count": len(self.keys)}

    def decide(self, number: int, label: int | None) -> dict[str, Any]:
        """Save a decision (1, 0, or None to take it back); gives what `decided` gives."""
        if number < 0:
            raise IndexError(f"candidate {number}: there is none below 0")
        diameter = self.candidates[number]["diameter_mm"]
        return self.decided(self.decisions.decide(self.keys[number], label, diameter))

    def add(self, series_uid: str, point_xyz: Sequence[float], diameter_mm: float) -> dict[str, Any]:
        """Save a candidate that the predictions lack, as a nodule; gives what `decided` gives.

        Args:
            series_uid: of its CT.
            point_xyz: (3,) world LPS mm.
            diameter_mm: of the nodule.

        Raises:
            LookupError: no such series.
            ValueError: the point lies outside the CT, the diameter is out of range, or there are too many candidates.
        """
        scan = self.volumes.cts[series_uid].geometry
        if len(point_xyz) != 3 or not scan.contains(point_xyz):
            raise ValueError(f"point {list(point_xyz)} mm lies outside series {series_uid}: choose one inside")
        if not LEAST_MM <= diameter_mm <= MOST_MM:
            raise ValueError(f"diameter {diameter_mm:g} mm: give one from {LEAST_MM:g} to {MOST_MM:g} mm")
        if len(self.keys) >= MOST_CANDIDATES:
            raise ValueError(f"there are {MOST_CANDIDATES} candidates already: start a table of its own")
        return self.decided(self.decisions.decide(point_key(series_uid, point_xyz), 1, diameter_mm))

    def _take_up(self, known: Mapping[Key, Decision]) -> None:
        """Append the candidates that the decisions file has and the predictions lack: accepted ones with a diameter."""
        with self._adding:
            there = self._predicted.union(self.keys)
            for key, decision in known.items():
                if key in there or key[0] not in self.planes or decision.diameter_mm is None or not decision.label:
                    continue
                point = [float(value) for value in key[1:]]
                if self.volumes.cts[key[0]].geometry.contains(point):
                    self._append(key[0], point, None, None, decision.diameter_mm)

    def _append(
        self,
        series_uid: str,
        point_xyz: list[float],
        probability: float | None,
        calibrated: float | None,
        diameter_mm: float | None,
    ) -> None:
        one = {
            "number": len(self.candidates),
            "series_uid": series_uid,
            "point_xyz": point_xyz,
            "probability": probability,
            "calibrated": calibrated,
            "diameter_mm": diameter_mm,
        }
        self.candidates.append(one)
        self.keys.append(point_key(series_uid, point_xyz))

    def _volume(self, uid: str) -> Volume:
        with self._reading:
            return self.volumes.volume(uid)


def _column(predictions: Path, name: str) -> NDArray[np.float64] | None:
    """A further column of predictions; None where they have none."""
    there = format_of(predictions) == LUNA16 and has_column(predictions, name)
    return read_points(predictions, name).values if there else None
