"""Jobs: done once, one log each, resumed, ended with their parent, and never run twice at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from luna16_monai.machine import jobs
from luna16_monai.machine.claims import claim, digests
from luna16_monai.machine.jobs import Job, last_line, run_job, run_jobs
from luna16_monai.machine.processes import run_tasks

ROOT = Path(__file__).parents[2]
LOCAL = partial(run_tasks, workers=1)


def job(folder: Path, *scripts: str, name: str = "one", done: str | None = "done") -> Job:
    commands = tuple((sys.executable, "-c", script) for script in scripts)
    return Job(name, commands, folder / f"{name}.log", folder / done if done else None, ROOT)


def touch(path: Path) -> str:
    return f"open({str(path)!r}, 'a').write('x')"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_run_job_runs_its_commands_in_order_into_one_log(tmp_path):
    one = job(tmp_path, "print('first'); import os; print(os.environ['OMP_NUM_THREADS'])", touch(tmp_path / "done"))
    assert run_job(one) is None
    lines = one.log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "$" not in line] == ["first", "1"]
    assert len([line for line in lines if f"$ {sys.executable} -c" in line]) == 2


def test_run_job_does_nothing_where_it_is_done(tmp_path):
    one = job(tmp_path, touch(tmp_path / "done"))
    assert [run_job(one), run_job(one)] == [None, None]
    assert (tmp_path / "done").read_text() == "x"


def test_run_job_tells_the_code_and_the_last_words_of_a_failure_and_stops_there(tmp_path):
    one = job(tmp_path, "import sys; print('fine'); sys.exit('no room')", touch(tmp_path / "done"))
    assert run_job(one) == f"one ended with exit code 1 (no room), see {one.log}"
    assert not (tmp_path / "done").exists()
    killed = job(tmp_path, "import os; os.kill(os.getpid(), 9)", name="two")
    assert (run_job(killed) or "").startswith("two ended with signal 9 (")
    idle = job(tmp_path, "pass", name="three")
    assert run_job(idle) == f"three ended without done, see {idle.log}"


def test_run_jobs_finishes_the_others_before_it_tells_of_a_failure(tmp_path):
    bad = job(tmp_path, "import sys; sys.exit(3)", name="bad", done="never")
    good = job(tmp_path, touch(tmp_path / "done"), name="good")
    with pytest.raises(RuntimeError, match=r"^1 of 2 jobs failed: bad ended with exit code 3 .*run the same command"):
        run_jobs([bad, good], LOCAL, progress=False)
    assert (tmp_path / "done").exists()


def test_run_jobs_shows_how_many_are_done_and_what_the_running_ones_said_last(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.05)
    first = job(
        tmp_path, f"import time; print('epoch 3 of 7', flush=True); time.sleep(0.5); {touch(tmp_path / 'done')}"
    )
    run_jobs([first, job(tmp_path, touch(tmp_path / "too"), name="two", done="too")], LOCAL)
    shown = capsys.readouterr().err
    assert "one: epoch 3 of 7" in shown
    assert [f"{number}/2" in shown for number in (0, 1, 2)] == [True] * 3


def test_run_job_calls_watch_meanwhile_and_ends_the_command_in_good_order_if_that_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.1)
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved')))\n"
        f"{touch(tmp_path / 'up')}\n"
        "time.sleep(60)"
    )

    def watch() -> None:
        if (tmp_path / "up").exists():
            raise InterruptedError

    one = job(tmp_path, script)
    with pytest.raises(InterruptedError):
        run_job(one, watch)
    assert last_line(one.log) == "saved"


def test_a_command_ends_with_the_process_that_started_it(tmp_path):
    script = f"import os, time; open({str(tmp_path / 'pid')!r} + '_', 'w').write(str(os.getpid())); " + (
        f"os.rename({str(tmp_path / 'pid')!r} + '_', {str(tmp_path / 'pid')!r}); time.sleep(60)"
    )
    program = (
        "from pathlib import Path; from luna16_monai.machine.jobs import Job, run_job; import sys\n"
        f"run_job(Job('a', ((sys.executable, '-c', {script!r}),), Path({str(tmp_path / 'a.log')!r}), None, Path.cwd()))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_job_waits_for_what_is_left_of_the_same_job(tmp_path):
    """The log stays locked as long as a command lives, and a second call then finds the work done."""
    one = job(tmp_path, f"import time; {touch(tmp_path / 'up')}; time.sleep(1); {touch(tmp_path / 'done')}")
    words = f"Job('one', {one.commands!r}, Path({str(one.log)!r}), Path({str(one.done)!r}), Path.cwd())"
    program = f"from pathlib import Path; from luna16_monai.machine.jobs import Job, run_job; run_job({words})"
    other = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(tmp_path / "up")
    assert run_job(one) is None
    assert (tmp_path / "done").read_text() == "x"
    assert other.wait() == 0
    assert (tmp_path / "up").read_text() == "x"


def test_claim_takes_a_folder_for_one_kind_of_work(tmp_path):
    config, path = tmp_path / "config.yaml", tmp_path / "out" / "plan.json"
    config.write_text("max_epochs: 1\n", encoding="utf-8")

    def record(trials: int) -> dict[str, Any]:
        return {"trials": trials, "configs_sha256": digests([config]), "channels": (8, 16)}

    first = record(3)
    path.parent.mkdir()
    for _ in range(2):
        claim(path, first, "search")
    with pytest.raises(
        ValueError, match=r"holds a search of other settings \(trials 3 instead of 4\): name another --output"
    ):
        claim(path, record(4), "search")
    config.write_text("max_epochs: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\(configs_sha256: config\.yaml [0-9a-f]{64} instead of [0-9a-f]{64}\)"):
        claim(path, record(3), "search")
    with pytest.raises(FileExistsError, match=r"\(it holds .*\): that is no cross-validation, so name another folder"):
        claim(path.with_name("crossval.json"), first, "cross-validation")


def test_jobs_share_out_the_gpus_that_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.05)
    # each of the three goes on once all have begun, however loaded the machine is
    (tmp_path / "three").mkdir()
    tell = (
        f"import os, time; folder = {str(tmp_path / 'three')!r}; open(f'{{folder}}/{{os.getpid()}}', 'w').close()\n"
        "until = time.monotonic() + 60\n"
        "while len(os.listdir(folder)) < 3:\n    assert time.monotonic() < until; time.sleep(0.01)\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # of different searches, say
    three = [replace(job(tmp_path, tell, name=name, done=None), gpus=1, log=tmp_path / name / "log") for name in "abc"]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run_job, three)) == [None, None, None]
    # at once, so each has its own
    assert sorted(last_line(one.log) for one in three) == ["2", "5", "7"]
    tell = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.3)"
    pair = [replace(job(tmp_path, tell, name=name, done=None), gpus=2) for name in "de"]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run_job, pair)) == [None, None]
    # one after the other: of three GPUs two jobs cannot have two each
    assert [last_line(one.log) for one in pair] == ["2,5", "2,5"]
    with pytest.raises(RuntimeError, match="f wants 4 GPUs, 3 are here: ask for fewer with --gpus"):
        run_job(replace(job(tmp_path, tell, name="f", done=None), gpus=4))


def test_main_refuses_a_parent_that_is_gone():
    done = subprocess.run(
        [sys.executable, "-m", "luna16_monai.machine.jobs", "1", "true"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (1, "the process that started this one is gone\n")


def test_last_line_of_a_long_log_and_of_none(tmp_path):
    assert last_line(tmp_path / "none.log") == ""
    (tmp_path / "a.log").write_text("x" * 9000 + "\nlast é\n\n", encoding="utf-8")
    assert last_line(tmp_path / "a.log") == "last é"
