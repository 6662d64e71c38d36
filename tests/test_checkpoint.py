"""Going on after a stop: the same bits as a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch

from luna16_monai.checkpoint import Checkpoints, claim, load_initial_weights
from luna16_monai.networks import NoduleNet


class Crash(Exception):
    """Stands for the process's sudden end."""


def run_until(output_dir: Path, phase: str, number: int, **build: Any) -> None:
    """Run in this process until the phase comes for the n-th time, then drop everything."""
    run = small_run.build(output_dir, **build)
    engine, event = small_run.PHASES[phase]
    count = iter(range(1, 10**6))

    def crash(*_: Any) -> None:
        if next(count) == number:
            raise Crash

    getattr(run, engine).add_event_handler(event, crash)
    with pytest.raises(Crash):
        run.run()


def final_state(output_dir: Path) -> dict[str, Any]:
    run = small_run.build(output_dir, resume=True)
    state = run.load_newest()
    assert state is not None
    return state


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    """Equal to the last bit, wherever there are tensors."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}[{key}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}[{index}]")
    else:
        assert one == other, place


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    output_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    small_run.build(output_dir).run()
    torch.set_num_threads(threads)
    return output_dir


def test_undisturbed_run_learns_and_sees_each_iteration_once(undisturbed: Path) -> None:
    losses = [key for key in small_run.seen(undisturbed) if key.startswith("loss")]
    assert losses == [f"loss {iteration}" for iteration in range(1, 25)]
    assert len({value for key, value in small_run.seen(undisturbed).items() if key.startswith("loss")}) == 24


@pytest.mark.parametrize(
    ("phase", "number", "workers"),
    [
        ("batch", 1, 0),  # before the first checkpoint: starts anew
        ("backward", 5, 0),
        ("iteration", 8, 2),  # the last of an epoch, validation still to come
        ("validation", 2, 0),
        ("epoch_end", 1, 0),  # scheduler and checkpoint still to come
        ("epoch_start", 2, 0),
        ("forward", 14, 2),
        ("iteration", 24, 0),
    ],
)
def test_run_goes_on_bit_for_bit(undisturbed: Path, tmp_path: Path, phase: str, number: int, workers: int) -> None:
    output_dir = tmp_path / "run"
    run_until(output_dir, phase, number)
    small_run.build(output_dir, resume=True, workers=workers).run()
    assert_same(final_state(output_dir), final_state(undisturbed))
    assert small_run.seen(output_dir) == small_run.seen(undisturbed)


def test_run_stopped_many_times_goes_on_bit_for_bit(undisturbed: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    for phase, number in (("forward", 6), ("batch", 6), ("validation", 2), ("backward", 3)):
        run_until(output_dir, phase, number, resume=True, interval=2)
    small_run.build(output_dir, resume=True).run()
    state, expected = final_state(output_dir), final_state(undisturbed)
    assert_same(state, expected)
    assert small_run.seen(output_dir) == small_run.seen(undisturbed)


def program(output_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", small_run.__file__, str(output_dir), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_signal_saves_and_tells_how_to_go_on(undisturbed: Path, tmp_path: Path, name: str, code: int) -> None:
    output_dir = tmp_path / "run"
    stopped = program(output_dir, "--die", f"forward:11:{name}", "--workers", "1")
    assert stopped.returncode == code, stopped.stderr
    assert f"{name}: the state is saved up to iteration 11" in stopped.stderr
    assert "--resume true" in stopped.stderr
    small_run.build(output_dir, resume=True).run()
    assert_same(final_state(output_dir), final_state(undisturbed))
    assert small_run.seen(output_dir) == small_run.seen(undisturbed)


@pytest.mark.slow
def test_signal_in_validation_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    stopped = program(output_dir, "--die", "validation:1:SIGTERM")
    assert stopped.returncode == 143, stopped.stderr
    assert "saved up to iteration 6" in stopped.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_run_killed_at_random_goes_on_bit_for_bit(undisturbed: Path, tmp_path: Path) -> None:
    choose = random.Random(16)
    kills = 0
    for number in range(6):
        output_dir = tmp_path / str(number) / "run"
        for _ in range(4):
            phase = choose.choice([*small_run.PHASES])
            die = f"{phase}:{choose.randint(1, 3 if 'e' in phase[:1] else 9)}"
            ended = program(output_dir, "--resume", "--workers", str(choose.randint(0, 2)), "--die", die)
            kills += ended.returncode == -signal.SIGKILL
            assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        ended = program(output_dir, "--resume")
        assert ended.returncode == 0, ended.stderr
        assert_same(final_state(output_dir), final_state(undisturbed))
        assert small_run.seen(output_dir) == small_run.seen(undisturbed)
    assert kills >= 20


SAVE_LOOP = """
import sys, torch
import small_run
from pathlib import Path
run = small_run.build(Path(sys.argv[1]), resume=True)
run.trainer.state.iteration = 0
while True:
    run.trainer.state.iteration += 1
    print(run.save(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_save_killed_100_times_loses_nothing(tmp_path: Path) -> None:
    for number in range(100):
        output_dir = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SAVE_LOOP, str(output_dir)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(small_run.__file__).parent,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.Random(number).uniform(0, 0.05))
        process.kill()
        saved = process.stdout.read().count(".pt") + 1
        process.wait()
        state = small_run.build(output_dir, resume=True).load_newest()
        assert state is not None
        assert state["iteration"] >= saved


def test_load_newest_passes_over_a_torn_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = small_run.build(tmp_path / "run")
    run.trainer.state.iteration = 1
    run.save()
    run.trainer.state.iteration = 2
    newest = run.save()
    content = newest.read_bytes()
    for length in [0, 1, 100, len(content) // 2, *range(len(content) - 300, len(content), 13)]:
        newest.write_bytes(content[:length])
        caplog.clear()
        state = run.load_newest()
        assert state is not None
        assert state["iteration"] == 1
        assert "is damaged" in caplog.text
    for place in (10, len(content) // 3, len(content) - 20):
        newest.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        state = run.load_newest()
        assert state is not None
        assert state["iteration"] == 1
    newest.write_bytes(content)
    state = run.load_newest()
    assert state is not None
    assert state["iteration"] == 2


def test_load_newest_refuses_where_all_files_are_torn(tmp_path: Path) -> None:
    run = small_run.build(tmp_path / "run")
    run.save().write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged"):
        run.load_newest()


def test_save_keeps_the_last_two(tmp_path: Path) -> None:
    run = small_run.build(tmp_path / "run")
    for iteration in (1, 2, 3, 10):
        run.trainer.state.iteration = iteration
        run.save()
    assert [path.name[:19] for path in sorted(run.folder.iterdir())] == ["iteration_000000003", "iteration_000000010"]


def test_run_with_nothing_to_resume_starts_and_a_finished_one_ends(
    undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = undisturbed.with_name("seen.txt").read_text()
    caplog.set_level("INFO")
    small_run.build(undisturbed, resume=True).run()
    assert "is finished (3 epochs): nothing to do" in caplog.text
    assert undisturbed.with_name("seen.txt").read_text() == before


def test_run_refuses_a_changed_config_unless_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output_dir = tmp_path / "run"
    run_until(output_dir, "forward", 5)
    changed = small_run.build(output_dir, resume=True)
    changed.config = {"ratio": [1, 3]}
    with pytest.raises(ValueError, match=r"another config: ratio#1 was 2, is 3.*--resume_changed true"):
        changed.run()
    changed.resume_changed = True
    changed.run()
    assert "going on with a changed config: ratio#1 was 2, is 3" in caplog.text


def test_best_score_survives_a_stop(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    run_until(output_dir, "epoch_start", 2)
    run = small_run.build(output_dir, resume=True)
    state = run.load_newest()
    assert state is not None
    best, epoch = state["best"][1]
    assert epoch == 1
    assert 0 < best <= 1


def test_claim_refuses_a_used_folder(tmp_path: Path) -> None:
    claim(tmp_path / "new", resume=False)
    claim(tmp_path / "new", resume=False)
    (tmp_path / "new" / "model.pt").touch()
    with pytest.raises(FileExistsError, match=r"is in use \(it holds model.pt\).*--resume true"):
        claim(tmp_path / "new", resume=False)
    claim(tmp_path / "new", resume=True)


def test_load_initial_weights(tmp_path: Path) -> None:
    one, other = NoduleNet((8, 8, 8), channels=(2, 4)), NoduleNet((8, 8, 8), channels=(2, 4))
    torch.save(one.state_dict(), tmp_path / "model.pt")
    load_initial_weights(other, None)
    load_initial_weights(other, str(tmp_path / "model.pt"))
    assert_same(dict(one.state_dict()), dict(other.state_dict()))
    with pytest.raises(ValueError, match="belong to another network"):
        load_initial_weights(NoduleNet((8, 8, 8), channels=(2, 8)), str(tmp_path / "model.pt"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_initial_weights(other, str(tmp_path / "nothing.pt"))


def test_checkpoints_state_is_plain_data(undisturbed: Path) -> None:
    run: Checkpoints = small_run.build(undisturbed, resume=True)
    path = next(run.folder.iterdir())
    state = torch.load(path, weights_only=True)
    assert {"network", "optimizer", "lr_scheduler", "best", "iteration", "epoch_length", "scaler"} <= state.keys()
