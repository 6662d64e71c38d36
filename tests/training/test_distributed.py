"""Several processes as one training: what they share, agree on and leave to the first; on CPUs, with gloo."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import small_run
import torch
import yaml
from ignite.engine import Engine
from monai.bundle import ConfigParser, create_workflow
from monai.data import set_track_meta
from point_tables import point_table
from small_run import assert_same
from torch import nn

from luna16_monai.dataset.candidates import CandidateList
from luna16_monai.networks.backends import share_batch_norm
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.tables.points import read_points
from luna16_monai.training import distributed as ranks
from luna16_monai.training import seeds
from luna16_monai.training.distributed import SharedBuffers
from luna16_monai.training.handlers import FiniteLoss
from luna16_monai.training.metrics import CandidateScores
from luna16_monai.training.seeds import EpochSeeds

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "nodule_classification" / "configs"
FILES = [str(CONFIGS / "train.yaml"), str(CONFIGS / "multi_gpu_train.yaml")]
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


# --- alone ----------------------------------------------------------------------------------------------------------


def test_one_process_gets_back_what_it_gave():
    norm = nn.BatchNorm1d(2)
    norm.running_mean += 3
    ranks.copy_buffers(norm)
    assert norm.running_mean.tolist() == [3, 3]
    ranks.finish()
    assert (ranks.greatest(7), ranks.from_first(b"all"), ranks.from_first(None)) == (7, b"all", None)


def test_start_refuses_a_process_that_torchrun_did_not_start(monkeypatch):
    for name in ranks.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"^RANK, LOCAL_RANK, .* not set: .*torchrun --nproc_per_node=N .*leave it out"
    ):
        ranks.start("cpu")


@pytest.mark.parametrize(
    ("device", "found", "message"),
    [
        ("cuda:1", 8, "device cuda:1: each process takes the GPU of its own number: give cuda or cpu"),
        ("cuda", 3, r"no GPU for process 3 \(3 found\): use --nproc_per_node=3 or fewer"),
    ],
)
def test_start_refuses_a_device_that_is_not_every_process_s_own(monkeypatch, device, found, message):
    for name in ranks.TORCHRUN:
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(ValueError, match=message):
        ranks.start(device)


def test_meet_gives_each_start_a_name_of_its_own():
    """Three starts on one store, which keeps what the dead of a start before have left."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=60))

    def start(living: Sequence[int]) -> list[str]:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: ranks.meet(store, rank, 3), living))

    first = start([2, 1, 0])
    store.set("caller 1", "of one that called and died")
    second, third = start([0, 2, 1]), start([1, 0, 2])
    assert [len(set(names)) for names in (first, second, third)] == [1, 1, 1]
    assert len({first[0], second[0], third[0]}) == 3


def test_restarted_is_what_torchrun_tells(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert not ranks.restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert ranks.restarted()


def test_share_batch_norm_is_for_cuda():
    network = nn.Sequential(nn.BatchNorm3d(1), nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    names = list(network.state_dict())
    assert share_batch_norm(network, "cpu", enabled=False) is network
    assert type(network[0]) is nn.BatchNorm3d
    with pytest.raises(ValueError, match="sync_batch_norm on device cpu: it works on CUDA alone"):
        share_batch_norm(network, "cpu")
    with pytest.raises(ValueError, match="sync_batch_norm maybe: give true, false, or null"):
        share_batch_norm(network, "cuda", enabled="maybe")
    # left to the network: one with the tail's alone needs none
    assert share_batch_norm(network, "cpu", enabled=None) is network
    plain = share_batch_norm(NoduleNet((16, 16, 16)), "cuda", enabled=None)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in plain.modules())
    recipes = share_batch_norm(NoduleNet((16, 16, 16), norm="BATCH"), "cuda", enabled=None)
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in recipes.modules()) == 9
    shared = share_batch_norm(network, "cuda")
    assert [type(layer) for layer in shared] == [nn.SyncBatchNorm, nn.Conv3d, nn.SyncBatchNorm]
    assert list(shared.state_dict()) == names


# --- the overlay ----------------------------------------------------------------------------------------------------


def test_multi_gpu_train_yaml_has_no_steps_of_its_own():
    single, several = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in FILES)
    assert several["several_processes"] is True
    assert "several_processes" not in single
    assert not {"initialize", "training", "run"} & set(several)


