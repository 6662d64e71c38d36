"""Preparing a store: resumable after any death, two at once, and every wrong input told before the long work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_scans import random_hu, write_scan

import luna16_monai.store.prepare as prepare_module
from luna16_monai.cli.main import main
from luna16_monai.ct import opening
from luna16_monai.ct.opening import CT
from luna16_monai.machine.files import atomic_write
from luna16_monai.store.preparation import Preparation
from luna16_monai.store.prepare import prepare
from luna16_monai.store.reading import Store, verify
from luna16_monai.tables.points import write_points

PREPARE_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "prepare.yaml"
NATIVE = Preparation.read(PREPARE_YAML, None)
SERIES = ("a", "b", "c", "d")


@pytest.fixture
def data(tmp_path) -> Path:
    """Four small CTs of 1 mm, a and b in subset0, c and d in subset1; (0, 0, 0) mm is the first voxel."""
    for seed, uid in enumerate(SERIES):
        voxels = random_hu(seed, (10, 12, 14))
        write_scan(tmp_path / "data" / f"subset{seed // 2}", uid, voxels, None, (0, 0, 0), (1, 1, 1))
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


def run(data: Path, store: Path, recipe: Preparation = NATIVE, workers: int = 1, **settings: Any) -> Store:
    return prepare(data, store, recipe, workers=workers, progress=False, **settings)


def contents(store: Path) -> dict[str, str]:
    """What lies in a store: names and hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}


