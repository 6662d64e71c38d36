"""What may differ between a run and the call that goes on with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import create_workflow
from monai.data import get_track_meta, set_track_meta
from point_tables import point_table

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.machine.errors import one_line
from luna16_monai.runs.folder import RunFolder
from luna16_monai.training import changes

TRAIN_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "train.yaml"
RUN = Path("runs/one")


# --- which changes are accepted -------------------------------------------------------------------------------------


def test_accepted_takes_more_epochs_alone() -> None:
    assert changes.accepted({"max_epochs": 1}, {"max_epochs": 1}, False, RUN) == []
    assert changes.accepted({"max_epochs": 1}, {"max_epochs": 3}, False, RUN) == ["max_epochs was 1, is 3"]
    # what does not change the result is none of its business
    assert changes.accepted({"num_workers": 1}, {"num_workers": 3}, False, RUN) == []


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"max_epochs": 3}, {"max_epochs": 2}, "max_epochs was 3, is 2"),
        ({"max_epochs": 1, "seed": 0}, {"max_epochs": 2, "seed": 1}, "max_epochs was 1, is 2; seed was 0, is 1"),
        ({"ratio": [1, 2]}, {"ratio": [1, 3]}, "ratio#1 was 2, is 3"),
    ],
)
def test_accepted_takes_other_changes_only_where_told(before: Any, now: Any, told: str) -> None:
    with pytest.raises(ValueError, match="--resume_changed true") as caught:
        changes.accepted(before, now, False, RUN)
    assert f"the run in runs/one had another config: {told}." in str(caught.value)
    assert "; ".join(changes.accepted(before, now, True, RUN)) == told


@pytest.mark.parametrize(
    ("before", "now", "place"),
    [
        ({"key_metric": "cpm"}, {"key_metric": "roc_auc"}, "key_metric"),
        ({"init_weights": None}, {"init_weights": "a.pt"}, "init_weights"),
        ({"validation_subset": None}, {"validation_subset": 9}, "validation_subset"),
        ({"split": {"join_patients": False}}, {"split": {"join_patients": True}}, "split"),
        ({"optimizer": {"_target_": "A"}}, {"optimizer": {"_target_": "B"}}, "optimizer#_target_"),
    ],
)
def test_accepted_refuses_by_name_what_could_not_take_effect(before: Any, now: Any, place: str) -> None:
    with pytest.raises(ValueError, match=f"cannot go on with another {place} "):
        changes.accepted(before, now, True, RUN)


# --- the list of candidates -----------------------------------------------------------------------------------------

ROWS = [("b", 1.0, 2.0, 3.0, 1.0), ("a", 4.0, 5.0, 6.0, 0.0), ("a", 7.0, 8.0, 9.0, 0.0)]


@pytest.mark.parametrize(
    "other",
    [
        ROWS[:2],
        [ROWS[0], ROWS[2], ROWS[1]],
        [(*row[:4], 1 - row[4]) for row in ROWS],
        [("c", *ROWS[0][1:]), *ROWS[1:]],
        [("b", 1.0, 2.0, 3.001, 1.0), *ROWS[1:]],
    ],
)
def test_digest_is_that_of_the_same_rows_alone(other: list[Any]) -> None:
    one = CandidateList(point_table(ROWS), positives_first=False)
    # a table with a series more, none of whose rows is taken
    same = point_table([("0", 0.0, 0.0, 0.0, 0.0), *ROWS])
    assert CandidateList(same.select(same.values >= 0).select([1, 2, 3]), False).digest() == one.digest()
    assert CandidateList(point_table(other), positives_first=False).digest() != one.digest()


def test_require_same_candidates_names_the_split() -> None:
    changes.require_same_candidates({}, {"train": "1"}, RUN)
    changes.require_same_candidates({"train": "1"}, {"train": "1"}, RUN)
    with pytest.raises(ValueError, match="the validation candidates are not those of the run in runs/one"):
        changes.require_same_candidates({"train": "1", "validation": "2"}, {"train": "1", "validation": "3"}, RUN)


# --- how a change takes effect --------------------------------------------------------------------------------------


def parts(steps: int, rate: float, decay: float) -> dict[str, Any]:
    """A network, its optimizer and a cycle of so many steps, after two steps."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, cycle_momentum=False)
    return {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}


def trained(steps: int, rate: float, decay: float, times: int) -> dict[str, Any]:
    made = parts(steps, rate, decay)
    for _ in range(times):
        made["network"](torch.ones(1, 2)).sum().backward()
        made["optimizer"].step()
        made["lr_scheduler"].step()
    return made


