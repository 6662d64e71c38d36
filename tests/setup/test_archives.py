"""Archives: unpacked safely, or refused."""

from __future__ import annotations

import io
import stat
import zipfile
from types import SimpleNamespace

import pytest
from mirror import TWO, tree, zipped

from luna16_monai.setup import archives
from luna16_monai.setup import download as module
from luna16_monai.setup.archives import unpack


def special(name: str, mode: int, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, content)
    return buffer.getvalue()


def understated(members: dict[str, bytes]) -> bytes:
    """An archive whose list says that its first member unpacks to 100 bytes."""
    content = bytearray(zipped(members))
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        *((zipped({**TWO, name: b"x"}), "no plain path; nothing of it is unpacked") for name in (
            "../1.2.mhd", "subset0/../../1.2.raw", "/tmp/1.2.mhd", "..\\..\\1.2.mhd", "C:/1.2.mhd", "subset0//1.2.mhd",
            "./1.2.mhd", "subset0/1.2\n.mhd", "../harmless.txt",
        )),
        (special("subset0/1.1.mhd", stat.S_IFLNK | 0o777, "/etc/passwd"), "a link or another special file"),
        (special("subset0/1.1.mhd", stat.S_IFIFO | 0o777, ""), "a link or another special file"),
        (zipped({**TWO, "subset0/1.2.raw": bytes(10_000_000)}), "would unpack to 0.0 GB from 0.0 GB, more than CTs"),
        (understated({"1.1.raw": bytes(1000), "1.1.mhd": b"header"}), "cannot be unpacked"),
        (zipped({**TWO, "1.1.raw": b"other"}), "holds 1.1.raw twice"),
        (zipped(TWO, zipfile.ZIP_BZIP2), r"1.1.mhd in a form that Python cannot unpack \(method 12\).*7z"),
        (zipped({"subset0/1.1.mhd": b"header"}), "is incomplete, subset0/1.1.raw is missing"),
        (zipped({"readme.txt": b"nothing here"}), r"is incomplete, subset0/\*.mhd is missing"),
        (zipped(TWO)[:-30], "cannot be unpacked .File is not a zip file"),
        (zipped({**TWO, "1.2.raw": b"v" * 50}, zipfile.ZIP_STORED).replace(b"v" * 50, b"w" * 50), "Bad CRC-32"),
    ],
)  # fmt: skip
def test_unpack_refuses(tmp_path, archive, message):
    path, output = tmp_path / "archive", tmp_path / "data" / "luna16"
    path.write_bytes(archive)
    output.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"subset0.zip .*{message}"):
        unpack(path, "subset0.zip", output)
    # what was whole before a damaged member was met may stay, but nothing of that member, and no header
    assert tree(tmp_path, hidden=True) - {"data/luna16/subset0/1.1.raw"} == {"archive"}


def test_unpack_cuts_nothing_off_a_name(tmp_path):
    # zipfile would read this name up to the NUL
    (tmp_path / "archive").write_bytes(zipped({"1.1.mhd#.txt": b"x"}).replace(b"mhd#", b"mhd\0"))
    with pytest.raises(ValueError, match=r"'1.1.mhd\\x00.txt', no plain path"):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)


def test_unpack_leaves_other_files_in_the_archive(tmp_path):
    more = {"subset0/.1.2.mhd": b"x", "__MACOSX/subset0/._1.1.mhd": b"x", "subset0/run.sh": b"x", "subset0/": b""}
    (tmp_path / "archive").write_bytes(zipped({**TWO, **more}))
    (tmp_path / "data").mkdir()
    assert unpack(tmp_path / "archive", "subset0.zip", tmp_path / "data") == {
        "subset0/1.1.mhd": 6,
        "subset0/1.1.raw": 6,
    }
    assert tree(tmp_path / "data") == {"subset0/1.1.mhd", "subset0/1.1.raw"}


def test_unpack_takes_archives_with_and_without_a_folder_of_their_own(tmp_path):
    for number, folder in enumerate(("", "subset3/", "subset3\\", "LUNA16/subset3/")):
        (tmp_path / "archive").write_bytes(zipped({f"{folder}1.1.mhd": b"header", f"{folder}1.1.zraw": b"voxels"}))
        output = tmp_path / str(number)
        output.mkdir()
        unpack(tmp_path / "archive", "subset3.zip", output)
        assert tree(output) == {"subset3/1.1.mhd", "subset3/1.1.zraw"}


@pytest.mark.parametrize(("limit", "message"), [("MOST_MEMBERS", "has 2 members"), ("LONGEST_LIST", "list of members")])
def test_unpack_refuses_a_list_of_members_without_end(tmp_path, monkeypatch, limit, message):
    (tmp_path / "archive").write_bytes(zipped(TWO))
    monkeypatch.setattr(archives, limit, 1 if limit == "MOST_MEMBERS" else 100)
    with pytest.raises(ValueError, match=message):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)


def test_unpack_checks_the_room_for_what_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "archive").write_bytes(zipped(TWO))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=11))
    with pytest.raises(RuntimeError, match=r"subset0.zip unpacks to 0.0 GB: free some space"):
        unpack(tmp_path / "archive", "subset0.zip", tmp_path)
    assert tree(tmp_path) == {"archive"}


def test_unpack_names_the_table_that_is_missing(tmp_path):
    (tmp_path / "archive").write_bytes(zipped({"evaluationScript/annotations/seriesuids.csv": "1.1\n"}))
    with pytest.raises(ValueError, match=r"evaluationScript.zip is incomplete, annotations_excluded.csv is missing"):
        unpack(tmp_path / "archive", "evaluationScript.zip", tmp_path)
