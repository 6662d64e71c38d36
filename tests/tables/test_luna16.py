"""LUNA16's tables: read in every form in which people have them, refused with file, line and cure where wrong."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from point_tables import HEADER, TABLE, write

from luna16_monai.tables.hits import lies_on
from luna16_monai.tables.luna16 import (
    find_table,
    read_annotations,
    read_candidates,
    read_excluded,
    read_series_list,
    read_series_uids,
)
from luna16_monai.tables.points import PointTable, duplicate_rows

MEASURE = """
import json, pickle, re, sys
from pathlib import Path
from luna16_monai.tables.luna16 import read_candidates
table = read_candidates(Path(sys.argv[1]))
columns = (table.series, table.points_xyz, table.values, table.lines)
print(json.dumps({
    "rows": len(table),
    "series": len(table.series_uids),
    "column_bytes": sum(column.nbytes for column in columns),
    "views": any(column.base is not None for column in columns),
    "pickle_bytes": len(pickle.dumps(table)),
    # not ru_maxrss, which a process inherits from the one that started it
    "peak_mb": int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1024,
}))
"""


def assert_is_table(table: PointTable) -> None:
    """The rows of TABLE, whatever it was read from."""
    assert table.series_uids == ("1.3.6", "1.3.9")
    assert table.series.tolist() == [1, 0, 1]
    assert table.points_xyz.tolist() == [[-10.5, 20, -300.25], [1, 2, 3], [4, 5, 6]]
    assert table.values.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        TABLE.rstrip("\n"),
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        "\ufeff" + TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        TABLE.replace("1.3.6", '"1.3.6"').replace("-300.25", '"-300.25"'),
        TABLE.replace(",", " , "),
        TABLE.replace("\n", "\n\n"),
        f"{HEADER},note\n1.3.9,-10.5,20,-300.25,0,a\n1.3.6,1,2,3,1,\n" + '1.3.9,4,5,6,1,"b, ""c"""\n',
        "class,coordZ,seriesuid,coordX,coordY\n0,-300.25,1.3.9,-10.5,20\n1,3,1.3.6,1,2\n1,6,1.3.9,4,5\n",
        f"{HEADER}\n1.3.9,-1.05e1,+20,-300.250,0.0\n1.3.6,1.,2,3,1\n1.3.9,4,5,6,1\n",
    ],
    ids=["plain", "no-end", "bom", "crlf", "bom-crlf", "cr", "quoted", "spaces", "blank", "more", "order", "numbers"],
)
def test_read_candidates_takes_every_form_of_csv(tmp_path, content):
    write(tmp_path, content)
    assert_is_table(read_candidates(tmp_path))


def test_read_candidates_keeps_the_line_of_each_row(tmp_path):
    write(tmp_path, TABLE.replace("\n1.3.6", "\n\n\n1.3.6"))
    assert read_candidates(tmp_path).lines.tolist() == [2, 5, 6]


def test_read_candidates_keeps_lines_over_many_thousand_rows(tmp_path):
    # more than are parsed at once, and a blank line in the first part
    write(tmp_path, f"{HEADER}\n\n" + "".join(f"s{i % 7},{i},0,0,0\n" for i in range(70_000)))
    table = read_candidates(tmp_path)
    assert len(table) == 70_000
    assert table.lines[[0, 65_534, 65_535, 69_999]].tolist() == [3, 65_537, 65_538, 70_002]
    assert table.points_xyz[:, 0].tolist() == list(range(70_000))
    assert [table.series_uids[code] for code in table.series[:8]] == ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s0"]


def test_read_candidates_of_a_header_alone_is_empty(tmp_path):
    write(tmp_path, HEADER)
    table = read_candidates(tmp_path)
    assert len(table) == 0
    assert table.points_xyz.shape == (0, 3)
    assert table.series_codes(["1.3.6"]).shape == (0,)
    assert len(duplicate_rows(table)) == 0
    assert lies_on(table, table).shape == (0,)


