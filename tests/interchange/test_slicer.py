"""3D Slicer's markups: what it writes is read, and what a reader moved or added comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_files import write_ct

from luna16_monai.interchange.formats import read, write
from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.interchange.slicer import read_markups, read_old_markups


def markups(*points: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": list(points), **more}]}


def saved(folder: Path, document: Any, name: str = "1.3.6.mrk.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


POINT = {"label": "F-1", "position": [1, 2, 3]}


@pytest.mark.parametrize(
    ("frame", "expected"),
    [("LPS", [1, 2, 3]), ("RAS", [-1, -2, 3]), (1, [1, 2, 3]), (0, [-1, -2, 3]), ("1", [1, 2, 3])],
)
def test_read_markups_in_either_frame(tmp_path, frame, expected):
    points = read_markups(saved(tmp_path, markups(POINT, coordinateSystem=frame)), Scans())
    assert points.points_xyz.tolist() == [expected]
    assert (points.series, points.names) == (("1.3.6",), ("F-1",))
    assert not points.values


def test_what_a_reader_moved_and_added_comes_back(tmp_path):
    path = tmp_path / "1.3.6.mrk.json"
    points = Points(
        "rows", ("1.3.6",), np.array([[1.0, 2, 3]]),
        {CLASS: np.array([1.0]), PROBABILITY: np.array([0.931]), DIAMETER: np.array([6.25])},
    )  # fmt: skip
    write(path, points)
    document = json.loads(path.read_text())
    (mark,) = document["markups"][0]["controlPoints"]
    assert mark["label"] == "p=0.93 d=6.2 mm"
    assert mark["description"] == "class=1.0 probability=0.931 diameter_mm=6.25"
    mark["position"] = [1.5, 2, 3]
    document["markups"][0]["controlPoints"].append({"id": "2", "label": "F-2", "position": [7, 8, 9]})
    points = read(saved(tmp_path, document))
    assert points.points_xyz.tolist() == [[1.5, 2, 3], [7, 8, 9]]
    assert points.names == ("", "F-2")
    assert points.value(PROBABILITY)[0] == 0.931
    assert points.value(DIAMETER)[0] == 6.25
    assert np.isnan(points.value(PROBABILITY)[1])
    assert len(points.table(None)) == 2


def test_read_markups_tells_what_it_leaves_out(tmp_path):
    preview = {"label": "", "position": [0, 0, 0], "positionStatus": "preview"}
    document = markups(POINT, preview)
    document["markups"].append({"type": "Line", "controlPoints": []})
    points = read_markups(saved(tmp_path, document), Scans())
    assert len(points) == 1
    assert points.notes == ("1 lists that hold no fiducials left out", "1 points without a position left out")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (markups(POINT, coordinateSystem="IJK"), "list 1: coordinate system 'IJK' is neither LPS nor RAS"),
        (markups({"label": "a"}), "list 1, point 1: 'position' is missing"),
        (markups({"position": [1, 2]}), "list 1, point 1: position is [1, 2], 3 numbers were expected"),
        (markups({"position": [1, 2, None]}), "3 numbers were expected"),
        (markups({**POINT, "description": "probability=high"}), "its description says probability=high"),
        (markups({**POINT, "description": "probability=1.5"}), "point 1: probability is 1.5, expected a probability"),
        (markups(3), "list 1, point 1: 3 is no JSON object"),
        ({"markups": [{"type": "Line"}]}, "none of its 1 lists holds fiducials"),
        ({"markups": 3}, "'markups' is 3, a list was expected"),
        (
            {"markups": [*markups(POINT)["markups"], *markups(POINT, coordinateSystem="RAS")["markups"]]},
            "one list is LPS, another RAS: save each in a file of its own",
        ),
        ('{"markups": [NaN]}', "holds NaN, which is no number in JSON"),
    ],
)
def test_read_markups_refuses(tmp_path, document, message):
    with pytest.raises(ValueError, match=r"1\.3\.6\.mrk\.json") as caught:
        read_markups(saved(tmp_path, document), Scans())
    assert message in str(caught.value)


OLD = """# Markups fiducial file version = 4.11
# CoordinateSystem = {frame}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,-12.5,34.25,56.75,0,0,0,1,1,1,0,LM1,probability=0.5,
vtkMRMLMarkupsFiducialNode_1,1,2,3,0,0,0,1,1,1,0,"L,2",,
"""


@pytest.mark.parametrize(
    ("frame", "first"), [("0", [12.5, -34.25, 56.75]), ("RAS", [12.5, -34.25, 56.75]), ("LPS", [-12.5, 34.25, 56.75])]
)
def test_read_old_markups(tmp_path, frame, first):
    path = saved(tmp_path, OLD.format(frame=frame), "1.3.6.fcsv")
    points = read_old_markups(path, Scans())
    assert points.points_xyz[0].tolist() == first
    assert points.names == ("LM1", "L,2")
    assert points.value(PROBABILITY)[0] == 0.5
    assert read(path).series == ("1.3.6", "1.3.6")


def test_read_old_markups_without_a_word_about_the_frame_is_ras(tmp_path):
    text = "\n".join(line for line in OLD.splitlines() if "Coordinate" not in line)
    assert read_old_markups(saved(tmp_path, text, "a.fcsv"), Scans()).points_xyz[1].tolist() == [-1, -2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD.format(frame="2"), "a.fcsv, line 2: coordinate system '2' is neither LPS nor RAS"),
        (OLD.format(frame="0").replace("34.25", "high"), "a.fcsv, line 4: position is [-12.5, 'high', 56.75]"),
        (
            OLD.format(frame="0").replace("34.25", "nan"),
            "a.fcsv, line 4: position is [-12.5, nan, 56.75], which is not",
        ),
    ],
)
def test_read_old_markups_refuses(tmp_path, text, message):
    with pytest.raises(ValueError, match="fcsv") as caught:
        read_old_markups(saved(tmp_path, text, "a.fcsv"), Scans())
    assert message in str(caught.value)


def test_one_ct_that_is_named_wins_over_the_name_of_the_file(tmp_path):
    scans = Scans.open([write_ct(tmp_path / "a.mhd")])
    path = saved(tmp_path, markups({"position": [10, 20, 30]}), "F.mrk.json")
    assert read_markups(path, scans).series == ("a",)
    both = Scans.open([tmp_path / "a.mhd", write_ct(tmp_path / "b.mhd")])
    with pytest.raises(ValueError, match=r"F.mrk.json: F is none of the CTs \(a, b\): name its CT with --ct"):
        read_markups(path, both)
