"""The lines of a CSV file, before it is known which table it is."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from luna16_monai.tables.text import LONGEST_LINE, open_table, require_columns


def lines_of(path):
    with open_table(path) as lines:
        return [line.rstrip("\r\n") for line in lines]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_open_table_parts_lines_at_any_end(tmp_path, end):
    path = tmp_path / "table.csv"
    path.write_bytes(end.join(["a,b", "", "ä,1"]).encode())
    assert lines_of(path) == ["a,b", "", "ä,1"]


def test_open_table_drops_a_byte_order_mark_at_the_start_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffa\n\ufeffb\n".encode())
    assert lines_of(path) == ["a", "\ufeffb"]


def test_open_table_reads_inside_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.writestr("table.csv", "a\r\nb\r\n")
    assert lines_of(zipfile.Path(tmp_path / "table.zip", "table.csv")) == ["a", "b"]


def test_open_table_takes_a_line_of_a_million_characters_and_no_more(tmp_path):
    path = tmp_path / "table.csv"
    # the end of the line counts
    path.write_bytes(b"a\n" + b"1" * (LONGEST_LINE - 1) + b"\n")
    assert [len(line) for line in lines_of(path)] == [1, LONGEST_LINE - 1]
    path.write_bytes(b"a\n" + b"1" * LONGEST_LINE + b"\n")
    with pytest.raises(ValueError, match=r"table\.csv, line 2 has more than 1048576 characters: is this a CSV table\?"):
        lines_of(path)


def test_open_table_names_the_file_that_is_no_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("a\nä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"table\.csv is no text in UTF-8 \(.*\): save the table as CSV in UTF-8"):
        lines_of(path)


def test_open_table_names_the_zip_that_is_damaged(tmp_path):
    path = tmp_path / "table.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("table.csv", "a\nb\n")
    path.write_bytes(path.read_bytes().replace(b"a\nb\n", b"a\nc\n"))
    with pytest.raises(ValueError, match=r"table\.zip.* is damaged, or no zip that can be read \(.*CRC.*\): fetch it"):
        lines_of(zipfile.Path(path, "table.csv"))


def test_open_table_leaves_other_errors_of_its_reader_as_they_are(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"a\n")
    with pytest.raises(KeyError, match="other"), open_table(path):
        raise KeyError("other")


def test_require_columns_gives_their_positions_in_the_order_asked_for():
    assert require_columns(["x", "class", "y"], ("y", "class"), Path("t.csv")) == [2, 1]


@pytest.mark.parametrize(
    ("header", "cure", "message"),
    [
        (["a", "c"], None, "t.csv, line 1: column b is missing (found: 'a, c'): the header must name a, b"),
        (["a", "b", "a"], None, "t.csv, line 1: column a stands there twice (found: 'a, b, a'): the header"),
        (None, "name another file", "t.csv, line 1: column a is missing (found: ''): name another file"),
    ],
)
def test_require_columns_names_file_column_and_cure(header, cure, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        require_columns(header, ("a", "b"), Path("t.csv"), cure)
