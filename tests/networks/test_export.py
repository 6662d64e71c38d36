"""The network in other formats: the same logits and probabilities, at any batch size."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from luna16_monai import __version__
from luna16_monai.bundle.folders import bundle_dir, copy_bundle
from luna16_monai.cli.main import main
from luna16_monai.networks.backends import WithProbabilities, import_openvino
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.runs.seen import read_seen

ROOT = Path(__file__).parents[2]
SHAPE = (32, 48, 48)
Runner = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray | None]]


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, NoduleNet], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    files = {"torchscript": folder / "a.ts", "onnx": folder / "a.onnx", "openvino": folder / "a.xml"}
    files["pt2"] = folder / "a.pt2"
    for kind, path in files.items():
        assert main(["export", "--format", kind, "--output", str(path), "--weights", str(trained[0])]) == 0
    return files


def runner(kind: str, path: Path) -> Runner:
    if kind == "torchscript":
        script = torch.jit.load(path)
        return lambda image: (script(image).detach().numpy(), None)
    if kind == "pt2":
        program = torch.export.load(path).module()
        return lambda image: tuple(part.detach().numpy() for part in program(image))
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert [out.name for out in session.get_outputs()] == ["logits", "probabilities"]
        return lambda image: tuple(session.run(None, {"image": image.numpy()}))
    compiled = import_openvino().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: tuple(compiled({"image": image.numpy()})[name] for name in ("logits", "probabilities"))


def check(kind: str, path: Path, network: NoduleNet, image: torch.Tensor) -> None:
    with torch.no_grad():
        logits, probabilities = (part.numpy() for part in WithProbabilities(network)(image))
    found = runner(kind, path)(image)
    atol = 1e-5 if kind == "pt2" else 1e-4
    np.testing.assert_allclose(found[0], logits, atol=atol)
    if found[1] is not None:
        np.testing.assert_allclose(found[1], probabilities, atol=atol)


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_export_takes_weights_as_other_programs_wrap_them(trained, tmp_path, kind):
    """As DistributedDataParallel names them, in a dict of more."""
    state = torch.load(trained[0], weights_only=True)
    wrapped, output = tmp_path / "wrapped.pt", tmp_path / "a.out"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, wrapped)
    assert main(["export", "--format", kind, "--output", str(output), "--weights", str(wrapped)]) == 0
    check(kind, output, trained[1], torch.rand((2, 1, *SHAPE)) * 2000 - 1000)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino", "pt2"])
def test_exports_equal_torch_on_random_cutouts(exported, trained, kind, batch):
    generator = torch.Generator().manual_seed(batch)
    check(kind, exported[kind], trained[1], torch.rand((batch, 1, *SHAPE), generator=generator) * 2000 - 1000)


@pytest.mark.parametrize("kind", ["torchscript", "onnx", "openvino", "pt2"])
def test_exports_equal_torch_on_real_cutouts(exported, trained, kind, shared):
    files = sorted(shared("data/cutouts").glob("*.npy"))
    assert len(files) == 3
    images = torch.stack([torch.from_numpy(np.load(path)).float().clamp(-1000, 1000) for path in files])
    check(kind, exported[kind], trained[1], images[:, None])


LOAD = """
import sys
for name in ("luna16_monai", "monai", "ignite"):
    sys.modules[name] = None  # an import of it fails
import numpy, torch
extra = {"classes": ""}
program = torch.export.load("a.pt2", extra_files=extra).module()
for batch in (1, 5):
    numpy.save(f"{batch}.npy", program(torch.full((batch, 1, 32, 48, 48), -600.0))[1].detach().numpy())
