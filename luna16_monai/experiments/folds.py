"""The plan of a cross-validation: which scans train, choose and score in each fold, and the audit for leakage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luna16_monai.bundle.bases import base_digests
from luna16_monai.bundle.command import command
from luna16_monai.ct.folders import SUBSETS
from luna16_monai.machine.claims import digests
from luna16_monai.machine.folder_lists import Folders, absolute, as_text, folder_list
from luna16_monai.machine.jobs import Job
from luna16_monai.runs.folder import DataRecord, RunFolder
from luna16_monai.runs.results import read_results
from luna16_monai.tables.lidc import Patients

INNER_STRIDE = 10
"""Of the nine subsets every so many series is held out to choose by, unless the settings say otherwise."""
MULTI_GPU = "multi_gpu_train.yaml"
PLAN = "crossval.json"
AUDIT = "leakage.json"
SPLITS = ("train", "validation", "test")
# what a fold decides itself
RESERVED = {"dataset_dir", "store_dir", "output_dir", "resume", "run_dir", "test_subset", "join_patients"}
# of evaluate.yaml alone; the values that views may have are checked before anything is trained
ONLY_IN_SCORING = {"views", "bootstrap_draws"}
VIEWS = ("1", "2", "4", "8", "16")
# what would choose other scans to score than the fold's
ONLY_IN_TRAINING = {"candidates", "validation_subset", "validation_stride", "validation_negatives", "resume_changed"}


@dataclass(frozen=True)
class Plan:
    """A cross-validation before it is run.

    Attributes:
        bundle: its folder, with ``configs/train.yaml`` and ``configs/evaluate.yaml``.
        data_dir: LUNA16's layout; or several folders.
        store_dir: the prepared volumes, of each data folder.
        output: where all of it goes.
        folds: the subsets that are scored.
        settings: of the bundle, for each training; values as on its command line.
        overlays: further config files for each training, the last one wins.
        threads: of each process.
        gpus: of each fold, which several train together by the bundle's ``multi_gpu_train.yaml``; 0 leaves the choice
            of the device to the bundle.
    """

    bundle: Path
    data_dir: Folders
    store_dir: Folders
    output: Path
    folds: tuple[int, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[Path, ...] = ()
    threads: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        for name in ("bundle", "output"):
            object.__setattr__(self, name, getattr(self, name).absolute())
        for name in ("data_dir", "store_dir"):
            object.__setattr__(self, name, absolute(getattr(self, name)))
        object.__setattr__(self, "overlays", tuple(path.absolute() for path in self.overlays))
        if not self.folds or len(set(self.folds)) != len(self.folds) or not set(self.folds) <= set(SUBSETS):
            raise ValueError(f"folds {list(self.folds)}: name some of 0 to 9, each once")
        if taken := sorted(RESERVED & set(self.settings)):
            raise ValueError(f"{taken[0]} is what each fold decides itself: leave it out of --set")
        if (views := self.settings.get("views", "1")) not in VIEWS:
            raise ValueError(f"views {views}: give one of {', '.join(VIEWS)}")
        needed = ("train.yaml", "evaluate.yaml", *([MULTI_GPU] if self.gpus > 1 else []))
        for path in (*(self.configs / name for name in needed), *self.overlays):
            if not path.is_file():
                raise FileNotFoundError(f"no config {path}: name a bundle with {' and '.join(needed)}, or a file")

    @property
    def configs(self) -> Path:
        """The bundle's folder of configs."""
        return self.bundle / "configs"

    def fold_dir(self, fold: int) -> Path:
        """Return the output folder of a fold's training; its scored subset lies in ``test`` below it."""
        return self.output / f"fold_{fold}"

    def job(self, fold: int) -> Job:
        """Return a fold as a job: train, then score the subset that was kept out."""
        folder = self.fold_dir(fold)
        settings = {"validation_stride": str(INNER_STRIDE), **self.settings}
        data = {"dataset_dir": as_text(folder_list(self.data_dir)), "store_dir": as_text(folder_list(self.store_dir))}
        training = {
            **{key: value for key, value in settings.items() if key not in ONLY_IN_SCORING},
            **data,
            "test_subset": str(fold),
            # an inner subset takes its patients' other scans along; a stride does so anyhow
            "join_patients": "true",
            "output_dir": str(folder),
            "resume": "true",
        }
        scoring = {
            **{key: value for key, value in settings.items() if key not in ONLY_IN_TRAINING},
            **data,
            "validation_subset": str(fold),
            "run_dir": str(folder),
            # a bundle's train.yaml, which lies below, may name others to start from
            "init_weights": str(RunFolder(folder).weights),
            "output_dir": str(folder / "test"),
        }
        train = [self.configs / "train.yaml", *self.overlays]
        shared = [self.configs / MULTI_GPU] if self.gpus > 1 else []
        return Job(
            name=f"fold {fold}",
            commands=(
                command("training", [*train, *shared], training, max(1, self.gpus)),
                command("evaluating", [*train, self.configs / "evaluate.yaml"], scoring),
            ),
            log=self.output / "logs" / f"fold_{fold}.log",
            done=RunFolder(folder / "test").metrics_file,
            folder=Path.cwd(),
            threads=self.threads,
            gpus=self.gpus,
        )

    def record(self) -> dict[str, Any]:
        """Return what two calls must agree on to go on with each other's folds; no folder of the machine."""
        return {
            "bundle": self.bundle.name,
            "settings": dict(sorted(self.settings.items())),
            "overlays": [path.name for path in self.overlays],
            "configs_sha256": digests([*sorted(self.configs.glob("*.yaml")), *self.overlays])
            | base_digests([self.configs / "train.yaml", self.configs / "evaluate.yaml"]),
        }


