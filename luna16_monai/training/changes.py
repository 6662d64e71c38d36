"""What may differ between a run and the call that goes on with it, and how that takes effect.

More epochs are taken without further ado; other settings with ``resume_changed``. Each change that is accepted takes
effect from the next step on: the network's weights and what the optimizer has averaged are kept, the optimizer's
settings are the new ones, and the schedule is that of a run with the new settings after as many steps. What could not
take effect, or would make the scores before and after incomparable, is refused by name.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from luna16_monai.runs.folder import RunFolder
from luna16_monai.training.comparison import differences

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

logger = logging.getLogger(__name__)

EPOCHS = "max_epochs"
# what no run can go on with another one of, and why
FIXED = {
    "optimizer#_target_": "an optimizer cannot take up what another kind has averaged",
    "lr_scheduler#_target_": "another kind of schedule cannot be entered in the middle",
    "init_weights": "the run goes on with its own weights",
    "key_metric": "the best score so far is of the other one",
    **dict.fromkeys(
        ("validation_stride", "validation_subset", "test_subset", "join_patients", "validation_negatives", "split"),
        "the best score so far is of other candidates, and the weights may have seen those of the new split",
    ),
}


def accepted(before: Mapping[str, Any], now: Mapping[str, Any], resume_changed: bool, run: Path) -> list[str]:
    """Return how the config of a run differs from the one it goes on with, one line each; none where it is the same.

    Args:
        before: the config that the run had.
        now: the one to go on with.
        resume_changed: whether other changes than more epochs are accepted.
        run: its folder, for the message.

    Raises:
        ValueError: names a change that is not accepted, or that no run can take.
    """
    changed = differences(before, now)
    if not changed:
        return []
    for place, line in changed.items():
        if (setting := place if place in FIXED else place.split("#")[0]) in FIXED:
            raise ValueError(
                f"the run in {run} cannot go on with another {setting} ({line}), since {FIXED[setting]}: start a new "
                f"run in another output_dir, if need be with --init_weights {RunFolder(run).weights}"
            )
    told = "; ".join([*changed.values()][:10])
    if not resume_changed and not (set(changed) == {EPOCHS} and _more(before.get(EPOCHS), now.get(EPOCHS))):
        raise ValueError(
            f"the run in {run} had another config: {told}. Continue it with the same settings, "
            "or accept the change with --resume_changed true"
        )
    logger.warning("going on with a changed config: %s", told)
    return [*changed.values()]


def require_same_candidates(before: Mapping[str, str], now: Mapping[str, str], run: Path) -> None:
    """Check that a run goes on with the candidates that it was trained and validated on.

    Args:
        before: the checksums of its splits, see `CandidateList.digest`; a run of an older version has none.
        now: those of the splits to go on with.
        run: its folder, for the message.

    Raises:
        ValueError: names the split whose candidates differ.
    """
    for split in sorted({*before} & {*now}):
        if before[split] != now[split]:
            raise ValueError(
                f"the {split} candidates are not those of the run in {run}: its list of candidates, their classes or "
                "the scans in the store have changed. Go on with the data set that it was trained on, or start a new "
                f"run in another output_dir, if need be with --init_weights {RunFolder(run).weights}"
            )


def load_with_settings(parts: Mapping[str, Stateful], state: Mapping[str, Any], changed: Sequence[str]) -> None:
    """Load the parts of a run, and let the settings of the new config win in its optimizers and schedules.

    Args:
        parts: name to network, optimizer, schedule and whatever else has a state, freshly built from the new config.
        state: name to the state of each.
        changed: how the config has changed, for the message.

    Raises:
        ValueError: a state does not fit, since the change is one of the network's or the optimizer's structure.
    """
    schedules: dict[str, Any] = {name: part for name, part in parts.items() if _is_schedule(part)}
    for name, part in parts.items():
        if name in schedules:
            continue
        fresh = [dict(group) for group in part.param_groups] if isinstance(part, Optimizer) else []
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the {name} of the run cannot be taken up after this change ({'; '.join(changed)[:300]}): undo it, or "
                "start a new run in another output_dir"
            ) from error
        for group, settings in zip(part.param_groups if isinstance(part, Optimizer) else [], fresh, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
    for name, schedule in schedules.items():
        _advance(schedule, int(state[name]["last_epoch"]))
        logger.info(
            "the learning rate goes on as in a run that had these settings from its beginning, after %d steps: at %s",
            *(state[name]["last_epoch"], ", ".join(f"{rate:.3g}" for rate in schedule.get_last_lr())),
        )


def _is_schedule(part: Stateful) -> bool:
    """Whether the rate at each step follows from the number of steps; not where it follows from the scores."""
    return isinstance(part, LRScheduler) and not isinstance(part, ReduceLROnPlateau)


def _advance(schedule: Any, steps: int) -> None:
    """Bring a fresh schedule to this number of steps."""
    with warnings.catch_warnings():
        # it would have the optimizer step first: it did, in the run that goes on
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(steps):
            schedule.step()


def _more(before: Any, now: Any) -> bool:
    return isinstance(before, int) and isinstance(now, int) and now > before
