"""Going on after a stop: the same bits as a run that was never stopped."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch
from ignite.engine import Events
from monai.data import set_track_meta
from small_run import assert_same

from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.networks.weights import load_initial_weights
from luna16_monai.training import seeds
from luna16_monai.training.checkpoints import Checkpoints
from luna16_monai.training.start import claim


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


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    # which a training switches off, for the whole process
    set_track_meta(True)


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


def test_run_in_bfloat16_on_two_scales_goes_on_bit_for_bit(undisturbed: Path, tmp_path: Path) -> None:
    small_run.build(tmp_path / "whole" / "run", bf16=True).run()
    run_until(tmp_path / "stopped" / "run", "backward", 12, bf16=True)
    small_run.build(tmp_path / "stopped" / "run", resume=True, bf16=True).run()
    states = []
    for name in ("whole", "stopped"):
        state = small_run.build(tmp_path / name / "run", resume=True, bf16=True).load_newest()
        assert state is not None
        states.append(state)
    assert_same(states[1], states[0])
    seen = small_run.seen(tmp_path / "whole" / "run")
    assert small_run.seen(tmp_path / "stopped" / "run") == seen
    # and bfloat16 was in use
    exact = small_run.build(tmp_path / "exact" / "run", bf16=True)
    exact.network.bfloat16_blocks = ()
    exact.run()
    assert small_run.seen(tmp_path / "exact" / "run")["loss 1"] != seen["loss 1"]


@pytest.mark.slow
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
    before = undisturbed.with_name("seen.txt").read_text(encoding="utf-8")
    caplog.set_level("INFO")
    small_run.build(undisturbed, resume=True).run()
    assert "is finished (3 epochs): nothing to do" in caplog.text
    assert undisturbed.with_name("seen.txt").read_text(encoding="utf-8") == before


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
    # all that a run leaves which was refused for a setting
    (tmp_path / "new" / "validation").mkdir()
    (tmp_path / "new" / "events.out.tfevents.1.host.2.0").touch()
    claim(tmp_path / "new", resume=False)
    (tmp_path / "new" / "model.pt").touch()
    with pytest.raises(FileExistsError, match=r"is not empty \(it holds model.pt\).*--resume true"):
        claim(tmp_path / "new", resume=False)
    claim(tmp_path / "new", resume=True)


def test_load_initial_weights(tmp_path: Path) -> None:
    one, other = NoduleNet((8, 8, 8), channels=(2, 4)), NoduleNet((8, 8, 8), channels=(2, 4))
    torch.save(one.state_dict(), tmp_path / "model.pt")
    load_initial_weights(other, None)
    load_initial_weights(other, str(tmp_path / "model.pt"))
    assert_same(dict(one.state_dict()), dict(other.state_dict()))
    larger = NoduleNet((8, 16, 16), channels=(2, 4))
    head = larger.head.weight.detach().clone()
    load_initial_weights(larger, str(tmp_path / "model.pt"))
    assert_same(dict(one.backbone.state_dict()), dict(larger.backbone.state_dict()))
    assert torch.equal(larger.head.weight, head)
    with pytest.raises(ValueError, match="belong to another network"):
        load_initial_weights(NoduleNet((8, 8, 8), channels=(2, 8)), str(tmp_path / "model.pt"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_initial_weights(other, str(tmp_path / "nothing.pt"))


def test_checkpoints_state_is_plain_data(undisturbed: Path) -> None:
    run: Checkpoints = small_run.build(undisturbed, resume=True)
    path = next(run.folder.iterdir())
    state = torch.load(path, weights_only=True)
    assert {"network", "optimizer", "lr_scheduler", "best", "iteration", "epoch_length", "scaler"} <= state.keys()


# --- on the disk ----------------------------------------------------------------------------------------------------


def test_save_is_on_the_disk_before_an_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run.build(tmp_path / "run")
    for run.trainer.state.iteration in (1, 2):
        run.save()
    steps: list[str] = []

    def noting(module: Any, name: str, what: Callable[..., str]) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **more: (steps.append(what(*given)), real(*given, **more))[1])

    noting(os, "fsync", lambda file: "sync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "sync file")
    noting(os, "replace", lambda _, path: f"rename to {path.name[:19]}")
    noting(Path, "unlink", lambda path, **_: f"remove {path.name[:19]}")
    run.trainer.state.iteration = 3
    run.save()
    assert steps == ["sync file", "rename to iteration_000000003", "sync folder", "remove iteration_000000001"]


def test_save_keeps_no_folder_of_this_machine(tmp_path: Path) -> None:
    run = small_run.build(tmp_path / "run")
    folders = {key: f"/home/canary/{key}" for key in ("bundle_root", "output_dir", "dataset_dir", "store_dir")}
    with_paths = Checkpoints(
        tmp_path / "run", run.trainer, run.evaluator, {}, run.train_scores, {"ratio": [1, 2], **folders}
    )
    assert with_paths.config == {"ratio": [1, 2]}
    assert b"canary" not in with_paths.save().read_bytes()


@pytest.mark.slow
def test_save_costs_under_a_hundredth_of_the_default_interval(tmp_path: Path) -> None:
    """The real network, with the predictions of a whole default epoch, against 200 iterations of training it."""
    network = NoduleNet(return_probabilities=False)
    run = small_run.build(tmp_path / "run")
    optimizer = torch.optim.AdamW(network.parameters())
    image, label = torch.randn(64, 1, 32, 48, 48), torch.arange(64) % 2
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)

    def iteration() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), label).backward()
        optimizer.step()

    iteration()
    spent = timed(iteration, 3)
    torch.set_num_threads(threads)
    run.trainer.network = network
    run.parts |= {"network": network, "optimizer": optimizer}
    run.train_scores.reset()
    rows = 200_000
    run.train_scores.update((torch.randn(rows, 2), torch.arange(rows) % 2, torch.arange(rows)))
    saving = timed(run.save, 10)
    print(f"a checkpoint takes {1000 * saving:.1f} ms, 200 iterations {200 * spent:.1f} s")
    assert saving < 0.01 * 200 * spent


def timed(work: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


# --- what has gone wrong --------------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_stops_the_run_and_lists_its_batch(undisturbed: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    run = small_run.build(output_dir)
    whole, losses, seen = run.trainer.loss_function, iter(range(1, 100)), []
    run.trainer.loss_function = lambda *given: whole(*given) * (math.nan if next(losses) == 11 else 1)
    run.trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda engine: seen.append(engine.state.batch))
    with pytest.raises(FloatingPointError, match=r"the loss is nan in iteration 11: the batch is listed in .*lower"):
        run.run()
    told = json.loads((output_dir / "nonfinite_loss.json").read_text(encoding="utf-8"))
    rows = seen[10]["candidate"].tolist()
    assert told == {
        "loss": "nan",
        "iteration": 11,
        "batch": [{"series_uid": f"s{row}", "point_xyz": [row, 0, 0]} for row in rows],
    }
    # every third iteration is kept: the newest is whole, and the run goes on from it as if nothing had been
    again = small_run.build(output_dir, resume=True)
    state = again.load_newest()
    assert state is not None
    assert state["iteration"] == 9
    again.run()
    assert_same(final_state(output_dir), final_state(undisturbed))


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    run = small_run.build(output_dir)

    def spoil(engine: Any) -> None:
        with torch.no_grad():
            next(engine.network.parameters()).view(-1)[0] = math.inf

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), spoil)
    with pytest.raises(
        FloatingPointError, match=r"weights are NaN or infinite after iteration 6: the last state .* iteration 3; lower"
    ):
        run.run()
    state = small_run.build(output_dir, resume=True).load_newest()
    assert state is not None
    assert state["iteration"] == 3


@pytest.mark.parametrize("phase", ["batch", pytest.param("iteration", marks=pytest.mark.slow)])
def test_dead_loader_worker_is_told_in_one_line_and_loses_nothing(
    undisturbed: Path, tmp_path: Path, phase: str
) -> None:
    output_dir = tmp_path / "run"
    ended = program(output_dir, "--workers", "2", "--die", f"{phase}:6:WORKER")
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert re.fullmatch(
        r"luna16: a worker process of the data loader died, perhaps for want of memory; the state is saved up to "
        r"iteration \d+: go on with --resume true, and a smaller num_workers or cache_gb",
        lines[-1],
    )
    assert "ConnectionResetError" not in ended.stderr
    small_run.build(output_dir, resume=True).run()
    assert_same(final_state(output_dir), final_state(undisturbed))
    assert small_run.seen(output_dir) == small_run.seen(undisturbed)


# --- as the first process of a container ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_signal_is_heeded_as_process_1(undisturbed: Path, tmp_path: Path, name: str, code: int) -> None:
    """As process 1 a signal without a handler is ignored, so a run that did not ask for it would never stop."""
    isolate = ["unshare", "--fork", "--pid", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*isolate, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a process namespace")
    output_dir = tmp_path / "run"
    process = subprocess.Popen(
        [*isolate, sys.executable, "-W", "ignore", small_run.__file__]
        + [str(output_dir), "--workers", "1", "--die", "forward:11:WAIT"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        status = Path(f"/proc/{children[0]}/status").read_text(encoding="utf-8")
        assert re.search(r"NSpid:\s+\d+\s+1\n", status)
        os.kill(int(children[0]), signal.Signals[name])
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert f"{name}: the state is saved up to iteration 11" in errors
    small_run.build(output_dir, resume=True).run()
    assert_same(final_state(output_dir), final_state(undisturbed))


# --- why the network is deterministic -------------------------------------------------------------------------------


def pooled_once(device: str) -> None:
    """Each voxel is the maximum of at most one window: its gradient is one number, no sum whose order could vary."""
    # few values, hence many ties
    image = torch.randint(0, 3, (2, 3, 8, 12, 12), generator=torch.Generator().manual_seed(1)).float().to(device)
    image.requires_grad_()
    pooled, places = torch.nn.functional.max_pool3d(image, 2, return_indices=True)
    for one in places.flatten(2).flatten(0, 1):
        assert len(one.unique()) == len(one)
    gradient = torch.rand_like(pooled)
    expected = torch.zeros_like(image).flatten(2).scatter_(2, places.flatten(2), gradient.flatten(2)).view_as(image)
    for _ in range(10):
        (found,) = torch.autograd.grad(pooled, image, gradient, retain_graph=True)
        assert torch.equal(found, expected)
    # with overlap a voxel may be the maximum of several
    _, places = torch.nn.functional.max_pool3d(image, 2, stride=1, return_indices=True)
    assert len(places[0, 0].unique()) < places[0, 0].numel()


def test_max_pool_without_overlap_has_one_backward() -> None:
    pooled_once("cpu")


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@CUDA
def test_max_pool_without_overlap_has_one_backward_on_cuda() -> None:
    pooled_once("cuda")


@CUDA
@pytest.mark.parametrize(("phase", "number", "workers"), [("backward", 5, 0), ("forward", 14, 2), ("validation", 2, 0)])
def test_run_goes_on_bit_for_bit_on_cuda(tmp_path: Path, phase: str, number: int, workers: int) -> None:
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    seeds.configure_torch(deterministic=True)
    try:
        assert not torch.backends.cudnn.benchmark
        whole, stopped = tmp_path / "whole" / "run", tmp_path / "stopped" / "run"
        small_run.build(whole, device="cuda").run()
        run_until(stopped, phase, number, device="cuda")
        small_run.build(stopped, resume=True, workers=workers, device="cuda").run()
        assert_same(final_state(stopped), final_state(whole))
        assert small_run.seen(stopped) == small_run.seen(whole)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
