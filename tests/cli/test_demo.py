"""luna16 demo: where it writes, what a step that fails does, and the whole of it on a few scans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from verb_calls import require_nobody_left

from luna16_monai.cli import demo, main

ROOT = Path(__file__).parents[2]
# the whole demo on eight scans, with trainings of seconds
SMALL = """
import sys
from dataclasses import replace
from luna16_monai.cli import demo, main
tiny = {"max_epochs": 1, "samples_per_epoch": 64, "val_interval": 1, "num_workers": 0}
malignancy = {**demo.FINE_TUNING, **tiny, "batch_size": 8}
detection = {**tiny, "samples_per_epoch": 8, "batch_size": 2, "shape_zyx": "[32,48,48]", "mining_epochs": "[]"}
demo.SHORT = replace(demo.SHORT, scans=8, stride=2, nodules=tiny, malignancy=malignancy, detection=detection)
print(demo.__file__, file=sys.stderr)
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the demo, which are not run: the one that follows the last step raises."""
    ran: list[list[str]] = []

    def note(one: demo._Demo, title: str, command: list[object], one_thread: bool = False) -> None:
        ran.append([str(word) for word in command])
        if "training" in ran[-1]:
            raise RuntimeError("as far as this test goes")

    monkeypatch.setattr(demo._Demo, "_step", note)
    return ran


def option(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize(("more", "suffix", "scans"), [([], "", "60"), (["--long"], "_200", "200")])
def test_demo_uses_the_folders_of_the_environment(steps, monkeypatch, more, suffix, scans, capsys):
    for name in ("data", "store", "runs"):
        monkeypatch.setenv(f"LUNA16_{name.upper()}", f"/x/{name}")
    assert main.main(["demo", "--seed", "3", *more]) == 1
    assert capsys.readouterr().err == "luna16: as far as this test goes\n"
    phantom, prepare, training = steps
    assert phantom[3:] == ["phantom", "--output", f"/x/data{suffix}", "--scans", scans]
    assert prepare[3:] == ["prepare", "--data", f"/x/data{suffix}", "--store", f"/x/store{suffix}"]
    assert option(training, "--output_dir") == "/x/runs/demo"
    assert (option(training, "--seed"), option(training, "--resume")) == ("3", "true")


def test_demo_defaults_to_folders_below_the_current_one(steps, monkeypatch):
    for name in ("DATA", "STORE", "RUNS"):
        monkeypatch.delenv(f"LUNA16_{name}", raising=False)
    assert main.main(["demo"]) == 1
    assert (option(steps[0], "--output"), option(steps[1], "--store")) == ("data/phantom", "data/store")
    assert option(steps[2], "--output_dir") == "runs/demo"


def test_demo_with_malignancy_makes_the_demo_first_where_there_is_none(steps, tmp_path, capfd):
    output = tmp_path / "demo"
    words = ["demo", "--output", str(output), "--malignancy", str(tmp_path / "second")]
    assert main.main(words) == 1
    assert option(steps[-1], "--output_dir") == str(output)
    assert f"no finished demo in {output}: that comes first" in capfd.readouterr().out
    output.mkdir()
    (output / "report.html").write_text("")
    assert main.main(words) == 1
    assert option(steps[-1], "--output_dir") == str(tmp_path / "second")
    assert option(steps[-1], "--nodule_run") == str(output)


def test_demo_with_detection_trains_the_detector_behind_a_finished_demo(steps, tmp_path, capsys):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "report.html").write_text("")
    words = ["demo", "--output", str(output), "--detection", str(tmp_path / "third")]
    assert main.main(words) == 1
    assert option(steps[-1], "--output_dir") == str(tmp_path / "third" / "detector")
    assert "nodule_detection" in " ".join(steps[-1])
    assert main.main([*words, "--malignancy", "x"]) == 2
    assert "--malignancy and --detection: give one of them, then the other" in capsys.readouterr().err


def test_demo_asks_for_its_extras_before_it_begins(steps, monkeypatch, capsys):
    monkeypatch.setattr("luna16_monai.machine.extras.is_installed", lambda *modules: "sklearn" not in modules)
    assert main.main(["demo"]) == 1
    told = capsys.readouterr().err
    assert told == "luna16: scikit-learn is not installed, and luna16 demo needs it: " + (
        "pip install 'luna16_monai[demo]'\n"
    )
    assert steps == []


def test_a_step_that_fails_ends_the_demo_with_1_and_its_own_code_in_the_line(tmp_path, monkeypatch, capfd):
    (tmp_path / "candidates_V2.csv").write_text("mine\n")
    monkeypatch.setenv("LUNA16_DATA", str(tmp_path))
    assert main.main(["demo", "--output", str(tmp_path / "demo"), "--json"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "candidates_V2.csv" in err
    assert err.splitlines()[-1].startswith("luna16: this step of the demo ended with exit code 2")


@pytest.mark.parametrize(("given", "told"), [("", "1"), ("3", "3")])
def test_a_training_of_the_demo_takes_one_thread_unless_told_otherwise(monkeypatch, capfd, given, told):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    words = [sys.executable, "-c", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"]
    demo._Demo._step(SimpleNamespace(say=print, stream=None), "training", words, one_thread=True)
    out = capfd.readouterr().out
    assert f"threads {told}\n" in out
    assert ("OMP_NUM_THREADS=1 python -c" in out) == (given == "")


def test_demo_that_is_ended_ends_its_step(tmp_path):
    words = ["demo", "--output", tmp_path / "demo"]
    process = subprocess.Popen(
        [sys.executable, "-m", "luna16_monai", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", cwd=ROOT, start_new_session=True,
        env={**os.environ, "LUNA16_DATA": str(tmp_path / "data"), "LUNA16_STORE": str(tmp_path / "store")},
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        # the step has begun with its work
        while not (tmp_path / "data").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        require_nobody_left(process.pid)
    finally:
        process.kill()
    assert process.returncode == 143
    # the step's own line, and the demo's
    assert err.splitlines() == ["luna16: ended by SIGTERM; the same command goes on where it stopped"] * 2


@pytest.mark.slow
def test_demo_runs_whole_from_an_installed_wheel_in_the_current_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("luna16_monai-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    here = tmp_path / "here"
    here.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LUNA16_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SMALL, "demo", "--malignancy", "malignancy", "--json"],
        cwd=here, capture_output=True, encoding="utf-8", check=False,
        env={**environment, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(tmp_path / "site"))
    told = json.loads(done.stdout)
    assert (told["output"], told["nodule_run"], told["data"]) == ("malignancy", "runs/demo", "data/phantom")
    assert {path.name for path in here.iterdir()} == {"data", "runs", "malignancy"}
    for run in (here / "runs" / "demo", here / "malignancy"):
        assert {"model.pt", "metrics.json", "submission.csv", "report.html"} <= {path.name for path in run.iterdir()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SMALL, "demo", "--detection", "runs/demo-detection", "--json"],
        cwd=here, capture_output=True, encoding="utf-8", check=False,
        env={**environment, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    written = json.loads((here / "runs" / "demo-detection" / "metrics.json").read_text())
    for name in ("detector", "both_stages", "blob"):
        assert set(written[name]["sensitivity_at_candidates"]) == {"10", "25", "50", "100", "200"}
        assert told[name]["cpm"] == written[name]["cpm"]
    assert {"diameter_error_mm", "lost_to_lung_mask"} <= set(written["detector"])
    assert {"report.html", "submission.csv"} <= {path.name for path in (here / "runs" / "demo-detection").iterdir()}
    metrics = json.loads((here / "runs" / "demo" / "metrics.json").read_text())
    assert set(metrics["baselines"]) == {"mean_hu_centre", "size_brightness", "radial_profile"}
    assert "done in " in done.stderr
