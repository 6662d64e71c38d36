"""The lines of a CSV file, before it is known which table it is."""

from __future__ import annotations

import zipfile

import pytest

from luna16_monai.tables.text import LONGEST_LINE, open_table


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
