"""The command line of a training."""

from __future__ import annotations

import sys
from pathlib import Path

from luna16_monai.bundle.command import command


def test_command_names_one_config_as_it_is_and_several_as_a_list():
    one = command("training", [Path("a.yaml")], {"seed": "1", "device": "cpu"})
    start = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training", "--config_file"]
    assert list(one) == [*start, "a.yaml", "--seed", "1", "--device", "cpu"]
    assert command("training", [Path("a.yaml"), Path("b.yaml")], {})[-1] == "['a.yaml','b.yaml']"


def test_command_of_several_processes_goes_through_torchrun():
    words = command("training", [Path("a.yaml")], {}, processes=2)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
    assert list(words)[4:10] == torchrun