def test_read_candidates_prefers_v2_and_warns_of_the_first_version(tmp_path, caplog):
    write(tmp_path, TABLE, "candidates.csv")
    with caplog.at_level(logging.WARNING):
        assert_is_table(read_candidates(tmp_path))
    assert "candidates_V2 not found" in caplog.text
    caplog.clear()
    write(tmp_path, f"{HEADER}\n1.3.6,1,2,3,1\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_candidates(tmp_path)) == 1
    assert caplog.text == ""


@pytest.mark.parametrize("member", ["candidates_V2.csv", "candidates_V2/candidates_V2.csv"])
def test_read_candidates_reads_inside_the_zip(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "candidates_V2.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, "\ufeff" + TABLE.replace("\n", "\r\n"))
    table = read_candidates(tmp_path)
    assert_is_table(table)
    assert "candidates_V2.zip" in table.source


def test_find_table_takes_an_unpacked_file_before_the_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "candidates_V2.zip", "w") as archive:
        archive.writestr("candidates_V2.csv", HEADER)
    assert "zip" in str(find_table(tmp_path, "candidates_V2"))
    unpacked = write(tmp_path, TABLE, "candidates_V2/candidates_V2.csv")
    assert find_table(tmp_path, "candidates_V2") == unpacked
    assert find_table(tmp_path, "annotations") is None


@pytest.mark.parametrize("layout", ["flat", "script", "script zip", "script zip without its folder"])
def test_tables_of_the_evaluation_script_are_found(tmp_path, layout):
    tables = {
        "annotations": "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6,1,2,3,5.5\n",
        "annotations_excluded": "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6,1,2,3,-1\n",
        "seriesuids": "1.3.9\r\n1.3.6\r\n",
    }
    for name, content in tables.items():
        if layout == "flat":
            write(tmp_path, content, f"{name}.csv")
        elif layout == "script":
            write(tmp_path, content, f"evaluationScript/annotations/{name}.csv")
        else:
            folder = "evaluationScript/" if layout == "script zip" else ""
            with zipfile.ZipFile(tmp_path / "evaluationScript.zip", "a") as archive:
                archive.writestr(f"{folder}annotations/{name}.csv", content)
    assert read_annotations(tmp_path).values.tolist() == [5.5]
    assert read_excluded(tmp_path).values.tolist() == [-1]
    assert read_series_list(tmp_path) == ("1.3.6", "1.3.9")


def test_read_series_uids_is_sorted_and_lenient_about_commas_and_blank_lines(tmp_path):
    path = write(tmp_path, "\ufeff1.3.9,\r\n\r\n 1.3.6\n", "seriesuids.csv")
    assert read_series_uids(path) == ("1.3.6", "1.3.9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: column seriesuid is missing"),
        (
            TABLE.replace("coordY", "y"),
            "line 1: column coordY is missing (found: 'seriesuid, coordX, y, coordZ, class')",
        ),
        (TABLE.replace("class", "coordX"), "line 1: column coordX stands there twice"),
        (TABLE.replace(",", ";"), "line 1: the columns are parted by semicolons: save the table with commas between"),
        (TABLE.replace(",", "\t"), "line 1: the columns are parted by tabs: save the table with commas between"),
        ("seriesuid;x,coordX;y", "line 1: the columns are parted by semicolons"),
        ("a;b,c", "line 1: column seriesuid is missing (found: 'a;b, c')"),
        (TABLE.replace("1,2,3", '"1,5",2,3'), "line 3: coordX is '1,5', not a finite number: write 1.5, with a point"),
        (
            TABLE.replace("1,2,3", "1,5,2,25,3,0"),
            "line 3: 8 values, but the header names 5: write the numbers with points where they have decimal commas",
        ),
        (TABLE.replace("-300.25", "left"), "line 2: coordZ is 'left', not a finite number"),
        (TABLE.replace("-300.25", ""), "line 2: coordZ is '', not a finite number"),
        (TABLE.replace("4,5,6", "4,nan,6"), "line 4: coordY is 'nan', not a finite number"),
        (TABLE.replace("1,2,3", "-inf,2,3"), "line 3: coordX is '-inf', not a finite number"),
        (TABLE.replace("1,2,3", "1e999,2,3"), "line 3: coordX is '1e999', not a finite number"),
        (TABLE.replace("1,2,3", "1_0,2,3"), "line 3: coordX is '1_0', not a finite number"),
        (TABLE.replace("1,2,3", "١,2,3"), "line 3: coordX is '١', not a finite number"),
        (TABLE.replace("1,2,3,1", "1,2,3,2"), "line 3: class is 2, expected 0 (no nodule) or 1 (nodule)"),
        (TABLE.replace("1,2,3,1", "1,2,3,0.5"), "line 3: class is 0.5"),
        (TABLE.replace("1,2,3,1", "1,2,3"), "line 3: 4 values, but the header names 5"),
        (TABLE.replace("1,2,3,1", "1,2,3,1,"), "line 3: 6 values, but the header names 5"),
        (TABLE.replace("1.3.6", ""), "line 3) is no series identifier"),
        (TABLE.replace("1.3.6", "../1.3.6"), "'../1.3.6' ("),
        (TABLE.replace("1.3.6", "a\\b"), "line 3) is no series identifier"),
        (TABLE.replace("1.3.6", ".hidden"), "line 3) is no series identifier"),
        (TABLE.replace("1.3.6", "1.3\0.6"), "line 3) is no series identifier"),
        (TABLE.replace("-300.25", "-300\0"), "line 2: coordZ is '-300\\x00', not a finite number"),
        (TABLE.replace("1,2,3", '"1,2,3'), "line 3: a quoted value runs over several lines"),
        (TABLE.replace("1.3.6", "1" * 201), "line 3) is no series identifier"),
        (TABLE.replace("4,5,6", "4" * 200_000 + ",5,6"), "line 4: field larger than field limit"),
        (TABLE.replace("1.3.6", "ä").encode("latin-1"), "is no text in UTF-8"),
        (TABLE.encode("utf-16"), "is no text in UTF-8"),
        (f"{HEADER}\n1.3.6,1,2,3,0\n1.3.9,1,2,3,0\n1.3.6,1,2,3,1\n", "lines 2 and 4: the same point of series 1.3.6"),
    ],
)
def test_read_candidates_refuses(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_candidates(tmp_path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 500 + len(str(path))
    assert re.search(r"mend|expected|must name|keep|close|CSV|save|write", text), "no cure is told"


def test_read_candidates_refuses_a_very_long_line_of_many_values(tmp_path):
    write(tmp_path, TABLE + "1.3.6" + ",1" * 300_000 + "\n")
    with pytest.raises(ValueError, match="line 5: 300001 values, but the header names 5"):
        read_candidates(tmp_path)


def test_read_candidates_tells_the_first_of_several_wrong_lines(tmp_path):
    write(tmp_path, TABLE.replace("4,5,6", "x,5,6").replace("1,2,3", "inf,2,3"))
    with pytest.raises(ValueError, match="line 3: coordX is 'inf'"):
        read_candidates(tmp_path)


def test_read_candidates_accepts_rows_that_repeat_without_contradiction(tmp_path):
    write(tmp_path, TABLE + "1.3.6,1,2,3,1\n1.3.6,1,2,3.000001,0\n")
    table = read_candidates(tmp_path)
    assert len(table) == 5
    assert duplicate_rows(table).tolist() == [3]


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"no zip at all"])
def test_read_candidates_refuses_a_damaged_zip(tmp_path, content):
    write(tmp_path, content, "candidates_V2.zip")
    with pytest.raises(ValueError, match=r"candidates_V2\.zip is damaged.*fetch it again"):
        read_candidates(tmp_path)