print(extra["classes"])
"""


def test_pt2_runs_in_a_process_without_this_package(exported, trained, tmp_path):
    (tmp_path / "a.pt2").write_bytes(exported["pt2"].read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '["non-nodule", "nodule"]\n'
    with torch.no_grad():
        expected = torch.softmax(trained[1](torch.full((1, 1, *SHAPE), -600.0)), dim=1).numpy()
    for batch in (1, 5):
        np.testing.assert_allclose(np.load(tmp_path / f"{batch}.npy"), np.repeat(expected, batch, axis=0), atol=1e-5)


def test_torchscript_holds_metadata_and_config(exported):
    extra = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(exported["torchscript"], _extra_files=extra)
    assert json.loads(extra["metadata.json"])["name"] == "Lung nodule classification"
    assert json.loads(extra["inference.json"])["shape_zyx"] == list(SHAPE)


def test_onnx_says_what_it_takes(exported):
    import onnx

    about = {one.key: one.value for one in onnx.load(exported["onnx"]).metadata_props}
    assert about["spacing_zyx_mm"] == "[1.25, 0.7, 0.7]"
    assert about["classes"] == '["non-nodule", "nodule"]'


@pytest.mark.parametrize("kind", ["torchscript", "pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_export_prints_its_json_and_nothing_else(kind, tmp_path):
    words = ["export", "--json", "--format", kind, "--output", str(tmp_path / "model")]
    # a process of its own: who prints what is settled when a package is first imported
    done = subprocess.run(
        [sys.executable, "-m", "luna16_monai", *words], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == kind
    assert done.stderr == ""
    # the bundle's weights bring along what they were trained on
    seen = read_seen(tmp_path / "model")
    assert seen is not None
    assert seen == read_seen(bundle_dir() / "models" / "model.pt")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--format", "openvino", "--output", "a.bin"], "name the one that ends in .xml"),
        (["--format", "onnx", "--output", "a.onnx", "--weights", "none.pt"], "no weights none.pt"),
        (["--format", "onnx", "--output", "a.onnx", "--bundle", "nowhere"], "nowhere"),
    ],
)
def test_export_refuses_wrong_input(more, told, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = [] if "--weights" in more or "--bundle" in more else ["--weights", str(trained[0])]
    assert main(["export", *more, *weights]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the bundle, written out and in the wheel ------------------------------------------------------------------------


def test_bundle_is_written_out_once(tmp_path, capsys):
    assert main(["bundle", "nodule_classification", "--output", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "configs" / "train.yaml").is_file()
    assert main(["bundle", "nodule_classification", "--output", str(tmp_path / "mine")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["bundle", "no_such", "--output", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_copy_bundle_copies_every_file(tmp_path):
    copy_bundle(bundle_dir(), tmp_path / "copy")
    names = {str(path.relative_to(bundle_dir())) for path in bundle_dir().rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()} == {
        name for name in names if "__pycache__" not in name
    }


def test_wheel_brings_the_command_and_the_bundles(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("luna16_monai-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    in_tree = {path.relative_to(ROOT) for part in ("bundles", "luna16_monai") for path in (ROOT / part).rglob("*.*")}
    in_tree |= {path.relative_to(ROOT) for path in (ROOT / "bundles").glob("*/LICENSE")}
    wanted = {str(path) for path in in_tree if (ROOT / path).is_file() and "__pycache__" not in path.parts}
    wanted = {name if name.startswith("luna16_monai/") else f"luna16_monai/{name}" for name in wanted}
    info = f"luna16_monai-{__version__}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    # code, bundles with their weights, templates, tables; nothing else
    assert names == wanted | about
    kinds = {".conf", ".css", ".csv", ".html", ".j2", ".json", ".md", ".npz", ".pt", ".py", ".txt", ".yaml"}
    assert {Path(name).suffix for name in wanted if not name.endswith("/LICENSE")} == kinds
    assert {name.split("/")[1] for name in wanted if not name.endswith(".py")} == {"bundles", "resources"}
    site = str(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {site!r}); from luna16_monai.cli.main import main; sys.exit(main())"
    # isolated from the source tree, which the installed package must not need
    done = subprocess.run(
        [sys.executable, "-c", code, "bundle", "--output", str(tmp_path / "mine")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "configs" / "inference.yaml").is_file()
