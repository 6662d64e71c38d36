"""The page docs/reuse.md: every file on it is written, every command run, and what it changes has changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fire
import monai.bundle
import monai.bundle.scripts
import pytest
import torch
from monai.losses import FocalLoss
from monai.networks.nets import DenseNet121, ResNet
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandFlipd, RandGaussianSmoothd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luna16_monai.cli.main import main
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.preparation import Preparation
from luna16_monai.store.prepare import prepare
from luna16_monai.tables.points import read_points

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reuse.md").read_text(encoding="utf-8")
# one short epoch with one of the three scans held out, whatever the page says of these
SMALL = {"device": "cpu", "max_epochs": 1, "samples_per_epoch": 4, "batch_size": 4, "num_workers": 0}
SMALL |= {"validation_stride": 8, "logging_file": False}
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\w+\.(?:yaml|py))\b")


def sections(page: str) -> dict[str, list[tuple[str, str]]]:
    """The fenced blocks under each heading, as (language, content)."""
    start, *parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    titles, texts = ["start", *parts[::2]], [start, *parts[1::2]]
    found = {title: FENCED.findall(text) for title, text in zip(titles, texts, strict=True)}
    return {title: blocks for title, blocks in found.items() if blocks}


SECTIONS = sections(PAGE)


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, as words; variables are filled in when they run."""
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def folder(phantom_dir, tmp_path_factory) -> Path:
    """The project's folder as make demo leaves it, with the page's files in it; three scans with few candidates."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "bundles", folder / "bundles")
    data = folder / "data" / "phantom"
    others = [f"subset{number}" for number in range(3, 10)]
    shutil.copytree(phantom_dir, data, ignore=shutil.ignore_patterns(*others, "candidates_V2.csv", "seriesuids.csv"))
    uids = sorted(path.stem for path in data.rglob("*.mhd"))
    (data / "seriesuids.csv").write_text("".join(f"{uid}\n" for uid in uids), encoding="utf-8")
    header, *rows = (phantom_dir / "candidates_V2.csv").read_text(encoding="utf-8").splitlines()
    kept = [header]
    for uid in uids:
        for label, most in (("1", 2), ("0", 3)):
            kept += [row for row in rows if row.startswith(uid) and row.endswith(f",{label}")][:most]
    (data / "candidates_V2.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    recipe = Preparation.read(ROOT / "bundles" / "nodule_classification" / "configs" / "prepare.yaml")
    prepare(data, folder / "data" / "store", recipe, workers=1, progress=False)
    for blocks in SECTIONS.values():
        for language, content in blocks:
            if language != "bash" and (name := NAMED.match(content)):
                (folder / name[1]).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def started(folder, monkeypatch) -> Iterator[list[Any]]:
    """The workflows that were started, kept small, in the project's folder; what a bundle changes is put back."""
    workflows: list[Any] = []
    create = monai.bundle.scripts.create_workflow

    def create_small(**settings: Any) -> Any:
        training = "inference" not in str(settings.get("config_file"))
        # one view of a cutout, as the validation scores it
        scoring = {"device": "cpu", "logging_file": False, "views": 1}
        workflows.append(create(**{**settings, **(SMALL if training else scoring)}))
        return workflows[-1]

    for module in (monai.bundle, monai.bundle.scripts):
        monkeypatch.setattr(module, "create_workflow", create_small)
    for name in ("LUNA16_DATA", "LUNA16_STORE", "LUNA16_RUNS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    # as python -m has it
    monkeypatch.syspath_prepend(folder)
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield workflows
    sys.excepthook = hook
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def run(words: list[str]) -> None:
    """One command, in this process, through the same parser of arguments as in a process of its own."""
    words = [os.path.expandvars(word) for word in words]
    match words:
        case ["export", *pairs]:
            os.environ.update(pair.split("=", 1) for pair in pairs)
        case ["cd", where]:
            os.chdir(where)
            os.environ["PWD"] = os.getcwd()
        case ["luna16", *rest]:
            assert main([*rest, *(["--quiet", "--workers", "1"] if rest[0] == "prepare" else [])]) == 0
        case ["python", "-m", "monai.bundle", "run", *rest]:
            fire.Fire({"run": monai.bundle.run}, command=["run", *rest])
        case _:
            raise AssertionError(f"a command that this test does not know: {words}")


def parsed(workflow: Any, key: str) -> Any:
    return workflow.parser.get_parsed_content(key)


def settings_of(run_dir: str) -> dict[str, Any]:
    return json.loads(Path("runs", run_dir, "run.json").read_text(encoding="utf-8"))["settings"]


# --- what each section promises to change ---------------------------------------------------------------------------


def check_start(workflows: list[Any]) -> None:
    assert Path("my_bundle/configs/train.yaml").is_file()


def check_settings(workflows: list[Any]) -> None:
    assert settings_of("slower")["learning_rate"] == 3e-4
    # 4 cutouts at 1 to 10: round(4 / 11) is none, so all are negatives
    assert parsed(workflows[0], "train#sampler").counts.tolist() == [0, 4]


def check_network(workflows: list[Any]) -> None:
    resnet, densenet, inference = workflows
    assert type(parsed(resnet, "network_def")) is ResNet
    assert type(parsed(densenet, "network_def")) is type(parsed(inference, "network_def")) is DenseNet121
    for name, layer in (("resnet10", "layer4.0.conv1.weight"), ("densenet", "class_layers.out.weight")):
        assert layer in torch.load(Path("runs", name, "model.pt"), weights_only=True)
    given = read_points(Path("data/phantom/candidates_V2.csv"), "class")
    scored = read_points(Path("runs/densenet/all.csv"), "probability")
    held_out = read_points(Path("runs/densenet/submission.csv"), "probability")
    assert len(scored) == len(given)
    # the same network as in the validation, so the same probabilities
    where = {tuple(point): value for point, value in zip(scored.points_xyz.tolist(), scored.values, strict=True)}
    again = [where[tuple(point)] for point in held_out.points_xyz.tolist()]
    assert again == pytest.approx(held_out.values.tolist(), abs=1e-4)


def check_changed_network(workflows: list[Any]) -> None:
    network = parsed(workflows[0], "network_def")
    assert type(network) is NoduleNet
    assert sum(isinstance(part, torch.nn.MaxPool3d) for part in network.modules()) == 3
    assert {part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}
    # the tail and two a block
    assert sum(isinstance(part, torch.nn.BatchNorm3d) for part in network.modules()) == 7
    assert network.head.in_features == 64 * 4 * 6 * 6


def check_spacing(workflows: list[Any]) -> None:
    spaced, small = workflows
    store = parsed(spaced, "store")
    assert store.volume(store.series_uids[0]).geometry.spacing_zyx == pytest.approx((1, 1, 1))
    assert settings_of("store_1mm")["spacing_zyx"] == [1, 1, 1]
    network = parsed(small, "network_def")
    assert network.head.in_features == 64 * 1 * 2 * 2
    item = parsed(small, "train#deterministic_transforms")[0](parsed(small, "split").train[0])
    assert item["image"].shape == (1, 36, 54, 54)


def check_augmentation(workflows: list[Any]) -> None:
    gentler, plain, scanners = workflows
    *flips, affine, noise = parsed(gentler, "train#random_transforms")
    assert [flip.prob for flip in flips] == [0.0, 0.25, 0.75]
    grid = affine.rand_affine.rand_affine_grid
    assert (list(grid.rotate_range), list(grid.scale_range)) == ([0.5, 0.0, 0.0], [0.1, 0.1, 0.1])
    assert list(grid.translate_range) == [0.0, 4.0, 4.0]
    assert noise.rand_gaussian_noise.std == 40
    assert len(parsed(gentler, "train#augmentation").transforms) == 3  # still one step, and the two final ones
    assert parsed(plain, "train#random_transforms") == []
    kinds = [type(part) for part in parsed(scanners, "train#augmentation").transforms]
    assert kinds[0] is RandFlipd
    assert kinds[5] is RandGaussianSmoothd
    assert len(kinds) == 9


def check_loss(workflows: list[Any]) -> None:
    smoothed, focal = workflows
    assert parsed(smoothed, "loss").label_smoothing == 0.05
    assert type(parsed(focal, "train#trainer").loss_function) is FocalLoss


def check_optimizer(workflows: list[Any]) -> None:
    trainer = parsed(workflows[0], "train#trainer")
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.defaults["weight_decay"] == 0.01
    scheduler = parsed(workflows[0], "lr_scheduler")
    assert type(scheduler) is WarmupCosineSchedule
    # the whole run of one batch is a warm-up from 0 to the rate of the command line
    assert (scheduler.last_epoch, trainer.optimizer.param_groups[0]["lr"]) == (1, 0.01)


def check_key_metric(workflows: list[Any]) -> None:
    def told(name: str) -> dict[str, Any]:
        return json.loads(Path("runs", name, "metrics.json").read_text(encoding="utf-8"))

    assert told("by_cpm")["key_metric"] == "cpm"
    partial = told("partial")
    assert partial["key_metric"] == "partial_roc_auc"
    assert 0 <= partial["partial_roc_auc"] <= 1
    assert "average_precision" in partial


def check_handler(workflows: list[Any]) -> None:
    scalars = EventAccumulator("runs/clipped").Reload()
    (logged,) = scalars.Scalars("learning_rate")
    # as the scheduler left it after the only batch
    assert logged.value == pytest.approx(parsed(workflows[0], "optimizer").param_groups[0]["lr"])
    clip = parsed(workflows[0], "train#handlers")[-1]
    assert type(clip).__name__ == "ClipGradient"
    assert clip.clipped == 1


def check_building_on(workflows: list[Any]) -> None:
    (wide,) = workflows
    assert parsed(wide, "network_def").arguments["channels"] == [16, 32, 64]
    assert settings_of("wide")["network_def"]["norm"] is None, "what the file does not say is that of the other"
    added = parsed(wide, "train#handlers")[-1]
    assert (type(added).__name__, added.tag_name) == ("TensorBoardStatsHandler", "learning_rate")
    assert len(EventAccumulator("runs/wide").Reload().Scalars("learning_rate")) == 1


def check_file(workflows: list[Any]) -> None:
    mine, own_folder = workflows
    assert type(parsed(mine, "loss")) is FocalLoss
    # 4 cutouts at 1 to 3
    assert parsed(mine, "train#sampler").counts.tolist() == [1, 3]
    assert Path(os.environ["LUNA16_RUNS"], "nodule_classification", "model.pt").is_file()
    assert own_folder.bundle_root == "."
    assert not Path("runs").exists(), "nothing is left in the bundle's folder"


def check_python(workflows: list[Any]) -> None:
    assert Path("runs/from_python/model.pt").is_file()


CHECKS: dict[str, Callable[[list[Any]], None]] = {
    "start": check_start,
    "Settings": check_settings,
    "A MONAI network": check_network,
    "The design's network, changed": check_changed_network,
    "The spacing, and the size of the cutout": check_spacing,
    "The augmentation": check_augmentation,
    "The loss": check_loss,
    "The optimizer and its schedule": check_optimizer,
    "The score that decides": check_key_metric,
    "A handler": check_handler,
    "A config that builds on another": check_building_on,
    "A file of settings": check_file,
    "From Python": check_python,
}


def test_every_section_of_the_page_has_its_check():
    assert set(SECTIONS) == set(CHECKS)
    named = [name[1] for blocks in SECTIONS.values() for _, content in blocks if (name := NAMED.match(content))]
    assert len(named) == len(set(named)), "a name is given to two files"
    used = " ".join(content for blocks in SECTIONS.values() for _, content in blocks)
    for name in named:
        stem = name.removesuffix(".py")
        assert len(re.findall(rf"\b{re.escape(stem)}\b", used)) > 1, f"{name} is used by no command"


def marks(title: str) -> list[pytest.MarkDecorator]:
    """MONAI's networks take a cutout some fifteen times as long; test_bundle.py trains one for make test."""
    return [pytest.mark.slow] if title == "A MONAI network" else []


@pytest.mark.parametrize("title", [pytest.param(title, marks=marks(title)) for title in SECTIONS])
def test_section_of_the_page_does_what_it_says(title, started):
    for language, content in SECTIONS[title]:
        if language == "bash":
            for words in commands(content):
                run(words)
        elif not NAMED.match(content):
            exec(compile(content, title, "exec"), {"__name__": "__main__"})
    CHECKS[title](started)