def test_read_candidates_refuses_a_zip_with_a_flipped_bit(tmp_path):
    path = tmp_path / "candidates_V2.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("candidates_V2.csv", TABLE)
    content = path.read_bytes()
    at = content.index(b"-300.25")
    path.write_bytes(content[:at] + b"-301.25" + content[at + 7 :])
    with pytest.raises(ValueError, match=r"candidates_V2\.zip.*is damaged.*CRC"):
        read_candidates(tmp_path)


def test_read_candidates_of_a_folder_without_a_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no candidates_V2\.csv .* in .*: put LUNA16's candidate list there"):
        read_candidates(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no annotations_excluded\.csv in .*: put LUNA16's table there"):
        read_excluded(tmp_path)


def test_read_annotations_refuses_a_diameter_of_zero(tmp_path):
    write(tmp_path, TABLE.replace("class", "diameter_mm"), "annotations.csv")
    with pytest.raises(ValueError, match=r"annotations\.csv, line 2: diameter_mm is 0, expected a diameter in mm"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "seriesuid\n1.3.6\n1.3.9\n",
        "\ufeffSeriesInstanceUID;\r\n1.3.6;\r\n1.3.9;\r\n",
        '"1.3.6"\n"1.3.9"\n',
        '"seriesuid"\n"1.3.6"\n"1.3.9"\n',
        ",seriesuid\n0,1.3.6\n1,1.3.9\n",
        "1.3.6;\n1.3.9;\n",
        "subset;series_uid\n0;1.3.6\n1;1.3.9\n",
    ],
)
def test_read_series_uids_knows_a_header_quotes_and_semicolons(tmp_path, content):
    assert read_series_uids(write(tmp_path, content, "seriesuids.csv")) == ("1.3.6", "1.3.9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "0,1.3.6\n1,1.3.9\n",
            r"seriesuids\.csv, line 1: several columns: one series a line was expected, or a header",
        ),
        ("1.3.6\n1.3.9 1.3.10,x\n", r"seriesuids\.csv, line 2: several columns"),
        ("1.3.6.mhd\n1.3.9.mhd\n", r"1\.3\.6\.mhd \(.*seriesuids\.csv\) names a file: list the series alone"),
        (
            "scan\n1.3.6\n1.3.9\n",
            r"line 1: 'scan' is no identifier as the others are: remove the line if it is a header",
        ),
        ("0\n1.3.6\n1.3.9\n", "line 1: '0' is no identifier as the others are"),
    ],
)
def test_read_series_uids_refuses_other_forms_with_the_reason(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_series_uids(write(tmp_path, content, "seriesuids.csv"))


def test_read_series_uids_takes_names_that_are_no_dicom_identifiers(tmp_path):
    assert read_series_uids(write(tmp_path, "a\nb\n1.3.6\n", "seriesuids.csv")) == ("1.3.6", "a", "b")


NODULE_HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm"


@pytest.mark.parametrize(
    "rows",
    [
        "1.3.6,1,2,3,5\n1.3.9,1,2,3,5\n1.3.6,1,2,3,5\n",
        "1.3.6,1,2,3,5\n1.3.9,1,2,3,5\n1.3.6,1.006,2,3.006,7\n",
    ],
)
def test_read_annotations_refuses_a_nodule_that_is_listed_twice(tmp_path, rows):
    write(tmp_path, f"{NODULE_HEADER}\n{rows}", "annotations.csv")
    with pytest.raises(
        ValueError,
        match=r"annotations\.csv, lines 2 and 4: a nodule of series 1\.3\.6 is listed twice, .* \(1 such pairs",
    ):
        read_annotations(tmp_path)


def test_read_annotations_takes_nodules_that_are_near_each_other(tmp_path):
    write(tmp_path, f"{NODULE_HEADER}\n1.3.6,1,2,3,5\n1.3.6,1,2,3.011,5\n1.3.9,1,2,3,5\n", "annotations.csv")
    assert len(read_annotations(tmp_path)) == 3


def test_read_series_uids_refuses_a_series_that_is_listed_twice(tmp_path):
    path = write(tmp_path, "1.3.6\n1.3.9\n1.3.6\n", "seriesuids.csv")
    with pytest.raises(ValueError, match=r"series 1\.3\.6 is listed twice in .*seriesuids\.csv: keep one line"):
        read_series_uids(path)


def test_read_series_uids_refuses_what_could_lead_out_of_a_folder(tmp_path):
    path = write(tmp_path, "1.3.6\n../../etc\n", "seriesuids.csv")
    with pytest.raises(ValueError, match=r"'\.\./\.\./etc' \(.*seriesuids\.csv\) is no series identifier"):
        read_series_uids(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the highest use of memory is read from /proc")
def test_read_candidates_of_luna16s_size_keeps_no_object_for_a_row(tmp_path):
    rows = 754_975
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + i}" for i in range(888)]
    block = [f"{uids[i % 888]},{i % 400}.125,{i % 300}.5,-{i % 700},{int(i % 485 == 0)}" for i in range(88_800)]
    write(tmp_path, "\n".join([HEADER, *(block * 9)[:rows]]))
    # in a process of its own, whose memory holds nothing else
    child = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    measured = json.loads(child.stdout)
    assert measured["rows"] == rows
    assert measured["series"] == 888
    # 4 + 24 + 8 + 4 bytes a row, in columns that are no views of something larger
    assert measured["column_bytes"] == 40 * rows
    assert not measured["views"]
    # beside the columns, a table is a name and 888 series
    assert measured["pickle_bytes"] < 40 * rows + 200_000
    assert measured["peak_mb"] < 500


def test_real_tables_load_and_join(shared):
    folder = shared("data/luna16")
    uids = read_series_list(folder)
    nodules, excluded = read_annotations(folder), read_excluded(folder)
    assert uids is not None
    assert len(uids) == 888
    assert (len(nodules), len(excluded)) == (1186, 35192)
    assert len(nodules.series_uids) == 601
    assert int((excluded.values == -1).sum()) == 30513
    for table in (nodules, excluded):
        table.require_series(uids, "seriesuids.csv")
    # each nodule lies on itself
    assert lies_on(nodules, nodules).all()
