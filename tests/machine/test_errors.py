"""What is told of an error: one line, from below the layers that it came through."""

from __future__ import annotations

import pickle

import pytest
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from luna16_monai.machine.errors import DEAD_WORKER, one_line, root_cause


def refuse(item: object) -> object:
    raise ValueError(f"{item} is refused: use another")


def test_root_cause_is_below_monais_transforms():
    with pytest.raises(RuntimeError) as caught:
        Compose([refuse])("this")
    assert one_line(caught.value) == "this is refused: use another"
    assert type(root_cause(caught.value)) is ValueError


def test_root_cause_is_below_monais_config_expressions():
    with pytest.raises(RuntimeError) as caught:
        ConfigParser({"a": "$[][3]"}).get_parsed_content("a")
    assert one_line(caught.value) == "list index out of range"


def explain(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"table, line 2: {text} is no number") from error


def test_root_cause_stops_at_an_error_that_explains_its_cause():
    with pytest.raises(RuntimeError) as caught:
        Compose([explain])("x")
    assert one_line(caught.value) == "table, line 2: x is no number"


def test_one_line_takes_the_first_error_out_of_a_loader_workers_traceback():
    loader = DataLoader(Dataset(["this"], Compose([refuse])), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert str(caught.value).splitlines()[-1].startswith("RuntimeError: applying transform")
    assert one_line(caught.value) == "this is refused: use another"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("series 1.2 is unknown"), "series 1.2 is unknown"),
        (ValueError("a\n  b\tc"), "a b c"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_7_0>: No space left on device (28)"),
            "no room in shared memory (/dev/shm) for what the loader's processes hand over: enlarge it (docker run "
            "--shm-size 2g), or do without such processes by --num_workers 0",
        ),
        (IsADirectoryError(21, "Is a directory", "out"), "out: Is a directory: name a file, not a folder"),
        (
            NotADirectoryError(20, "Not a directory", "a/b"),
            "a/b: Not a directory: name another path: a part of this one is a file",
        ),
        (FileNotFoundError(2, "No such file", "x.raw"), "[Errno 2] No such file: 'x.raw'"),
    ],
)
def test_one_line_of_other_errors(error, line):
    assert one_line(error) == line


def test_one_line_keeps_what_was_said_of_a_dead_worker():
    # torch's signal handler tells of it again while the first error is on its way
    with pytest.raises(RuntimeError) as caught:
        try:
            raise RuntimeError(f"{DEAD_WORKER}: go on with --resume true")
        finally:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    assert one_line(caught.value) == "a worker process of the data loader died: go on with --resume true"
    # nothing was said before: torch's own words
    alone = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    alone.__context__ = ValueError("queue empty")
    assert one_line(alone) == "DataLoader worker (pid 7) is killed by signal: Killed."


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_lambda_for_workers_that_are_no_forks_is_told_with_the_cure(method):
    step = ConfigParser({"a": "$lambda item: item"}).get_parsed_content("a")
    loader = DataLoader(Dataset([1, 2], Compose([step])), num_workers=1, multiprocessing_context=method)
    with pytest.raises((AttributeError, pickle.PicklingError)) as caught:
        next(iter(loader))
    assert "lambda" in one_line(caught.value).split(": what worker")[0]
    cure = "what worker processes get must be a function of a module, no lambda; or --num_workers 0"
    assert one_line(caught.value).endswith(cure)