def in_child(work: Callable[[], object]) -> int:
    """Do some work in a fork of this process; gives what os.wait tells of its end."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # as a loader's worker does: a fork has no other threads
            work()
        finally:
            os._exit(0)
    return child


def assert_nothing_is_half_written(store: Path) -> None:
    """Whatever bears a final name is whole: JSON can be read, and volumes fit their checksum."""
    for sidecar in store.glob("*.json"):
        entry = json.loads(sidecar.read_text(encoding="utf-8"))
        if sidecar.name != "store.json":
            volume = (store / f"{entry['series_uid']}.b2nd").read_bytes()
            assert hashlib.sha256(volume).hexdigest() == entry["sha256"]


# --- the plain case -------------------------------------------------------------------------------------------------


def test_prepare_makes_a_store_of_every_ct(data, store):
    result = run(data, store)
    assert result.series_uids == SERIES
    assert result.subsets == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert result.missing == ()
    assert verify(store, progress=False) == []
    assert sorted(contents(store)) == sorted(
        ["store.json", *(f"{uid}{end}" for uid in SERIES for end in (".b2nd", ".json"))]
    )


def test_prepare_again_does_nothing_anew(data, store, monkeypatch):
    run(data, store)
    before = contents(store)
    monkeypatch.setattr(prepare_module, "prepare_volume", lambda *_: pytest.fail("this CT was prepared already"))
    run(data, store)
    assert contents(store) == before


def test_prepare_makes_only_what_is_missing_or_of_another_size(data, store, monkeypatch):
    run(data, store)
    before = contents(store)
    (store / "a.b2nd").unlink()
    os.truncate(store / "b.b2nd", 100)
    (store / "c.json").write_text("{")
    done = []
    real = prepare_module.prepare_volume
    monkeypatch.setattr(
        prepare_module, "prepare_volume", lambda ct, *more: (done.append(ct.path.stem), real(ct, *more))[1]
    )
    run(data, store)
    assert done == ["a", "b", "c"]
    assert contents(store) == before


def test_prepare_opens_each_ct_once_and_builds_its_transforms_once(data, store, monkeypatch):
    opened, built = [], []
    open_metaimage, build = opening.open_metaimage, Preparation.build

    def counted(path: Path, *more: Any) -> Any:
        opened.append(path.stem)
        return open_metaimage(path, *more)

    def counted_build(recipe: Preparation, *more: Any) -> Any:
        built.append(more)
        return build(recipe, *more)

    monkeypatch.setattr(opening, "open_metaimage", counted)
    monkeypatch.setattr(Preparation, "build", counted_build)
    run(data, store)
    assert sorted(opened) == list(SERIES)
    assert built == [(data, False)]


def test_prepare_knows_the_subset_where_a_ct_lies_now(data, store):
    run(data, store)
    for suffix in (".mhd", ".raw"):
        (data / "subset7").mkdir(exist_ok=True)
        (data / "subset0" / f"a{suffix}").rename(data / "subset7" / f"a{suffix}")
    assert run(data, store).subsets == {"a": 7, "b": 0, "c": 1, "d": 1}
    assert verify(store, progress=False) == []


def test_prepare_never_takes_lung_masks_for_cts(data, store):
    for uid in SERIES:
        write_scan(data / "seg-lungs-LUNA16", uid, np.zeros((10, 12, 14), np.int16))
    run(data, store)
    assert Store(store).volume("a").voxels[5].any()


# --- interrupted ----------------------------------------------------------------------------------------------------


def test_prepare_goes_on_after_a_ct_that_failed(data, store):
    raw = data / "subset1" / "c.raw"
    whole = raw.read_bytes()
    real = prepare_module.prepare_volume

    def fail_at_c(ct: CT, *more: Any) -> Any:
        if ct.path.stem == "c":
            raise OSError("the disk burns")
        return real(ct, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "prepare_volume", fail_at_c)
        with pytest.raises(OSError, match="the disk burns"):
            run(data, store)
    assert sorted(contents(store)) == ["a.b2nd", "a.json", "b.b2nd", "b.json", "store.json"]
    assert_nothing_is_half_written(store)
    with pytest.raises(FileNotFoundError, match="is not finished: run luna16 prepare again, it goes on"):
        Store(store)
    assert raw.read_bytes() == whole
    assert run(data, store).series_uids == SERIES
    assert verify(store, progress=False) == []


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
@pytest.mark.parametrize("name", ["store.json", "c.b2nd", "c.json"])
def test_prepare_killed_at_any_moment_leaves_nothing_half_written_and_goes_on(data, store, name, moment, tmp_path):
    run(data, tmp_path / "whole")

    def kill(source: Path, target: Path, replace: Callable[..., None] = os.replace) -> None:
        if Path(target).name == name and moment == "before the rename":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        os.replace = kill
        run(data, store)

    child = in_child(work)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert (store / name).exists() == (moment == "after the rename")
    assert len(list(store.glob(".*.tmp"))) == (moment == "before the rename")
    assert_nothing_is_half_written(store)
    for aside in store.glob(".*.tmp"):
        os.utime(aside, (0, 0))
    run(data, store)
    # what the dead one left aside long ago is gone as well
    assert contents(store) == contents(tmp_path / "whole")


def test_prepare_leaves_alone_what_a_living_one_is_writing(data, store):
    store.mkdir()
    with atomic_write(store / "z.json") as stream:
        stream.write(b"{}")
        stream.flush()
        (aside,) = store.glob(".z.json.*.tmp")
        os.utime(aside, (0, 0))
        run(data, store)
        assert len(list(store.glob(".z.json.*.tmp"))) == 1
    assert (store / "z.json").read_bytes() == b"{}"


def test_two_prepares_at_once_end_with_one_good_store(data, store, tmp_path):
    run(data, tmp_path / "whole")
    gate = time.monotonic() + 0.3

    def work() -> None:
        time.sleep(max(0, gate - time.monotonic()))
        run(data, store)

    for _ in range(3):
        shutil.rmtree(store, ignore_errors=True)
        for child in [in_child(work) for _ in range(3)]:
            assert os.waitpid(child, 0)[1] == 0
        assert contents(store) == contents(tmp_path / "whole")
        gate = time.monotonic() + 0.1


def test_prepare_says_when_another_one_took_its_work_away(data, store, monkeypatch):
    real = prepare_module._prepare_one

    def take_away(ct: Any, **settings: Any) -> None:
        real(ct, **settings)
        (store / "a.json").unlink(missing_ok=True)

    monkeypatch.setattr(prepare_module, "_prepare_one", take_away)
    with pytest.raises(RuntimeError, match=f"series a was changed in {store} meanwhile: run luna16 prepare again"):
        run(data, store)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_prepare_refuses_another_recipe(data, store):
    run(data, store)
    before = contents(store)
    message = (
        rf"{store} holds a store of other settings \(spacing_zyx native instead of \[2\.0, 1\.0, 1\.0\], "
        r"transform list \w{12} instead of \w{12}\): name another --store, or remove this one"
    )
    with pytest.raises(ValueError, match=message):
        run(data, store, Preparation.read(PREPARE_YAML, [2, 1, 1]))
    other = Preparation({**NATIVE.config, "note": "the same spacing, another list"})
    with pytest.raises(ValueError, match=r"of other settings \(transform list \w{12} instead of \w{12}\)"):
        run(data, store, other)
    assert contents(store) == before


def test_prepare_takes_over_a_store_that_holds_no_volume_yet(data, store):
    shutil.rmtree(data / "subset0")
    shutil.rmtree(data / "subset1")
    write_scan(data, "a", random_hu(0, (4, 4, 4)))
    prepare_module._begin(store, Preparation.read(PREPARE_YAML, [2, 1, 1]))
    assert run(data, store).index["spacing_zyx"] is None


def test_prepare_wants_every_listed_ct_unless_told_otherwise(data, store):
    (data / "seriesuids.csv").write_text("a\nb\nc\nd\ne\nf\n")
    message = (
        rf"2 of the series in {data}/seriesuids\.csv have no CT, the first is e: download the rest, or .*--allow-m"
    )
    with pytest.raises(FileNotFoundError, match=message):
        run(data, store)
    assert not store.exists()
    result = run(data, store, allow_missing=True)
    assert result.missing == ("e", "f")
    assert result.series_uids == SERIES


def test_prepare_names_the_line_of_a_candidate_outside_its_scan(data, store):
    # the scan reaches from -0.5 to 13.5 mm in x; e has no CT, which is none of this check's business
    points = [[13.4, 11, 9], [5, 5, 5], [13.6, 11, 9]]
    write_points(data / "candidates_V2.csv", ["a", "e", "b"], points, [0, 1, 0], "class")
    message = (
        rf"candidate (13.6, 11.0, 9.0) mm ({data}/candidates_V2.csv, line 4) lies outside series b "
        "(x from 0 to 13 mm, y from 0 to 11 mm, z from 0 to 9 mm): does this table belong to this CT?"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        run(data, store)
    # the work is not lost: with the table mended there is nothing left to do
    assert verify(store, progress=False) == []


def test_prepare_tells_of_a_wrong_table_before_the_long_work(data, store):
    (data / "candidates_V2.csv").write_text("seriesuid,coordX,coordY,coordZ,class\na,1,2,x,0\n")
    with pytest.raises(ValueError, match=r"candidates_V2\.csv, line 2: coordZ is 'x'"):
        run(data, store)
    assert not store.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_tells_what_is_wrong_with_a_ct_whatever_process_reads_it(data, store, tmp_path, workers, capsys):
    """A damaged compressed file passes the look at its header, and fails inside MONAI's transforms."""
    run(data, tmp_path / "whole")
    path = write_scan(data / "subset2", "e", random_hu(9, (10, 12, 14)))
    raw = path.with_suffix(".raw").read_bytes()
    path.with_suffix(".zraw").write_bytes(b"\x78\x9c" + raw[:1500])
    header = path.read_text(encoding="utf-8").replace(
        "CompressedData = False", "CompressedData = True\nCompressedDataSize = 1502"
    )
    path.write_text(header.replace("e.raw", "e.zraw"))
    assert main(["prepare", "--data", str(data), "--store", str(store), "--native", f"--workers={workers}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"luna16: e\.zraw .*: .*", line)
    logs = {log.stem: log.read_text(encoding="utf-8") for log in (store / "logs").iterdir()}
    assert re.search(r" e\.mhd on .*\n.* failed: e\.zraw ", logs.pop("e"))
    assert all(" finished\n" in log for log in logs.values())
    shutil.rmtree(store / "logs")
    assert "e.json" not in contents(store)
    shutil.rmtree(data / "subset2")
    run(data, store)
    # the same bytes from other processes
    assert contents(store) == contents(tmp_path / "whole")


def test_prepare_follows_links_out_of_the_data_folder_only_when_told_to(data, store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (data / "subset0").rename(elsewhere)
    (data / "subset0").mkdir()
    for path in elsewhere.iterdir():
        (data / "subset0" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="symbolic link that leaves the data folder"):
        run(data, store)
    assert run(data, store, allow_symlinks=True).series_uids == SERIES
    assert verify(store, progress=False) == []


def test_prepare_follows_links_inside_the_data_folder(data, store):
    (data / "subset0").rename(data / "all")
    (data / "subset0").mkdir()
    for path in (data / "all").iterdir():
        (data / "subset0" / path.name).symlink_to(path)
    assert run(data, store).series_uids == SERIES


def test_prepare_of_a_folder_without_cts(tmp_path, store):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no CT in 'empty': expected subset0 to subset9"):
        run(tmp_path / "empty", store)
    with pytest.raises(FileNotFoundError, match="does not exist: give the folder that holds the CTs"):
        run(tmp_path / "nowhere", store)
    assert not store.exists()


# --- lists that cannot be built -------------------------------------------------------------------------------------


def test_prepare_refuses_a_list_that_cannot_be_built_before_it_begins(data, store, tmp_path):
    path = tmp_path / "prepare.yaml"
    path.write_text(PREPARE_YAML.read_text(encoding="utf-8").replace("axcodes: LPS", "axcodes: L"))
    path.write_text(
        path.read_text(encoding="utf-8").replace(
            "_target_: luna16_monai.store.resampling.SeparableSpacingd", "_target_: Spacingdd"
        )
    )
    with pytest.raises(ValueError, match=r"the transform list cannot be built \(.*Spacingdd.*\): mend it"):
        run(data, store, Preparation.read(path))
    assert not store.exists()


# --- a CT that was replaced -----------------------------------------------------------------------------------------


def replace_ct(data: Path, uid: str, seed: int) -> None:
    """Other voxels under the same name, of the same size."""
    write_scan(data / "subset0", uid, random_hu(seed, (10, 12, 14)), None, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_makes_a_replaced_ct_anew_and_says_so(data, store, caplog, workers):
    run(data, store)
    before = contents(store)
    replace_ct(data, "a", 77)
    caplog.clear()
    result = run(data, store, workers=workers, log_dir=store / "logs")
    told = "series a: a.raw has changed since it was prepared: it was prepared again"
    assert [record.getMessage() for record in caplog.records if "series" in record.getMessage()] == [told]
    assert told in (store / "logs" / "a.log").read_text()
    np.testing.assert_array_equal(result.volume("a").voxels[:], random_hu(77, (10, 12, 14)))
    shutil.rmtree(store / "logs")
    after = contents(store)
    assert sorted(name for name in after if after[name] != before[name]) == ["a.b2nd", "a.json", "store.json"]
    assert verify(store, progress=False) == []


def test_prepare_makes_a_ct_anew_whose_header_alone_changed(data, store, caplog):
    run(data, store)
    header = data / "subset0" / "a.mhd"
    header.write_text(header.read_text().replace("Offset = 0 0 0", "Offset = 5 0 0"))
    result = run(data, store)
    assert "series a: a.mhd has changed" in caplog.text
    assert result.volume("a").geometry.affine[:3, 3].tolist() == [5, 0, 0]


def test_prepare_makes_nothing_anew_where_the_time_alone_changed(data, store, caplog, monkeypatch):
    run(data, store)
    before = contents(store)
    for path in sorted(data.rglob("a.*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    monkeypatch.setattr(prepare_module, "prepare_volume", lambda *_: pytest.fail("this CT was prepared already"))
    caplog.clear()
    run(data, store)
    assert "changed" not in caplog.text
    after = contents(store)
    assert sorted(name for name in after if after[name] != before[name]) == ["a.json", "store.json"]
    assert verify(store, progress=False) == []
    # the new time is kept, so that nothing is read a third time
    monkeypatch.setattr("luna16_monai.store.source.sha256", lambda _: pytest.fail("the checksum was known"))
    run(data, store)


def test_prepare_takes_another_format_of_a_ct_for_a_change(data, store, caplog):
    run(data, store)
    for path in data.rglob("a.*"):
        path.unlink()
    import SimpleITK as sitk

    voxels = random_hu(5, (10, 12, 14))
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(data / "subset0" / "a.nii.gz"))
    result = run(data, store)
    assert "series a: a.mhd, a.nii.gz, a.raw has changed" in caplog.text
    assert np.array_equal(np.sort(np.asarray(result.volume("a").voxels[:]), None), np.sort(voxels, None))


def test_prepare_stopped_before_a_replaced_ct_was_made_leaves_no_whole_store(data, store, monkeypatch):
    run(data, store)
    replace_ct(data, "a", 77)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "prepare_volume", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(data, store)
    with pytest.raises(FileNotFoundError, match="is not finished: run luna16 prepare again"):
        Store(store)
    assert run(data, store).volume("a").voxels[0, 0, 0] == random_hu(77, (10, 12, 14))[0, 0, 0]


def test_prepare_leaves_a_store_from_before_as_it_is(data, store, monkeypatch):
    """Its records say nothing of the files."""
    run(data, store)
    for path in [store / f"{uid}.json" for uid in SERIES]:
        entry = json.loads(path.read_text())
        del entry["source_files"]
        path.write_text(json.dumps(entry))
    replace_ct(data, "a", 77)
    monkeypatch.setattr(prepare_module, "prepare_volume", lambda *_: pytest.fail("this CT was prepared already"))
    run(data, store)
