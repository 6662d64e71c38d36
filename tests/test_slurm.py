"""The SLURM script on one machine: its own lines, with stand-ins for what only a cluster has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "slurm" / "train.sbatch"
# srun starts its command once on each machine, and numbers the tasks
SRUN = """#!/bin/bash
pids=()
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
# more names than a pipe holds, so that who stops reading after the first would end it with a SIGPIPE
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames $SLURM_JOB_NODELIST" ] && echo localhost && seq -f 'node%g' 2 20000
"""


def test_script_is_clean(lint):
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    done = lint("shellcheck", SCRIPT)
    assert done.returncode == 0, done.stdout


def test_script_wants_its_folders():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LUNA16_")}
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode != 0
    assert "LUNA16_DATA: set it to the folder of the raw data" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_script_trains_on_its_machines(phantom_dir, store_dir, tmp_path, nodes, per_node):
    shims = tmp_path / "bin"
    shims.mkdir()
    python = f'#!/bin/bash\nexec "{sys.executable}" -W ignore'
    programs = {"srun": SRUN, "scontrol": SCONTROL, "python": f'{python} "$@"\n'}
    programs["torchrun"] = f'{python} -m torch.distributed.run "$@"\n'
    for name, content in programs.items():
        (shims / name).write_text(content)
        (shims / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{shims}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LUNA16_DATA": str(phantom_dir),
        "LUNA16_STORE": str(store_dir),
        "LUNA16_RUNS": str(tmp_path / "runs"),
        # as the batch script sees them, and its tasks
        "SLURM_JOB_ID": str(4_000_000 + os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(nodes),
        "SLURM_GPUS_ON_NODE": str(per_node),
    }
    settings = {"device": "cpu", "max_epochs": 1, "samples_per_epoch": 16, "batch_size": 4, "num_workers": 0}
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    command = ["bash", SCRIPT, *words, "--validation_stride", "4"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "nodule_classification"
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["processes"] == 2
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["candidates"] == 35
