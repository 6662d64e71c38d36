"""The readers' XML, in the schema of The Cancer Imaging Archive."""

from __future__ import annotations

import pytest
from ct_files import UID
from lidc_files import nodule, non_nodule, ring, roi, write_reads

from luna16_monai.interchange.lidc_xml import read_reads


def test_read_reads(tmp_path):
    sessions = [
        nodule(roi(1, ring((3, 7), (2, 6))), roi(2, ring((3, 7), (2, 6)), included=False), malignancy=4),
        nodule(roi(0, [(5, 6)])) + non_nodule(3, (7, 8)),
    ]
    reads = read_reads(write_reads(tmp_path / "068.xml", sessions))
    assert reads is not None
    assert reads.series_uid == UID
    large, small = reads.nodules
    assert (large.reader, large.is_small, large.ratings) == (0, False, {"subtlety": 4, "malignancy": 4})
    assert [(one.sop_uid, one.z_mm, one.included, len(one.pixels)) for one in large.rois] == [
        (f"{UID}.2", 32.0, True, 16), (f"{UID}.3", 34.0, False, 16),
    ]  # fmt: skip
    assert large.rois[0].pixels[0].tolist() == [3, 2]
    assert (small.reader, small.is_small, small.ratings) == (1, True, {})
    (other,) = reads.others
    assert (other.sop_uid, other.pixels.tolist()) == (f"{UID}.4", [[7, 8]])
    assert other.where.endswith("068.xml, reader 2, non-nodule 1")


@pytest.mark.parametrize("text", ['<IdriReadMessage xmlns="http://www.nih.gov/idri"/>', "<html/>"])
def test_reads_of_other_things_are_none(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    assert read_reads(tmp_path / "a.xml") is None


WHOLE = nodule(roi(1, ring((3, 7), (2, 6))), malignancy=4)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("</LidcReadMessage>", "", "a.xml is no XML that can be read"),
        ("ResponseHeader>", "Header>", "a.xml: ResponseHeader is missing: fetch the file again"),
        (f"<SeriesInstanceUid>{UID}", "<SeriesInstanceUid>", "ResponseHeader: SeriesInstanceUid is missing or empty"),
        ("<xCoord>3</xCoord>", "<xCoord>3.5</xCoord>", "reader 1, nodule 1: xCoord is '3.5', no whole number"),
        ("<xCoord>3</xCoord>", "", "reader 1, nodule 1: xCoord is missing or empty"),
        (">32.0<", ">high<", "imageZposition is 'high', no number"),
        (">32.0<", ">nan<", "imageZposition is 'nan', not finite"),
        ("roi>", "rim>", "reader 1, nodule 1: there is no roi"),
        ("edgeMap>", "edge>", "there is no edgeMap"),
        ("<malignancy>4", "<malignancy>high", "malignancy is 'high', no whole number"),
    ],
)
def test_read_reads_refuses(tmp_path, before, after, message):
    path = write_reads(tmp_path / "a.xml", [WHOLE])
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=r"a\.xml") as caught:
        read_reads(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_reads_refuses_a_slice_that_nothing_names(tmp_path):
    path = write_reads(tmp_path / "a.xml", [WHOLE])
    path.write_text(path.read_text().replace(f"{UID}.2", "").replace("32.0", ""))
    with pytest.raises(ValueError, match="neither imageSOP_UID nor imageZposition says which slice"):
        read_reads(path)


def test_entities_do_not_fill_the_memory(tmp_path):
    entities = "".join(
        f'<!ENTITY e{k} "{"&e" + str(k - 1) + ";" * 1}{("&e" + str(k - 1) + ";") * 9}">' for k in range(1, 12)
    )
    (tmp_path / "a.xml").write_text(
        f'<!DOCTYPE x [<!ENTITY e0 "aaaaaaaaaa">{entities}]><LidcReadMessage>&e11;</LidcReadMessage>'
    )
    with pytest.raises(ValueError, match="is no XML that can be read"):
        read_reads(tmp_path / "a.xml")
