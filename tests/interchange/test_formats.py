"""Formats are told apart, and points come back from each as they were."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from ct_files import write_ct
from grand_challenge_schema import MULTIPLE_POINTS
from hypothesis import given, settings
from hypothesis import strategies as st

from luna16_monai.interchange.formats import (
    FORMATS,
    Conventions,
    check_output,
    format_for,
    format_of,
    read,
    read_as_table,
    write,
)
from luna16_monai.interchange.points import CLASS, DIAMETER, KNOWN, PROBABILITY, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.tables.points import write_points

BOTH_WAYS = ("luna16", "grand-challenge", "monai", "slicer")
SUFFIX = {"luna16": ".csv", "grand-challenge": ".json", "monai": ".json", "slicer": ".mrk.json", "luna25": ".json"}
TWO = Points(
    "two",
    ("1.3.9", "1.3.6"),
    np.array([[-10.5, 20.0, -300.25], [1.0, 2.0, 3.0]]),
    {PROBABILITY: np.array([0.25, 0.75]), DIAMETER: np.array([6.5, 4.0])},
)


def held(format_):
    """The values that a format can hold."""
    return FORMATS[format_].holds or KNOWN


coordinates = st.floats(-2000, 2000).map(lambda value: round(value, 6) + 0.0)
probabilities = st.one_of(st.just(np.nan), st.floats(0, 1))
diameters = st.one_of(st.just(np.nan), st.floats(0.5, 60))
words = st.text("abcXYZ019 _-", max_size=12).map(str.strip)


@st.composite
def some_points(draw: st.DrawFn, one_series: bool = False) -> Points:
    n = draw(st.integers(1, 6))
    series = ["1.3.6"] * n if one_series else [draw(st.sampled_from(["1.3.6", "1.3.9", "b-c"])) for _ in range(n)]
    values = {
        PROBABILITY: np.array([draw(probabilities) for _ in range(n)]),
        DIAMETER: np.array([draw(diameters) for _ in range(n)]),
    }
    names = tuple(draw(words) for _ in range(n))
    xyz = np.array([[draw(coordinates) for _ in range(3)] for _ in range(n)])
    return Points("drawn", tuple(sorted(series)), xyz, values, names)


def round_trip(points: Points, format_: str, folder: Path) -> Points:
    path = folder / f"points{SUFFIX[format_]}"
    files, _ = write(path, points, format_)
    return read(files[0] if len(files) == 1 else files[0].parent, format_, conventions_of(points, files))


def conventions_of(points: Points, files: list[Path]) -> Conventions:
    """One file does not say which CT it is of, so that is named."""
    if len(files) > 1 or len(points.series_uids) != 1:
        return Conventions()
    return Conventions(OneName(points.series_uids[0]))


class OneName(Scans):
    """A CT of which nothing but the series is known."""

    def __init__(self, uid: str) -> None:
        super().__init__()
        object.__setattr__(self, "uid", uid)

    def series_of_file(self, path: Path, name: str) -> str:
        return self.uid  # type: ignore[attr-defined]


def same(found: Points, expected: Points, names: tuple[str, ...]) -> None:
    assert found.series == expected.series
    np.testing.assert_allclose(found.points_xyz, expected.points_xyz, rtol=0, atol=1e-6)
    for name in names:
        np.testing.assert_allclose(found.value(name), expected.value(name), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(points=some_points(), format_=st.sampled_from(["luna16", "grand-challenge", "slicer"]))
def test_round_trip_loses_nothing_that_the_format_holds(tmp_path_factory, points, format_):
    found = round_trip(points, format_, tmp_path_factory.mktemp("trip"))
    same(found, points, tuple(name for name in (PROBABILITY, DIAMETER) if name in held(format_)))
    if format_ == "luna16":
        assert found.names == tuple(" ".join(name.split()) for name in points.names)
    elif format_ == "grand-challenge":
        kept = [(found_name, name) for found_name, name in zip(found.names, points.names, strict=True) if name]
        assert all(a == b for a, b in kept)


@settings(max_examples=60, deadline=None)
@given(points=some_points())
def test_round_trip_through_boxes_keeps_centres_and_diameters(tmp_path_factory, points):
    whole = points.select(np.isfinite(points.value(DIAMETER)))
    if not len(whole):
        return
    found = round_trip(points, "monai", tmp_path_factory.mktemp("trip"))
    same(found, whole, (DIAMETER, PROBABILITY) if whole.knows(PROBABILITY) else (DIAMETER,))


@settings(max_examples=40, deadline=None)
@given(points=some_points(one_series=True), first=st.sampled_from(BOTH_WAYS), second=st.sampled_from(BOTH_WAYS))
def test_two_formats_one_after_the_other_keep_what_both_hold(tmp_path_factory, points, first, second):
    points = points.select(np.isfinite(points.value(DIAMETER)))
    if not len(points):
        return
    folder = tmp_path_factory.mktemp("trip")
    through = round_trip(points, first, folder)
    if second == "monai" and not through.knows(DIAMETER):
        return
    found = round_trip(through, second, folder)
    both = [name for name in (PROBABILITY, DIAMETER) if all(name in held(one) for one in (first, second))]
    same(found, points, tuple(both))


def test_write_says_what_a_format_cannot_hold(tmp_path):
    points = Points(
        "rows", ("a", "a"), np.zeros((2, 3)),
        {CLASS: np.array([1.0, 0.0]), DIAMETER: np.array([5.0, 6.0]), "malignancy": np.array([0.5, np.nan])},
        ("first", ""),
    )  # fmt: skip
    assert write(tmp_path / "a.json", points)[1] == (
        "class left out: grand-challenge cannot hold it",
        "diameter_mm left out: grand-challenge cannot hold it",
        "malignancy left out: grand-challenge cannot hold it",
    )
    assert write(tmp_path / "b.mrk.json", points)[1] == ("malignancy left out: slicer cannot hold it",)
    assert write(tmp_path / "c.json", points, "monai")[1] == (
        "malignancy left out: monai cannot hold it",
        "names left out: monai cannot hold them",
        "1 points of class 0 left out: a data list holds nodules alone",
    )
    assert write(tmp_path / "d.csv", points)[1] == ()
    assert (tmp_path / "d.csv").read_text().splitlines() == [
        "seriesuid,coordX,coordY,coordZ,class,diameter_mm,malignancy,name",
        "a,0.000000,0.000000,0.000000,1,5.0,0.5,first",
        "a,0.000000,0.000000,0.000000,0,6.0,,",
    ]


def test_several_series_make_a_folder_of_files_that_bear_their_names(tmp_path):
    files, notes = write(tmp_path / "out.json", TWO)
    assert [str(file.relative_to(tmp_path)) for file in files] == ["out/1.3.6.json", "out/1.3.9.json"]
    assert notes == ("diameter_mm left out: grand-challenge cannot hold it",)
    document = json.loads(files[0].read_text())
    jsonschema.validate(document, MULTIPLE_POINTS)
    assert document == {
        "name": "Points of interest",
        "type": "Multiple points",
        "points": [{"name": "Point 1", "point": [1.0, 2.0, 3.0], "probability": 0.75}],
        "version": {"major": 1, "minor": 0},
    }
    back = read(tmp_path / "out")
    assert back.series == ("1.3.6", "1.3.9")
    with pytest.raises(FileExistsError, match=r"out is not empty \(it holds .*\): grand-challenge has one file a CT"):
        write(tmp_path / "out.json", TWO)
    with pytest.raises(FileExistsError):
        check_output(tmp_path / "out.json", "grand-challenge", ("a", "b"))
    check_output(tmp_path / "out.json", "grand-challenge", ("a", "a"))
    files, _ = write(tmp_path / "marks.mrk.json", TWO)
    assert [str(file.relative_to(tmp_path)) for file in files] == ["marks/1.3.6.mrk.json", "marks/1.3.9.mrk.json"]
    assert format_of(tmp_path / "marks") == "slicer"
    assert read(tmp_path / "marks").value(DIAMETER).tolist() == [4.0, 6.5]


@pytest.mark.parametrize("format_", BOTH_WAYS)
def test_format_is_told_by_what_a_file_holds(tmp_path, format_):
    one = TWO.select([0])
    files, _ = write(tmp_path / f"1.3.9{SUFFIX[format_]}", one, format_)
    assert format_of(files[0]) == format_
    same(read(files[0]), one, (PROBABILITY,))


def test_format_is_told_of_a_table_without_suffix(tmp_path):
    write_points(tmp_path / "table", ["a"], [[1, 2, 3]], [0.5], "probability")
    assert format_of(tmp_path / "table") == "luna16"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.csv", "luna16"), ("a.mrk.json", "slicer"), ("a.json", "grand-challenge"), ("A.JSON", "grand-challenge"),
     ("lung-nodule-malginancy-likelihoods.json", "luna25")],
)  # fmt: skip
def test_format_for_goes_by_the_suffix(name, expected):
    assert format_for(Path(name)) == expected


def test_format_for_refuses_other_suffixes():
    with pytest.raises(ValueError, match=r"'a.txt' says no format to write in: end it in .csv, .json or .mrk.json"):
        format_for(Path("a.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "is in no known format: name another file, or its format (luna16, grand-challenge"),
        ("a.json", "[1, 2", "a.json, line 1: Expecting ',' delimiter: save it as JSON anew"),
        ("a.json", '{"markups": NaN}', "a.json holds NaN, which is no number in JSON: mend or remove it"),
        ("a.json", "[" * 100_000, "a.json is nested too deep"),
        ("a.json", b"\xff\xfe", "a.json is no text in UTF-8"),
        ("a.txt", "hello", "is in no known format"),
        ("a.txt", b"\xff\xfe", "is in no known format"),
    ],
)
def test_format_of_refuses_what_is_unknown_or_damaged(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="") as caught:
        format_of(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_format_of_a_missing_file_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.csv"):
        format_of(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="holds no points"):
        format_of(tmp_path)


def test_read_voxels_by_the_named_order(tmp_path):
    """10 + 2 * 0.5 mm, 20 + 3 * 0.75, 30 + 1 * 2: see ct_files.write_ct."""
    scans = Scans.open([write_ct(tmp_path / "a.mhd")])
    write_points(tmp_path / "zyx.csv", ["a"], [[1, 3, 2]], [1], "class")
    write_points(tmp_path / "xyz.csv", ["a"], [[2, 3, 1]], [1], "class")
    for order in ("zyx", "xyz"):
        points = read(tmp_path / f"{order}.csv", conventions=Conventions(scans, voxel=order))
        assert points.points_xyz.tolist() == [[11.0, 22.25, 32.0]]
    write_points(tmp_path / "far.csv", ["a"], [[5, 3, 1]], [1], "class")
    with pytest.raises(ValueError, match=r"\(10.5, 22.2, 40.0\) mm \(.*far.csv, line 2\) lies outside series a"):
        read(tmp_path / "far.csv", conventions=Conventions(scans, voxel="zyx"))
    with pytest.raises(ValueError, match="voxels need their CT: name it with --ct"):
        read(tmp_path / "xyz.csv", conventions=Conventions(voxel="zyx"))
    with pytest.raises(ValueError, match="--voxel yxz: name the axes' order, zyx or xyz"):
        read(tmp_path / "xyz.csv", conventions=Conventions(scans, voxel="yxz"))
    write(tmp_path / "a.json", TWO.select([0]))
    with pytest.raises(ValueError, match="grand-challenge is in millimetres: leave --voxel out"):
        read(tmp_path / "a.json", conventions=Conventions(scans, voxel="zyx"))


def test_read_turns_ras_tables_and_boxes_round(tmp_path):
    for name, format_ in (("a.csv", "luna16"), ("a.json", "monai")):
        write(tmp_path / name, TWO.select([1]), format_)
        turned = read(tmp_path / name, conventions=Conventions(ras=True))
        assert turned.points_xyz.tolist() == [[-1.0, -2.0, 3.0]]
    write(tmp_path / "a.mrk.json", TWO.select([1]))
    with pytest.raises(ValueError, match="slicer says or fixes its frame itself: leave --ras out"):
        read(tmp_path / "a.mrk.json", conventions=Conventions(ras=True))


def test_points_outside_their_ct_or_of_another_are_refused(tmp_path):
    scans = Scans.open([write_ct(tmp_path / "a.mhd"), write_ct(tmp_path / "b.mhd")])
    write_points(tmp_path / "out.csv", ["a", "b"], [[10, 20, 30], [10, 20, 60]], [1, 1], "class")
    with pytest.raises(ValueError, match=r"\(10.0, 20.0, 60.0\) mm \(.*out.csv, line 3\) lies outside series b"):
        read(tmp_path / "out.csv", conventions=Conventions(scans))
    write_points(tmp_path / "c.csv", ["c"], [[10, 20, 30]], [1], "class")
    with pytest.raises(ValueError, match=r"c.csv, line 2: c is none of the CTs \(a, b\): name its CT with --ct"):
        read(tmp_path / "c.csv", conventions=Conventions(scans))
    write(tmp_path / "d.json", TWO.select([0]))
    with pytest.raises(ValueError, match=r"d.json: d is none of the CTs \(a, b\)"):
        read(tmp_path / "d.json", conventions=Conventions(scans))


def test_read_as_table_gives_the_value_or_says_who_lacks_it(tmp_path):
    write(tmp_path / "1.3.9.json", TWO.select([0]))
    table, notes = read_as_table(tmp_path / "1.3.9.json", "probability")
    assert (table.row_series(), table.values.tolist(), notes) == (["1.3.9"], [0.25], ())
    assert table.place(0).endswith("1.3.9.json, point 1")
    with pytest.raises(ValueError, match=r"1.3.9.json, point 1: it has no class: give each point one"):
        read_as_table(tmp_path / "1.3.9.json", "class")
    write_points(tmp_path / "a.csv", ["a"], [[1, 2, 3]], [2], "probability")
    with pytest.raises(ValueError, match=r"a.csv, line 2: probability is 2, expected a probability between 0 and 1"):
        read_as_table(tmp_path / "a.csv", "probability")


@pytest.mark.parametrize("format_", ["lidc", "nifti"])
def test_write_refuses_formats_that_are_not_written(tmp_path, format_):
    with pytest.raises((ValueError, KeyError)):
        write(tmp_path / "a.csv", TWO, format_)
    assert not list(tmp_path.iterdir())
    assert format_ not in FORMATS or format_ == "lidc"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "points", "point", "name", "probability", "version", "major", "minor", "markups", "position",
                 "controlPoints", "coordinateSystem", "label", "description", "validation", "image", "box", "score"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip
skeletons = st.one_of(
    json_values,
    json_values.map(lambda v: {"type": "Multiple points", "points": v, "version": {"major": 1, "minor": 0}}),
    json_values.map(lambda v: {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": v}]}),
    json_values.map(lambda v: {"markups": v}),
    json_values.map(lambda v: {"validation": [{"image": "a", "box": v}]}),
    json_values.map(lambda v: {"validation": v}),
)


@settings(max_examples=300, deadline=None)
@given(document=skeletons, format_=st.sampled_from([None, "grand-challenge", "monai", "slicer", "luna25"]))
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory, document, format_):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    try:
        points = read(path, format_)
    except ValueError as error:
        assert "any.json" in str(error)
        assert "\n" not in str(error)
    else:
        assert np.isfinite(points.points_xyz).all()
