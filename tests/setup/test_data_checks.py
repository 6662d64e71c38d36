"""What doctor looks at of several data folders; of one, see test_doctor.py."""

from __future__ import annotations

from pathlib import Path

from luna16_monai.setup.data_checks import data_sets, name_data_sets


def ct(folder: Path, uid: str) -> Path:
    """A file that is a CT by its name."""
    folder.mkdir(exist_ok=True)
    (folder / f"{uid}.mhd").touch()
    return folder


def test_data_sets_need_a_store_each(tmp_path):
    (found,) = data_sets([ct(tmp_path / "a", "1"), ct(tmp_path / "b", "2")], [tmp_path / "store"])
    assert (found["ok"], found["found"]) == (False, {"data folders": 2, "stores": 1})
    assert "one store for each" in found["cure"]


def test_data_sets_share_no_series(tmp_path):
    folders, stores = [ct(tmp_path / "a", "1"), ct(tmp_path / "b", "2")], [tmp_path / "s", tmp_path / "t"]
    assert [one["ok"] for one in data_sets(folders, stores)] == [True]
    ct(tmp_path / "b", "1")
    (found,) = data_sets(folders, stores)
    assert found["ok"] is False
    assert found["problem"].startswith(f"series 1 is in two of them, as {tmp_path / 'a' / '1.mhd'} and ")


def test_checks_of_each_data_set_bear_its_name():
    checks = [{"name": name} for name in ("python", "disk for data", "data", "disk for data", "data")]
    name_data_sets(checks, ("luna16", "own"))
    assert [one["name"] for one in checks] == [
        "python", "disk for data (luna16)", "data (luna16)", "disk for data (own)", "data (own)",
    ]  # fmt: skip
