"""A hyper-parameter search as data: its space, its metric and its plan, read from the bundle's ``tune.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luna16_monai.bundle.bases import base_digests, read_whole
from luna16_monai.bundle.command import command
from luna16_monai.machine.claims import digests
from luna16_monai.machine.folder_lists import Folders, absolute, as_text, folder_list
from luna16_monai.machine.jobs import Job

METRICS = ("average_precision", "cpm")
KINDS = ("uniform", "log_uniform", "choice")
BEST, TABLE, LOGS = "best.yaml", "trials.csv", "logs"
SPACING = "spacing_zyx"
RESERVED = {"dataset_dir", "store_dir", "output_dir", "resume", "key_metric", SPACING}


@dataclass(frozen=True)
class Search:
    """What a ``tune.yaml`` says.

    Attributes:
        metric: the score of the validation that decides.
        grace_period: epochs before a trial may be stopped.
        reduction_factor: of so many trials that got equally far one goes on.
        ranges: by name ``uniform`` or ``log_uniform`` (two numbers) or ``choice`` (a list), and perhaps ``times``.
    """

    metric: str
    grace_period: int
    reduction_factor: int
    ranges: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Search:
        """Read and check the file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no YAML, lacks a key, or a range is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no search {path}: name a bundle with configs/tune.yaml, or a file by --search")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            search = cls(*(content[key] for key in ("metric", "grace_period", "reduction_factor", "search")))
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): see the nodule bundle's configs/tune.yaml") from error
        if search.metric not in METRICS:
            raise ValueError(f"{path}: metric {search.metric}: name one of {', '.join(METRICS)}")
        for name, one in search.ranges.items():
            kinds = [kind for kind in KINDS if kind in one]
            if len(kinds) != 1 or not isinstance(one[kinds[0]], list) or set(one) - {*KINDS, "times"}:
                raise ValueError(f"{path}: {name} is {one}: one of {', '.join(KINDS)} with a list was expected")
            values = one[kinds[0]]
            if kinds[0] == "choice":
                continue
            numbers = len(values) == 2 and all(isinstance(value, int | float) for value in values)
            if not numbers or not (0 if kinds[0] == "log_uniform" else float("-inf")) < values[0] < values[1]:
                raise ValueError(f"{path}: {name} is {values}: two numbers, the smaller one first, were expected")
        return search

    def draw(self, trial: Any) -> dict[str, Any]:
        """Draw each setting of a trial of Optuna's; a choice is among texts, since Optuna takes no lists."""
        drawn: dict[str, Any] = {}
        for name, one in self.ranges.items():
            if "choice" in one:
                drawn[name] = trial.suggest_categorical(name, [json.dumps(value) for value in one["choice"]])
            else:
                low, high = map(float, one.get("uniform") or one["log_uniform"])
                drawn[name] = trial.suggest_float(name, low, high, log="log_uniform" in one)
        return drawn

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the bundle that a draw stands for."""
        settings: dict[str, Any] = {}
        for name, value in drawn.items():
            one = self.ranges[name]
            value = json.loads(value) if "choice" in one else float(f"{value:.4g}")
            for key, base in one.get("times", {name: None}).items():
                settings[key] = _times(base, value)
        return settings


def _times(base: Any, factor: Any) -> Any:
    if base is None:
        return factor
    return [_times(one, factor) for one in base] if isinstance(base, list) else float(f"{base * factor:.4g}")


@dataclass(frozen=True)
class TunePlan:
    """A search before it is run.

    Attributes:
        bundle: its folder.
        data_dir: LUNA16's layout; or several folders.
        store_dir: the prepared volumes, of each data folder.
        output: where all of it goes.
        search: what is tried.
        trials: how many.
        settings: of the bundle, the same for each trial; values as on its command line.
        overlays: further config files for each training.
        threads: of each process.
        gpus: of each trial, 0 or 1.
        seed: of the search.
        folder: in which the trainings run; Ray gives each trial another one.
    """

    bundle: Path
    data_dir: Folders
    store_dir: Folders
    output: Path
    search: Search
    trials: int
    settings: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[Path, ...] = ()
    threads: int = 1
    gpus: int = 0
    seed: int = 0
    folder: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        for name in ("bundle", "output"):
            object.__setattr__(self, name, getattr(self, name).absolute())
        for name in ("data_dir", "store_dir"):
            object.__setattr__(self, name, absolute(getattr(self, name)))
        object.__setattr__(self, "overlays", tuple(path.absolute() for path in self.overlays))
        if self.gpus not in (0, 1):
            raise ValueError(f"gpus {self.gpus}: a trial trains on one GPU, give 0 or 1; more trials run beside it")
        if self.trials < 1:
            raise ValueError(f"trials {self.trials}: give 1 or more")
        if taken := sorted((RESERVED | set(self.search.ranges)) & set(self.settings)):
            raise ValueError(f"{taken[0]} is what each trial decides itself: leave it out of --set")

    @property
    def max_epochs(self) -> int:
        """Of a trial that is not stopped."""
        written: dict[str, Any] = {}
        for path in self.configs:
            written |= read_whole(path)
        return int(self.settings.get("max_epochs", written["max_epochs"]))

    @property
    def configs(self) -> list[Path]:
        """What each trial trains by, the last one wins."""
        return [self.bundle / "configs" / "train.yaml", *self.overlays]

    def trial_dir(self, trial: str) -> Path:
        """Return the output folder of a trial's training."""
        return self.output / "trials" / trial

    def job(self, trial: str, settings: Mapping[str, Any], stores: Mapping[str, Folders]) -> Job:
        """Return a trial as a job."""
        store = stores[json.dumps(settings[SPACING])] if SPACING in settings else self.store_dir
        told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        fixed = {
            "key_metric": self.search.metric,
            "dataset_dir": as_text(folder_list(self.data_dir)),
            "store_dir": as_text(folder_list(store)),
            "output_dir": str(self.trial_dir(trial)),
            "resume": "true",
        }
        return Job(
            name=f"trial {trial}",
            commands=(command("training", self.configs, {**self.settings, **told, **fixed}),),
            log=self.output / LOGS / f"{trial}.log",
            done=None,
            folder=self.folder,
            threads=self.threads,
            gpus=self.gpus,
        )

    def record(self) -> dict[str, Any]:
        """Return what two calls must agree on to go on with each other's trials."""
        return {
            "bundle": self.bundle.name,
            "trials": self.trials,
            "settings": dict(sorted(self.settings.items())),
            "overlays": [path.name for path in self.overlays],
            "configs_sha256": digests(self.configs) | base_digests(self.configs),
            "seed": self.seed,
            "metric": self.search.metric,
            "search": dict(self.search.ranges),
        }