def test_load_with_settings_takes_rate_decay_and_schedule_of_the_new_config() -> None:
    before = trained(4, 1e-3, 0.01, times=2)
    state = {name: part.state_dict() for name, part in before.items()}
    now = parts(20, 1e-5, 0.5)
    changes.load_with_settings(now, state, ["learning_rate was 0.001, is 1e-05"])
    assert torch.equal(now["network"].weight, before["network"].weight)
    # what the optimizer has averaged is kept
    assert now["optimizer"].state_dict()["state"][0]["step"] == 2
    group = now["optimizer"].param_groups[0]
    assert (group["weight_decay"], group["max_lr"]) == (0.5, 1e-5)
    # of 20 steps the first 6 lead up to the full rate (pct_start 0.3, so 5 from the first to the highest), by half a
    # cosine from a 25th of it: after 2 of 5 steps 1 - (1 + cos(2 pi / 5)) / 2 of the way
    way = 1 - (1 + 0.309016994) / 2
    assert now["lr_scheduler"].get_last_lr() == pytest.approx([1e-5 / 25 + way * (1e-5 - 1e-5 / 25)])
    assert now["lr_scheduler"].last_epoch == 2


def test_load_with_settings_goes_on_behind_a_finished_cycle() -> None:
    state = {name: part.state_dict() for name, part in trained(4, 1e-3, 0.01, times=4).items()}
    now = parts(12, 1e-3, 0.01)
    changes.load_with_settings(now, state, ["max_epochs was 1, is 3"])
    for _ in range(8):
        now["optimizer"].step()
        now["lr_scheduler"].step()
    with pytest.raises(ValueError, match="step 13 times"):
        now["lr_scheduler"].step()


def test_load_with_settings_tells_what_does_not_fit() -> None:
    state = {name: part.state_dict() for name, part in trained(4, 1e-3, 0.01, times=1).items()}
    now = parts(4, 1e-3, 0.01)
    now["network"] = torch.nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"the network of the run cannot be taken up after this change \(width was 2"):
        changes.load_with_settings(now, state, ["width was 2, is 3"])


# --- in the bundle --------------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> Iterator[None]:
    """Put back what a bundle changes for its whole process."""
    track = get_track_meta()
    yield
    set_track_meta(track)


def train(settings: dict[str, Any]) -> Any:
    flow = create_workflow(config_file=str(TRAIN_YAML), workflow_type="train", logging_file=False, **settings)
    flow.initialize()
    flow.run()
    return flow


def test_training_goes_on_for_more_epochs_and_with_its_own_candidates_alone(
    state: None, phantom_dir: Path, store_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {
        "dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "output_dir": str(tmp_path / "run"),
        "device": "cpu", "max_epochs": 1, "samples_per_epoch": 12, "batch_size": 4, "num_workers": 0,
        "validation_stride": 3, "validation_negatives": 6,
    }  # fmt: skip
    train(small)
    caplog.set_level(logging.INFO)
    flow = train({**small, "max_epochs": 3, "resume": "true"})
    assert "going on with a changed config: max_epochs was 1, is 3" in caplog.text
    assert "as in a run that had these settings from its beginning, after 3 steps" in caplog.text
    run = RunFolder(tmp_path / "run")
    rates = [one.scores["learning_rate"] for one in run.read_history() if one.split == "train"]
    assert len(rates) == 3
    # 9 steps: 2 / 9 of them warm up, to step 1; then half a cosine down to step 8. After epoch 2 comes step 6, 5 of 7:
    # (1 + cos(5 pi / 7)) / 2 of the full rate; of the old cycle, of 3 steps, nothing would be left
    assert rates[1] == pytest.approx(1e-3 * (1 - 0.623490) / 2, rel=1e-4)
    record = run.read_record()
    assert record is not None
    split = flow.parser.get_parsed_content("split")
    assert record.data.candidates_sha256 == {"train": split.train.digest(), "validation": split.validation.digest()}

    others = tmp_path / "others"
    others.mkdir()
    for path in phantom_dir.glob("*.csv"):
        (others / path.name).write_bytes(path.read_bytes())
    header, *rows = (others / "candidates_V2.csv").read_text(encoding="utf-8").split()
    exchanged = [f"{row[:-1]}{1 - int(row[-1])}" for row in rows]
    (others / "candidates_V2.csv").write_text("\n".join([header, *exchanged]) + "\n", encoding="utf-8")
    with pytest.raises(RuntimeError) as caught:
        train({**small, "dataset_dir": str(others), "max_epochs": 4, "resume": "true", "resume_changed": "true"})
    assert "the train candidates are not those of the run in" in one_line(caught.value)