@pytest.mark.parametrize(("power", "rate"), [(None, 2e-3), (1.0, 4e-3), (0.0, 1e-3)])
def test_learning_rate_follows_the_global_batch(power, rate):
    """Four processes at 1e-3: twice the rate by the square-root rule, four times by the linear one."""
    parser = ConfigParser(ConfigParser.load_config_files(FILES))
    parser["processes"] = 4
    if power is not None:
        parser["learning_rate_power"] = power
    assert parser.get_parsed_content("scaled_learning_rate") == pytest.approx(rate)
    assert parser["optimizer#lr"] == parser["lr_scheduler#max_lr"] == "@scaled_learning_rate"


def test_ranks_of_the_bundle_draw_one_process_s_epoch(phantom_dir, store_dir):
    def drawn(files: list[str], rank: int, processes: int) -> list[tuple[int, int]]:
        parser = ConfigParser(ConfigParser.load_config_files(files))
        settings = {"dataset_dir": phantom_dir, "store_dir": store_dir, "samples_per_epoch": 60, "validation_stride": 3}
        parser.update({key: value if isinstance(value, int) else str(value) for key, value in settings.items()})
        if len(files) == 2:
            parser.update({"train#sampler#rank": rank, "processes": processes})
        sampler = parser.get_parsed_content("train#sampler")
        sampler.set_position(1)
        return list(sampler)

    alone = drawn(FILES[:1], 0, 1)
    shares = [drawn(FILES, rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [20, 20, 20]
    assert Counter(pair for share in shares for pair in share) == Counter(alone)
    # in its order too, so that a step of all ranks is a step of one process with three times the batch
    assert [pair for step in zip(*shares, strict=True) for pair in step] == alone
    # the seeds of the augmentation are among the pairs: all of them differ
    assert len({seed for _, seed in alone}) == 60


# --- in two processes -----------------------------------------------------------------------------------------------


def in_two_processes(rank: int, folder: str) -> None:
    """What each rank finds; the test looks at it afterwards."""
    found: dict[str, Any] = {"greatest": ranks.greatest([15, 2][rank])}
    told = [ranks.from_first(content if rank == 0 else None) for content in (b"\0\1", b"", None)]
    found["from_first"] = [None if content is None else list(content) for content in told]

    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 5)
    norm.num_batches_tracked.fill_(rank + 7)
    evaluator = Engine(lambda *_: None)
    SharedBuffers(norm).attach(evaluator)  # type: ignore[arg-type]
    evaluator.run([0])
    found["buffers"] = norm.state_dict()

    parts = [(torch.rand(2, 2), torch.tensor([rank, 1]), torch.tensor([4 * rank, 4 * rank + 1])) for _ in range(2)]
    whole, first, second = CandidateScores(), CandidateScores(), CandidateScores()
    for metric, seen in ((whole, parts), (first, parts[:1])):
        metric.reset()
        for part in seen:
            metric.update(part)
    kept = first.state_dict()
    second.load_state_dict(kept)
    second.update(parts[1])
    found["kept"] = [part[2].tolist() for part in kept["ranks"]]
    found["scores"] = (second.compute(), whole.compute())

    trainer = Engine(lambda *_: {"loss": torch.tensor(math.nan if rank else 0.5)})
    candidates = CandidateList(point_table([(f"s{row}", float(row), 0.0, 0.0, 0.0) for row in range(8)]))
    FiniteLoss(folder, candidates).attach(trainer)  # type: ignore[arg-type]
    try:
        trainer.run([{"candidate": torch.tensor([2 * rank, 2 * rank + 1])}])
    except FloatingPointError as error:
        found["stopped"] = str(error)

    trainer = Engine(lambda *_: {"drawn": torch.rand(1).item()})
    EpochSeeds(type("Sampler", (), {"set_position": lambda *_: None})(), 3, 1).attach(trainer)  # type: ignore[arg-type]
    trainer.run([0])
    found["drawn"] = trainer.state.output["drawn"]
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_agree(tmp_path):
    idist.spawn("gloo", in_two_processes, (str(tmp_path),), nproc_per_node=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    drawn = [found.pop("drawn") for found in (one, other)]
    assert_same(one, other)
    assert one["greatest"] == 15
    assert one["from_first"] == [[0, 1], [], None]
    assert one["buffers"]["running_mean"].tolist() == [5, 5]
    assert one["buffers"]["num_batches_tracked"] == 7
    # what each rank had seen is kept apart, and goes back to it
    assert one["kept"] == [[0, 1], [4, 5]]
    gone_on, undisturbed = one["scores"]
    assert gone_on == undisturbed
    # the loss of rank 1 alone is NaN: both stop, and its batch is listed, not that of rank 0
    assert one["stopped"].startswith("the loss is nan in iteration 1: the batch is listed in ")
    told = json.loads((tmp_path / "nonfinite_loss.json").read_text(encoding="utf-8"))
    assert [row["series_uid"] for row in told["batch"]] == ["s2", "s3"]
    # dropout differs between the ranks, and rank 0's is that of a process alone
    seeds.seed_iteration(3, 1)
    assert drawn[0] == torch.rand(1).item() != drawn[1]


@pytest.fixture
def state() -> Iterator[None]:
    """Put back what a bundle changes for its whole process."""
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def bundle_program(
    output_dir: Path, settings: dict[str, Any], more: Sequence[Path] = (), restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """The bundle's training in two processes, with further config files on top."""
    config = str([*FILES, *map(str, more)])
    words = ["-m", "monai.bundle", "run", "training", "--config_file", config, "--output_dir", str(output_dir)]
    words += [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    command = [*TORCHRUN, f"--max-restarts={restarts}", *words]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", cwd=output_dir.parent, env=environment(), timeout=500
    )


def test_bundle_trains_in_two_processes_and_validates_as_one(state, phantom_dir, store_dir, tmp_path):
    """From the weights it leaves, one process gets the same scores; and nothing was written twice."""
    run = tmp_path / "run"
    # stride 4 holds out 35 candidates, so one comes twice to make the shares equal
    data = {"dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "device": "cpu", "validation_stride": 4}
    settings = {**data, "max_epochs": 1, "samples_per_epoch": 16, "batch_size": 4, "num_workers": 0}
    done = bundle_program(run, settings)
    assert done.returncode == 0, done.stderr[-3000:]

    # as a training validates: without views
    evaluation = {**data, "run_dir": str(run), "output_dir": str(tmp_path / "alone"), "num_workers": 0, "views": 1}
    config = str(CONFIGS / "evaluate.yaml")
    flow = create_workflow(config_file=config, workflow_type="inference", logging_file=False, **evaluation)
    flow.initialize()
    flow.run()
    several, alone = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "alone"))
    assert several["candidates"] == alone["candidates"] == 35
    for name in ("cpm", "roc_auc", "average_precision", "accuracy", "true_positives", "false_positives", "nodules"):
        assert several[name] == alone[name], name
    for name in ("loss", "loss_positive", "loss_negative"):
        assert several[name] == pytest.approx(alone[name], rel=1e-6)
    one, other = (read_points(folder / "submission.csv", "probability") for folder in (run, tmp_path / "alone"))
    assert one.points_xyz.tolist() == other.points_xyz.tolist()
    assert one.values.tolist() == pytest.approx(other.values.tolist(), abs=1e-6)

    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (record["processes"], record["settings"]["processes"]) == (2, 2)
    # 1e-3 times the square root of 2
    assert record["settings"]["scaled_learning_rate"] == pytest.approx(1.414e-3, rel=1e-3)
    assert len(list(run.glob("events*"))) == len(list((run / "validation").glob("events*"))) == 1
    # 16 cutouts in 2 processes of 4: two iterations
    assert [path.name[:19] for path in (run / "checkpoints").iterdir()] == ["iteration_000000002"]
    for line in ("training in 2 processes (gloo)", "epoch 1 training: loss", "epoch 1 validation: loss"):
        assert done.stderr.count(line) == 1, line


@pytest.mark.slow
def test_bundle_goes_on_after_a_killed_rank_and_ends_the_same(phantom_dir, store_dir, tmp_path):
    """Rank 1 dies in the second epoch's second of three iterations, one after the last checkpoint."""
    settings = {"dataset_dir": str(phantom_dir), "store_dir": str(store_dir), "device": "cpu", "validation_stride": 4}
    settings |= {
        "max_epochs": 2,
        "samples_per_epoch": 24,
        "batch_size": 4,
        "num_workers": 0,
        "checkpoint_iterations": 2,
    }
    dies = tmp_path / "dies.yaml"
    dies.write_text("+train#handlers:\n- {_target_: small_run.DiesOnce, rank: 1, iteration: 5}\n", encoding="utf-8")
    straight = bundle_program(tmp_path / "straight", settings)
    assert straight.returncode == 0, straight.stderr[-3000:]
    killed = bundle_program(tmp_path / "killed", settings, [dies], restarts=1)
    assert killed.returncode == 0, killed.stderr[-3000:]
    assert "going on after iteration 4" in killed.stderr
    one, other = (tmp_path / name for name in ("straight", "killed"))
    for name in ("history.csv", "submission.csv", "metrics.json"):
        assert (one / name).read_text(encoding="utf-8") == (other / name).read_text(encoding="utf-8"), name
    states = [
        torch.load(next(path.glob("checkpoints/iteration_000000006_*")), weights_only=True) for path in (one, other)
    ]
    # the one has the handler that kills
    assert states[0].pop("config") != states[1].pop("config")
    assert_same(*states)


# --- ends of all kinds ----------------------------------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[None]:
    """One thread, as the processes have, and MONAI's tracking as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_track_meta(True)


def program(output_dir: Path, *words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    output_dir.parent.mkdir(exist_ok=True)
    command = [*TORCHRUN, f"--max-restarts={restarts}", small_run.__file__, str(output_dir), *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=500)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that was never stopped."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = program(output_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    return output_dir


def newest(output_dir: Path) -> dict[str, Any]:
    """The last state, read by a process alone."""
    state = small_run.build(output_dir, resume=True).load_newest()
    assert state is not None
    return state


def assert_same_run(one: Path, other: Path) -> None:
    assert_same(newest(one), newest(other))
    for rank in (0, 1):
        assert small_run.seen(one, rank) == small_run.seen(other, rank)


@pytest.mark.slow
def test_undisturbed_run_of_two_processes_sees_each_its_own(undisturbed, plain):
    # 30 samples: 15 for each rank, in four batches of up to 4, three epochs
    expected = [f"loss {iteration}" for iteration in range(1, 13)]
    losses = []
    for rank in (0, 1):
        seen = small_run.seen(undisturbed, rank)
        losses.append({key: value for key, value in seen.items() if key.startswith("loss")})
        assert list(losses[rank]) == expected
    assert all(losses[0][key] != losses[1][key] for key in expected)
    scores = [{k: v for k, v in small_run.seen(undisturbed, rank).items() if "loss " not in k} for rank in (0, 1)]
    assert scores[0] == scores[1]
    kept = newest(undisturbed)
    assert not [name for name in kept["network"] if name.startswith("module.")]
    assert [len(part[0]) for part in kept["train_scores"]["ranks"]] == [15, 15]


@pytest.mark.slow
@pytest.mark.parametrize(("die", "rank"), [("backward:6", 1), ("forward:8", 0), ("validation:3", 1)])
def test_killed_rank_is_started_again_and_the_run_ends_the_same(undisturbed, plain, tmp_path, die, rank):
    """A checkpoint every third iteration, so one or two iterations are done anew."""
    output_dir = tmp_path / "run"
    done = program(output_dir, "--die", die, "--rank", str(rank), restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after iteration" in done.stderr
    assert_same_run(output_dir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("die", "saved"), [("forward:7:SIGTERM", 7), ("validation:1:SIGTERM", 3)])
def test_signal_to_one_rank_stops_all_with_the_state_saved(undisturbed, plain, tmp_path, die, saved):
    output_dir = tmp_path / "run"
    stopped = program(output_dir, "--die", die, "--rank", "1")
    assert stopped.returncode == 1
    assert re.search(rf"SIGTERM: the state is saved up to iteration {saved}; .*--resume true", stopped.stderr)
    assert re.search(r"exitcode +: 143", stopped.stderr)
    done = program(output_dir, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(output_dir, undisturbed)


@pytest.mark.slow
def test_signal_to_torchrun_and_to_its_processes_at_once_saves_the_state(undisturbed, plain, tmp_path):
    """As a scheduler sends it: each process gets two, its own and the one that torchrun hands on."""
    output_dir = tmp_path / "run"
    command = [*TORCHRUN, small_run.__file__, str(output_dir), "--die", "forward:7:WAIT"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        assert len(children) == 2
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        process.terminate()
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert "SIGTERM: the state is saved up to iteration 7" in errors
    done = program(output_dir, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(output_dir, undisturbed)


@pytest.mark.slow
def test_loss_that_is_not_finite_on_one_rank_stops_all(undisturbed, plain, tmp_path):
    output_dir = tmp_path / "run"
    stopped = program(output_dir, "--die", "loss:8:NAN", "--rank", "1")
    assert stopped.returncode == 1
    assert "luna16: the loss is nan in iteration 8: the batch is listed in " in stopped.stderr
    assert newest(output_dir)["iteration"] == 6
    assert len(json.loads((output_dir / "nonfinite_loss.json").read_text(encoding="utf-8"))["batch"]) == 3
    done = program(output_dir, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(newest(output_dir), newest(undisturbed))


@pytest.mark.slow
def test_run_of_two_processes_is_not_continued_by_one(plain, tmp_path):
    output_dir = tmp_path / "run"
    assert program(output_dir, "--die", "forward:7:SIGTERM").returncode == 1
    alone = small_run.build(output_dir, resume=True)
    with pytest.raises(ValueError, match="another config: processes was 2, is null"):
        alone.run()
    alone.resume_changed = True
    with pytest.raises(ValueError, match=r"had 4 iterations an epoch, now there are 8: go on with its samples_per_epo"):
        alone.run()
