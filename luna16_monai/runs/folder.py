"""A run folder: the names of its files, and what they hold, as records.

Nothing else knows these names. Keys of JSON and columns of CSV are those of the files; ``runs.results`` writes and
reads the tables of candidates and nodules.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.bundle.moved import recorded_network
from luna16_monai.evaluation.calibration import Calibration
from luna16_monai.machine.files import write_csv, write_json
from luna16_monai.tables.points import PointTable, read_points, write_points
from luna16_monai.tables.text import open_table

FloatArray = NDArray[np.float64]

EPOCH_COLUMNS = ("epoch", "split")


@dataclass(frozen=True, eq=False)
class Metrics(Mapping[str, Any]):
    """The content of ``metrics.json``, by its keys, with attributes for what other modules read.

    Attributes:
        content: the object of JSON.
    """

    content: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    @property
    def epoch(self) -> int:
        """The epoch whose weights were scored."""
        return int(self.content["epoch"])

    @property
    def key_metric(self) -> str:
        """The name of the score that chose the epoch."""
        return str(self.content["key_metric"])

    @property
    def key_score(self) -> float:
        """That score."""
        return float(self.content[self.key_metric])

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """The lines that were fitted, by their kind: ``platt``, ``temperature``; none where there was too little."""
        fitted = self.content.get("calibration") or {}
        lines = {kind: fitted[kind] for kind in ("platt", "temperature") if kind in fitted}
        return {kind: Calibration(float(line["slope"]), float(line["offset"])) for kind, line in lines.items()}

    @property
    def calibration_skipped(self) -> str | None:
        """Why nothing was fitted; None where it was."""
        fitted = self.content.get("calibration") or {}
        return fitted.get("skipped")

    @property
    def operating_points(self) -> dict[str, float]:
        """The thresholds that were chosen, by their name."""
        points = self.content.get("thresholds") or {}
        return {name: one["threshold"] for name, one in points.items() if isinstance(one, Mapping)}


@dataclass(frozen=True)
class Epoch:
    """A row of ``history.csv``.

    Attributes:
        epoch: from 1.
        split: ``train`` or ``validation``.
        scores: by their name, the learning rate among them; without those that are not finite.
    """

    epoch: int
    split: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DataRecord:
    """What a run was trained on, in ``run.json``.

    Attributes:
        name: of the data folder; of several, their names with commas between them.
        kind: ``real``, or a drawn set's; of several, each that occurs.
        train, validation: sizes: ``series``, ``candidates`` and ``positives``; None in a record of several runs.
        train_series, validation_series, test_series: the series of each split; None in a record of several runs.
        candidates_sha256: of both parts' candidates, see ``CandidateList.digest``; None of several runs, or older ones.
        data_sets: of several data sets, by name, the ``kind`` and the sizes in ``train`` and ``validation``, else None.
    """

    name: str
    kind: str
    train: Mapping[str, int] | None = None
    validation: Mapping[str, int] | None = None
    train_series: tuple[str, ...] | None = None
    validation_series: tuple[str, ...] | None = None
    test_series: tuple[str, ...] | None = None
    candidates_sha256: Mapping[str, str] | None = None
    data_sets: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def sizes(self) -> dict[str, Mapping[str, int]]:
        """The sizes of training and validation, where they are told."""
        both = {"train": self.train, "validation": self.validation}
        return {name: sizes for name, sizes in both.items() if sizes is not None}


@dataclass(frozen=True)
class RunRecord:
    """The content of ``run.json``.

    Attributes:
        settings: of the run.
        versions: of the packages.
        device: that it ran on.
        threads, processes: how many.
        parameters: of the network.
        data: what it was trained on.
        seen_series: all series that its weights have seen: its own training series and, as far as their identifiers
            are known, those of its first weights, of the weights before them, and so on.
        network_def: the arguments of ``NoduleNet``; None of another network.
        bf16_blocks: whether each block of the network was trained in bfloat16 on a CPU; empty where that was not asked
            for.
        keeps_memory: whether the C library kept freed memory; None in an older record.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    threads: int
    processes: int
    parameters: int
    data: DataRecord
    seen_series: tuple[str, ...] = ()
    network_def: Mapping[str, Any] | None = None
    bf16_blocks: tuple[bool, ...] = ()
    keeps_memory: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file; what is not known is left out."""
        content = asdict(self)
        content["data"] = {key: value for key, value in content["data"].items() if value is not None}
        if not self.seen_series:
            del content["seen_series"]
        for name in ("network_def", "bf16_blocks", "keeps_memory"):
            if content[name] in (None, ()):
                del content[name]
        return content

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> RunRecord:
        """Return the record that a file's content holds; an older one, without ``seen_series``, has its own alone.

        Raises:
            LookupError, TypeError: it holds none.
        """
        data = dict(content["data"])
        for name in ("train_series", "validation_series", "test_series"):
            data[name] = tuple(data[name]) if name in data else None
        return cls(
            settings=content.get("settings", {}),
            versions=content.get("versions", {}),
            device=content.get("device", "unknown"),
            threads=content.get("threads", 1),
            processes=content.get("processes", 1),
            parameters=content.get("parameters", 0),
            data=DataRecord(**{"name": "unknown", "kind": "unknown", **data}),
            seen_series=tuple(content.get("seen_series", data["train_series"] or ())),
            network_def=content.get("network_def"),
            bf16_blocks=tuple(map(bool, content.get("bf16_blocks", ()))),
            keeps_memory=content.get("keeps_memory"),
        )


@dataclass(frozen=True, eq=False)
class RatedNodules:
    """The numbers of ``rated_nodules.csv``: nodules that readers rated, and how the networks scored them.

    Attributes:
        columns: (n,) each, by the table's columns.
    """

    columns: Mapping[str, FloatArray]

    @property
    def label(self) -> NDArray[np.int64]:
        """(n,) 1 for malignant."""
        return self.columns["label"].astype(np.int64)

    @property
    def malignancy(self) -> FloatArray:
        """(n,) raw probability of the network."""
        return self.columns["malignancy"]

    @property
    def calibrated(self) -> FloatArray | None:
        """(n,) calibrated probability; None where there is none."""
        return self.columns.get("calibrated_malignancy")


class RunFolder:
    """The output folder of a training or of a scoring.

    Args:
        path: the folder; nothing has to be there.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.weights = self.path / "model.pt"
        self.metrics_file = self.path / "metrics.json"
        self.calibration_file = self.path / "calibration.json"
        self.record_file = self.path / "run.json"
        self.history_file = self.path / "history.csv"
        self.submission_file = self.path / "submission.csv"
        self.candidates_file = self.path / "candidates.csv"
        self.nodules_file = self.path / "nodules.csv"
        self.series_file = self.path / "seriesuids.csv"
        self.rated_nodules_file = self.path / "rated_nodules.csv"
        self.report_file = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """The files that a tracking server is sent at the end of a run."""
        return self.weights, self.metrics_file, self.submission_file, self.history_file, self.record_file

    def read_metrics(self) -> Metrics:
        """Return the scores.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged.
        """
        try:
            return Metrics(dict(json.loads(self.metrics_file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.metrics_file} is damaged ({error}): evaluate the run again") from error

    def write_metrics(self, content: Mapping[str, Any]) -> Metrics:
        """Write the scores and return them as written: numbers that are not finite are null."""
        metrics = Metrics(_finite(content))
        write_json(self.metrics_file, metrics.content)
        return metrics

    def calibration(self) -> Calibration | None:
        """Return the calibration that belongs to the weights; None where the folder does not hold any.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.metrics_file.is_file():
            return None
        try:
            return self.read_metrics().calibrations.get("platt")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.metrics_file} holds no calibration that can be read: remove it, or train anew"
            ) from error

    def read_record(self) -> RunRecord | None:
        """Return the run's record; None where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.record_file.is_file():
            return None
        try:
            return RunRecord.parse(json.loads(self.record_file.read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.record_file} does not tell what the run was trained on ({error}): train it anew, or evaluate "
                "its model.pt by --init_weights with a run_dir that has no run.json"
            ) from error

    def read_network(self) -> dict[str, Any]:
        """Return what the run records of its network; nothing without a record.

        Returns:
            ``network_def``, the arguments of ``NoduleNet``, without the norms, which ``model.pt`` holds folded; and
            ``shape_zyx`` and ``spacing_zyx`` of the cutouts. Empty for a run that recorded no network.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            record = self.read_record()
            if record is None:
                return {}
            if record.network_def is None:
                return recorded_network(record.settings)
            arguments = dict(record.network_def)
            if arguments["norm"] == "BATCH":
                arguments |= {"norm": None, "bias": True}
            spacing = record.settings.get("spacing_zyx")
            return {"network_def": arguments, "shape_zyx": arguments["spatial_shape_zyx"], "spacing_zyx": spacing}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.record_file} does not say which network its weights belong to: train it anew"
            ) from error

    def write_record(self, record: RunRecord) -> None:
        """Write the run's record."""
        write_json(self.record_file, record.as_json())

    def seen_series(self) -> tuple[str, ...]:
        """Return the series that the run and the weights before it were trained on; none without a record.

        Raises:
            ValueError: the record is damaged.
        """
        record = self.read_record()
        return () if record is None else record.seen_series

    def read_history(self) -> list[Epoch]:
        """Return the scores of each epoch and split; none where there is no history."""
        if not self.history_file.is_file():
            return []
        with open_table(self.history_file) as stream:
            rows = list(csv.DictReader(stream))
        return [
            Epoch(
                int(row["epoch"]),
                row["split"],
                {name: float(text) for name, text in row.items() if name not in EPOCH_COLUMNS and text},
            )
            for row in rows
        ]

    def write_history(self, epochs: Sequence[Epoch]) -> None:
        """Write the scores of each epoch and split, in this order."""
        names = list(dict.fromkeys(name for one in epochs for name in one.scores))
        rows = ([one.epoch, one.split, *(one.scores.get(name, "") for name in names)] for one in epochs)
        write_csv(self.history_file, [*EPOCH_COLUMNS, *names], rows)

    def read_submission(self) -> PointTable:
        """Return the raw probability of each candidate.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the table is damaged.
        """
        return read_points(self.submission_file, "probability")

    def write_submission(self, marks: PointTable, probability: FloatArray, calibrated: FloatArray | None) -> None:
        """Write the probability of each candidate, raw and, where known, calibrated."""
        more = {} if calibrated is None else {"calibrated_probability": calibrated}
        write_points(self.submission_file, marks.row_series(), marks.points_xyz, probability, "probability", **more)

    def read_rated_nodules(self) -> RatedNodules | None:
        """Return the numbers of the nodules that readers rated; None where there is no such table.

        Raises:
            ValueError: the table is damaged.
        """
        if not self.rated_nodules_file.is_file():
            return None
        with open_table(self.rated_nodules_file) as stream:
            header, *rows = csv.reader(stream)
        try:
            columns = [np.array(column, np.float64) for column in zip(*(row[1:] for row in rows), strict=True)]
            return RatedNodules(dict(zip(header[1:], columns, strict=True)))
        except ValueError as error:
            raise ValueError(f"{self.rated_nodules_file} is damaged ({error}): evaluate the run again") from error

    def write_rated_nodules(self, nodules: PointTable, **columns: Any) -> None:
        """Write the nodules that readers rated, with their diameters, and further columns, (n,) each."""
        uids = nodules.row_series()
        write_points(self.rated_nodules_file, uids, nodules.points_xyz, nodules.values, "diameter_mm", **columns)


def _finite(value: Any) -> Any:
    """Return the same content with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
