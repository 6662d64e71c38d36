"""Files that are whole or absent, whatever happens to their writer."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luna16_monai.machine import files
from luna16_monai.machine.files import ABANDONED_AFTER_SECONDS, atomic_write, remove_abandoned, write_csv, write_json

# Writes half a file, says so, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from luna16_monai.machine.files import atomic_write
with atomic_write(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def asides(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.tmp"))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_atomic_write_shows_the_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
        assert len(asides(path.parent)) == 1
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def write_half(path: Path) -> None:
    with atomic_write(path) as stream:
        stream.write(b"half")
        raise RuntimeError("the disk burns")


def test_atomic_write_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the disk burns"):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_accepts_a_stream_that_is_closed_already(tmp_path):
    with atomic_write(tmp_path / "file") as raw, io.TextIOWrapper(raw, "utf-8") as stream:
        stream.write("ä")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4"


def test_atomic_write_gives_two_writers_of_one_file_different_names(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second")
        assert len(asides(tmp_path)) == 2
    # the inner one, second, took its name first, and was replaced
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_takes_names_as_long_as_a_file_system_does(tmp_path):
    path = tmp_path / ("n" * 255)
    with atomic_write(path) as stream:
        stream.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_write_json_leaves_nothing_of_what_json_cannot_hold(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"set": {1, 2}})
    assert os.listdir(tmp_path) == []
    write_json(tmp_path / "file.json", {"list": [1, 2]})
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"list": [1, 2]}


def test_remove_abandoned_takes_what_the_dead_left_and_leaves_the_living(tmp_path):
    (tmp_path / "store.json").write_text("{}")
    (tmp_path / ".hidden").write_text("not ours")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "file"], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        (aside,) = asides(tmp_path)
        age(aside, ABANDONED_AFTER_SECONDS + 1)
        remove_abandoned(tmp_path)
        assert asides(tmp_path) == [aside]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert asides(tmp_path) == [aside]
    assert not (tmp_path / "file").exists()
    age(aside, ABANDONED_AFTER_SECONDS - 10)
    remove_abandoned(tmp_path)
    assert asides(tmp_path) == [aside]  # a writer that has just opened it may be about to lock it
    age(aside, ABANDONED_AFTER_SECONDS + 1)
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "store.json"]


def test_remove_abandoned_leaves_a_writer_of_this_very_process_alone(tmp_path):
    with atomic_write(tmp_path / "file") as stream:
        stream.write(b"whole")
        stream.flush()
        age(*asides(tmp_path), ABANDONED_AFTER_SECONDS + 1)
        remove_abandoned(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_remove_abandoned_takes_nothing_where_the_file_system_knows_no_locks(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files, "lock_descriptor", refused)
    (tmp_path / ".file.1.tmp").write_bytes(b"half")
    age(tmp_path / ".file.1.tmp", ABANDONED_AFTER_SECONDS + 1)
    remove_abandoned(tmp_path)
    assert len(asides(tmp_path)) == 1
    write_json(tmp_path / "file.json", 1)
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == "1\n"


def test_write_csv_writes_a_table_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ["a", "b"], [[1, None], ["x,y", 0.5]])
    assert path.read_bytes() == b'a,b\r\n1,\r\n"x,y",0.5\r\n'
    with pytest.raises(ZeroDivisionError):
        write_csv(path, ["a"], ([1 / n] for n in (1, 0)))
    assert path.read_bytes().startswith(b"a,b")
    assert os.listdir(tmp_path) == ["table.csv"]
    write_csv(path, None, [["1.2.3"]])
    assert path.read_bytes() == b"1.2.3\r\n"
