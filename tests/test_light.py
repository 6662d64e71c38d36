"""What reads and does not train loads neither torch nor MONAI nor Ignite; each case in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ct_files import write_ct

HEAVY = ("torch", "monai", "ignite")
PROGRAM = """
import json, sys
code = 0
{work}
print(json.dumps([code, sorted(set(sys.modules) & {heavy})]))
"""


def loaded(work: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Run statements in a new process; the heavy packages that are loaded afterwards."""
    program = PROGRAM.format(work=work, heavy=set(heavy))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return modules


def verb(*words: object) -> str:
    """Run a verb in this process, its output aside."""
    return (
        "import contextlib, io\nfrom luna16_monai.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n    code = main({list(map(str, words))!r})"
    )


def test_loaded_finds_what_is_loaded():
    assert loaded("import torch") == ["torch"]


@pytest.mark.parametrize(
    "module", ["experiments.crossval", "experiments.folds", "experiments.tune", "experiments.search", "setup.doctor"]
)
def test_starting_process_is_light(module):
    assert loaded(f"import luna16_monai.{module}, luna16_monai.cli.experiments") == []


def test_ct_opens_light(tmp_path):
    path = write_ct(tmp_path / "scan.mhd")
    work = f"from pathlib import Path\nfrom luna16_monai.ct.opening import open_ct\nopen_ct(Path({str(path)!r})).read()"
    assert loaded(work) == []


def test_verify_is_light(store_dir):
    assert loaded(verb("verify", "--store", store_dir)) == []


def test_doctor_of_data_and_store_is_light(phantom_dir, store_dir):
    work = (
        "from pathlib import Path\nfrom luna16_monai.setup import doctor\n"
        f"data, store = Path({str(phantom_dir)!r}), Path({str(store_dir)!r})\n"
        "checks = [*doctor._data(data), *doctor._store(store, data), *doctor._packages()]\n"
        "assert [c['name'] for c in checks][:3] == ['data', 'tables', 'store'], checks"
    )
    assert loaded(work) == []


def test_doctor_loads_torch_alone_to_try_the_gpu(phantom_dir, store_dir, tmp_path):
    work = (
        "from pathlib import Path\nfrom luna16_monai.setup.doctor import examine\n"
        f"examine(Path({str(phantom_dir)!r}), Path({str(store_dir)!r}), Path({str(tmp_path)!r}))"
    )
    assert loaded(work) == ["torch"]


@pytest.fixture
def scored(phantom_dir: Path, tmp_path: Path) -> tuple[list[object], Path]:
    """The words of an evaluation by subsets, and the folder that it writes."""
    from luna16_monai.tables.luna16 import read_candidates
    from luna16_monai.tables.points import write_points

    table = read_candidates(phantom_dir)
    submission, output = tmp_path / "submission.csv", tmp_path / "run"
    uids = [table.series_uids[code] for code in table.series]
    write_points(submission, uids, table.points_xyz, np.linspace(0, 1, len(table)), "probability")
    words: list[object] = ["evaluate", "--submission", submission, "--annotations", phantom_dir / "annotations.csv"]
    words += ["--excluded", phantom_dir / "annotations_excluded.csv", "--seriesuids", phantom_dir / "seriesuids.csv"]
    return [*words, "--subsets", phantom_dir, "--bootstrap", 20, "--output", output], output


def test_evaluate_of_tables_loads_no_reader_of_cts(scored):
    words, _ = scored
    without = [word for word in words if word != "--subsets"]
    without.remove(words[words.index("--subsets") + 1])
    assert loaded(verb(*without), (*HEAVY, "SimpleITK", "nibabel", "pydicom")) == []


def test_scoring_and_report_load_no_solvers(scored, store_dir):
    words, output = scored
    # what fits a calibration, and draws plots on a screen, is a second of CPU that neither needs
    unused = ("scipy.optimize", "scipy.stats", "scipy.signal", "matplotlib.pyplot", "pandas")
    assert loaded(verb(*words), unused) == []
    assert loaded(verb("report", "--run", output, "--store", store_dir), (*unused, "scipy.spatial")) == []


def test_evaluate_by_subsets_and_report_are_light(scored, store_dir):
    words, output = scored
    assert loaded(verb(*words)) == []
    assert json.loads((output / "metrics.json").read_text())["by_subset"]
    assert loaded(verb("report", "--run", output, "--store", store_dir)) == []
    assert (output / "report.html").is_file()


def test_detect_as_a_program_does_without_what_monai_loads_for_training(phantom_dir, tmp_path):
    ct = sorted(phantom_dir.glob("subset*/*.mhd"))[0]
    words = ["luna16", "detect", "--ct", str(ct), "--output", str(tmp_path / "a.csv"), "--device", "cpu"]
    program = (
        "import atexit, json, runpy, sys\n"
        "names = {'ignite', 'matplotlib', 'sklearn', 'scipy.signal', 'monai'}\n"
        "atexit.register(lambda: print(json.dumps([0, sorted(names & set(sys.modules))])))\n"
        f"sys.argv = {words!r}\n"
        "runpy.run_module('luna16_monai', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, ["monai"]]
    assert (tmp_path / "a.csv").is_file()


EVERY_MODULE = """
import importlib, json, pkgutil, sys
absent = {absent}
for name in absent:
    sys.modules[name] = None  # as if it were not installed
import luna16_monai
names = [one.name for one in pkgutil.walk_packages(luna16_monai.__path__, "luna16_monai.")]
assert len(names) > 100, names
refused = {{}}
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            refused[name.removeprefix("luna16_monai.")] = error.name
print(json.dumps(refused))
"""
# what a base install goes without, and TensorBoard, which only a training loads
NOT_AT_IMPORT = (
    *("matplotlib", "jinja2", "highdicom", "sklearn", "onnx", "onnxruntime", "onnxscript", "openvino", "ray", "optuna"),
    *("mlflow", "idc_index", "huggingface_hub", "safetensors", "tensorboard"),
)


def test_modules_can_be_imported_without_the_extras_but_for_those_that_are_an_extra():
    program = EVERY_MODULE.format(absent=NOT_AT_IMPORT)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # loaded by the report alone, which asks for its extra first
    assert json.loads(done.stdout.splitlines()[-1]) == {"report.charts": "matplotlib"}
