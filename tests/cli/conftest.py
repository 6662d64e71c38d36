"""The ``luna16`` command called in this process, two small CTs, two drawn ones, and a detector for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawn_scans import random_hu, write_scan
from verb_calls import Call

from luna16_monai.cli import main as cli
from luna16_monai.networks.nodule_detector import NoduleDetector


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two small CTs of 1 mm in subset0; (0, 0, 0) mm is the first voxel."""
    for seed, uid in enumerate(("a", "b")):
        voxels = random_hu(seed, (10, 12, 14))
        write_scan(tmp_path / "data" / "subset0", uid, voxels, None, (0, 0, 0), (1, 1, 1))
    return tmp_path / "data"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command; gives the exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def cts(phantom_dir: Path) -> list[Path]:
    """Two drawn CTs."""
    return sorted(phantom_dir.glob("subset*/*.mhd"))[:2]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a new detector whose head is random, so that some cells stand out."""
    torch.manual_seed(0)
    network = NoduleDetector()
    torch.nn.init.normal_(network.head.weight, std=0.5)
    path = tmp_path_factory.mktemp("detector") / "model.pt"
    torch.save(network.state_dict(), path)
    return path