def audit_leakage(plan: Plan, subsets: Mapping[str, int | None], patients: Patients) -> dict[str, Any]:
    """Return what each fold was trained, chosen and scored on, as its runs wrote it down themselves.

    Args:
        plan: its folds are finished.
        subsets: series to subset of all that is prepared.
        patients: of the series.

    Returns:
        ``folds``: by fold and split the ``series`` and ``patients``, and the series ``left_out``, which are of a
        patient of the test; ``problems``: a sentence for each series, and each patient, in two splits of a fold, and
        for each test that is not its subset; ``patients_in_two_tests``, which the official subsets have one of.
    """
    folds, problems, tests = {}, [], {}
    for fold in plan.folds:
        run = read_data(plan.fold_dir(fold))
        scored = read_results(plan.fold_dir(fold) / "test")
        series = {
            "train": set(run.train_series or ()),
            "validation": set(run.validation_series or ()),
            "test": set(scored.series_uids),
        }
        people = {name: patients.of_all(uids) for name, uids in series.items()}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            for what, sides in (("series", series), ("patient", people)):
                problems += [f"fold {fold}: {what} {it} is in {one} and in {other}" for it in
                             sorted(sides[one] & sides[other])]  # fmt: skip
        expected = {uid for uid, subset in subsets.items() if subset == fold}
        kept_out = set(run.test_series or ())
        if not series["test"] == kept_out == expected:
            problems.append(
                f"fold {fold}: {len(series['test'])} series were scored and {len(kept_out)} kept out, subset "
                f"{fold} has {len(expected)}"
            )
        folds[str(fold)] = {
            **{name: {"series": sorted(series[name]), "patients": sorted(people[name])} for name in SPLITS},
            "left_out": sorted(set(subsets) - set().union(*series.values())),
        }
        tests[fold] = people["test"]
    twice = {who: [f for f in plan.folds if who in tests[f]] for who in sorted(set().union(*tests.values()))}
    return {
        "problems": problems,
        "patients_in_two_tests": {who: found for who, found in twice.items() if len(found) > 1},
        "folds": folds,
    }


def read_data(folder: Path) -> DataRecord:
    """Return what a fold's run was trained on.

    Raises:
        FileNotFoundError: the run wrote no record.
    """
    run = RunFolder(folder)
    record = run.read_record()
    if record is None:
        raise FileNotFoundError(f"no {run.record_file}: remove the folder and run crossval again")
    return record.data
