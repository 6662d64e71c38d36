"""Whether a run goes on with the config that it began with: what of two configs changes what a run computes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any

from luna16_monai.bundle.moved import renamed, spelled_out

# where things are and how fast they go; none of it goes into a checkpoint, in which no folder of the machine stands
PRIVATE = {
    # what stands in the tables of candidates is compared by its checksum
    *("bundle_root", "output_dir", "dataset_dir", "store_dir", "candidates", "resume", "resume_changed"),
    *("num_workers", "cache_gb", "checkpoint_iterations", "profile"),
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config"),
}
# how the config comes to run; what it imports stands in full in what is compared
STEPS = {"imports", "initialize", "run", "training", "evaluating", "finalize", "several_processes"}
# what reports a run, and changes nothing in it: parts of a config, and handlers
TELLING_PARTS = {"train#checkpoints", "validate#more_results", "validate#tensorboard"}
TELLING = {
    *(f"luna16_monai.training.handlers.{name}" for name in ("Progress", "Profile", "PrecisionRecallCurve")),
    *(f"luna16_monai.training.results.{name}" for name in ("RunRecord", "BestEpoch", "ResultFiles", "History")),
    "luna16_monai.malignancy.scores.MalignancyScores",
    "luna16_monai.training.tracking.Tracking",
    *("MLFlowHandler", "TensorBoardStatsHandler"),
    # no part of a run of an older version; it acts in the first twentieth of a run alone, where its head starts fresh
    "luna16_monai.training.handlers.HeadWarmUp",
}
# settings that an older version did not have, with what it did
ADDED = {"bf16": False}
ADDED_TO_SPLIT = {"candidates": "@candidates"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return where two configs of a training differ in what changes its results: the place, and a line.

    Names of before the package had packages count as those of today, and short names of ``imports`` as what they stand
    for; so a run goes on that an older version began.

    Args:
        before: the config of the run, as its checkpoint holds it.
        now: the config with which it is to go on.
    """
    return dict(_differences(_computing(before), _computing(now)))


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config changes a run's results, by the names of today."""
    known = {**ADDED, **renamed(spelled_out(config))}
    kept = {key: value for key, value in known.items() if key not in PRIVATE | STEPS}
    if isinstance(split := kept.get("split"), Mapping):
        kept["split"] = {**ADDED_TO_SPLIT, **split}
    for part in ("train", "validate"):
        if isinstance(inner := kept.get(part), Mapping):
            kept[part] = {
                key: _working(value) if key == "handlers" and isinstance(value, list) else value
                for key, value in inner.items()
                if f"{part}#{key}" not in TELLING_PARTS
            }
    return kept


def _working(handlers: Sequence[Any]) -> list[Any]:
    """Return the handlers that do more than tell."""
    return [one for one in handlers if not isinstance(one, Mapping) or one.get("_target_") not in TELLING]


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield where two parts of configs differ: the place, and a line."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            there = f"{place}#{key}" if place else key
            yield from _differences(_said(before, key), _said(now, key), there)
    elif _is_list(before) and _is_list(now) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{place}#{index}")
    elif before != now:
        yield place, f"{place} was {_short(before)}, is {_short(now)}"


def _said(part: Mapping[str, Any], key: str) -> Any:
    """Return what a part of a config says of a key, else the default of its target's argument of that name."""
    name = str(part.get("_target_", ""))
    target = locate(name) if key not in part and name.startswith("luna16_monai.") else None
    if not callable(target):
        return part.get(key)
    argument = inspect.signature(target).parameters.get(key)
    return None if argument is None or argument.default is argument.empty else argument.default


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
