"""Nothing identifying leaves: a name in every text of every kind of file, searched in all that is written and said."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from ct_files import UID, VOXELS, write_dicom, write_nifti
from drawn_scans import random_hu, write_scan
from monai.transforms import LoadImage
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset

from luna16_monai.cli.main import main
from luna16_monai.ct.opening import open_ct
from luna16_monai.networks.nodule_net import NoduleNet
from luna16_monai.store.reader import CTReader

ROOT = Path(__file__).parents[1]
TRAIN_YAML = ROOT / "bundles" / "nodule_classification" / "configs" / "train.yaml"
# one word, so that no wrapping or quoting hides it, and in no other tag by chance
CANARY = "CANARY^MARIA"
TEXT_VRS = {"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
# the file's own meta data and how its pixels and texts are coded: with another value there, nobody could read the file
CODING = {0x00080005, 0x00080016, 0x00080018, 0x0020000D}


@contextmanager
def validation(mode: int) -> Iterator[None]:
    """Whether pydicom minds a name where a date should be."""
    before = pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.settings.writing_validation_mode = mode
    yield
    pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode = before


def fill(slice_: FileDataset) -> int:
    """Write the canary into every tag that can hold text and is not needed to read the file; gives their number."""
    filled = 0
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        free = group not in (0x0000, 0x0002, 0x0028) and tag not in CODING and keyword
        if free and vr in TEXT_VRS and (tag not in slice_ or slice_[tag].value == "CANARY"):
            slice_[tag] = DataElement(tag, vr, CANARY)
            filled += 1
    private = slice_.private_block(0x0009, "CANARY^MARIA", create=True)
    private.add_new(1, "LO", CANARY)
    inner = Dataset()
    inner.PatientID = inner.PatientComments = CANARY
    slice_.OtherPatientIDsSequence = [inner]
    return filled


@pytest.fixture
def named_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Writes a series of four slices with the canary in every tag."""

    def write(name: str = "series", change: Callable[[int, FileDataset], object] = lambda k, slice_: None) -> Path:
        counts = []

        def both(k: int, slice_: FileDataset) -> None:
            counts.append(fill(slice_))
            change(k, slice_)

        with validation(pydicom.config.IGNORE):
            folder = write_dicom(tmp_path / name, both)
        assert min(counts) > 1000
        assert (folder / "a.dcm").read_bytes().count(CANARY.encode()) > 1000
        return folder

    return write


def assert_without(words: list[str], *places: Path | str) -> None:
    """None of the words stands in a text, in a file or a folder's files, nor in their names."""
    for place in places:
        files = [] if isinstance(place, str) else [path for path in [place, *place.rglob("*")] if path.is_file()]
        contents = [place.encode()] if isinstance(place, str) else [path.read_bytes() for path in files]
        assert contents, f"nothing in {place}"
        for word in words:
            for name, content in zip(files or ["the text"], contents, strict=True):
                assert word.encode() not in content, f"{word} stands in {name}"
                assert word.encode("utf-16-le") not in content, f"{word} stands in {name}"
                if isinstance(name, Path) and isinstance(place, Path):
                    assert word not in str(name.relative_to(place))


def run(*words: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{key: str(value) for key, value in environment.items()}},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


# --- what a CT's file says of its patient ---------------------------------------------------------------------------


def test_reader_passes_on_no_text_of_a_dicom_file(named_dicom, capfd):
    folder = named_dicom()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NvImgCodec")  # MONAI's first LoadImage of a process says what it lacks
        image = LoadImage(CTReader)(folder)
    np.testing.assert_array_equal(image.numpy(), VOXELS.T)
    assert_without([CANARY], repr(image.meta))
    assert CANARY.encode() not in pickle.dumps(image.meta)
    assert CANARY.encode() not in pickle.dumps(open_ct(folder).geometry)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def mend(name: str, value: Any) -> Callable[[int, FileDataset], object]:
    """Changes one tag of the first slice."""
    return lambda k, slice_: setattr(slice_, name, value) if k == 0 else None


@pytest.mark.parametrize(
    "change",
    [
        mend("SeriesInstanceUID", CANARY),
        mend("SeriesInstanceUID", UID + ".9"),
        mend("Modality", "MR"),
        mend("Modality", CANARY),
        mend("ImagePositionPatient", [10, 20, 10]),
        mend("PixelSpacing", [0.75, 0.6]),
        mend("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        mend("Rows", 60000),
        mend("PixelData", b"1234"),
    ],
)
def test_refusal_of_a_dicom_series_names_no_patient(named_dicom, change, capfd):
    folder = named_dicom(change=change)
    with pytest.raises(ValueError, match=r".") as caught:
        open_ct(folder).read()
    out, err = capfd.readouterr()
    chain, error = "", caught.value
    while error is not None:
        chain, error = chain + str(error), error.__cause__
    assert_without([CANARY], str(caught.value), "-" + out + err)
    assert "\n" not in str(caught.value)


def test_metaimage_and_nifti_pass_on_no_text(tmp_path):
    header = write_scan(tmp_path / "data", "a", random_hu(0, (4, 5, 6)))
    lines = header.read_text(encoding="utf-8").splitlines()
    texts = [f"Name = {CANARY}", f"Comment = {CANARY}", f"ITK_note = {CANARY}", f"Modality = {CANARY}"]
    header.write_text("\n".join([*lines[:-1], *texts, lines[-1]]) + "\n")
    nifti = write_nifti(
        tmp_path / "data" / "b.nii", descrip=CANARY, aux_file=CANARY, intent_name=CANARY, db_name="CANARY"
    )
    image = nib.load(nifti)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
    nib.save(image, tmp_path / "data" / "c.nii")
    for name in ("a.mhd", "b.nii", "c.nii"):
        assert CANARY.encode()[:6] in (tmp_path / "data" / name).read_bytes()
        assert b"CANARY" not in pickle.dumps(LoadImage(CTReader)(tmp_path / "data" / name).meta)
    assert (
        main(
            [
                "prepare",
                "--data",
                str(tmp_path / "data"),
                "--store",
                str(tmp_path / "store"),
                "--native",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert_without(["CANARY"], tmp_path / "store")


def test_prediction_on_a_dicom_folder_holds_no_text_of_its_files(named_dicom, tmp_path):
    folder, output = named_dicom(), tmp_path / "out"
    output.mkdir()
    torch.save(NoduleNet(two_scales=True).state_dict(), tmp_path / "model.pt")
    (tmp_path / "candidates.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},11,22,33\n")
    done = run(
        *("luna16_monai", "predict", "--ct", folder, "--candidates", tmp_path / "candidates.csv", "--device", "cpu"),
        *("--weights", tmp_path / "model.pt", "--output", output / "predictions.csv", "--json"),
        *("--report", output / "page.html", "--threshold", 0),
    )
    assert UID in (output / "page.html").read_text(encoding="utf-8")
    assert len((output / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert_without([CANARY], output, done.stdout, "-" + done.stderr)


def test_only_the_structured_report_names_the_patient_and_nothing_else_of_the_series(named_dicom, tmp_path):
    pytest.importorskip("highdicom", reason="--dicom-sr needs the extra 'dicom'")

    def place(k: int, slice_: FileDataset) -> None:
        slice_.FrameOfReferenceUID, slice_.StudyInstanceUID = f"{UID}.2", f"{UID}.3"
        # neither is as DICOM wants it: the name lacks its parts' order, the identifier is too long
        slice_.PatientName, slice_.PatientID = "CANARYNAME", "CANARYID" * 20

    folder, output = named_dicom(change=place), tmp_path / "out"
    output.mkdir()
    torch.save(NoduleNet(two_scales=True).state_dict(), tmp_path / "model.pt")
    (tmp_path / "candidates.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{UID},11,22,33\n")
    done = run(
        *("luna16_monai", "predict", "--ct", folder, "--candidates", tmp_path / "candidates.csv", "--device", "cpu"),
        *("--weights", tmp_path / "model.pt", "--output", output / "predictions.csv", "--json", "--threshold", 0),
        *("--dicom-sr", tmp_path / "report.dcm", "--explain", output / "why"),
    )
    assert (output / "why" / "001.png").is_file()
    assert_without(["CANARY"], output, done.stdout, "-" + done.stderr)
    report = (tmp_path / "report.dcm").read_bytes()
    assert report.count(b"CANARYNAME") == 1
    assert b"CANARYID" not in report
    # of a thousand tags with the canary these are all that may go along, as far as their values fit
    told = pydicom.dcmread(tmp_path / "report.dcm")
    assert {element.keyword for element in told.iterall() if CANARY in str(element.value)} == {
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
    }
    assert (told.PatientBirthDate, told.PatientSex, told.StudyDate) == ("", "", "")


@pytest.mark.slow
def test_phantom_over_a_real_dicom_ct_holds_no_text_of_its_files(shared, tmp_path):
    """The way from DICOM into a data set: background, CTs, tables, store."""
    folder = tmp_path / "series"
    folder.mkdir()
    with validation(pydicom.config.IGNORE):
        for path in sorted(shared("data/ct_dicom").glob("*.dcm")):
            slice_ = pydicom.dcmread(path)
            for keyword in ("PatientName", "PatientID", "StudyDescription", "SeriesDescription"):
                setattr(slice_, keyword, "CANARY")
            fill(slice_)
            slice_.save_as(folder / path.name)
    data, store = tmp_path / "data", tmp_path / "store"
    told = [
        run("luna16_monai", "phantom", "--background", folder, "--output", data, "--scans", 1, "--workers", 1),
        run("luna16_monai", "prepare", "--data", data, "--store", store, "--workers", 1, "--spacing-zyx", 3, 2, 2),
    ]
    assert_without(["CANARY"], data, store, *("-" + done.stdout + done.stderr for done in told))


# --- where things lay -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked_on(phantom_dir, store_dir, tmp_path_factory) -> Path:
    """A folder in which everything was done once: trained, evaluated, reported; the odd name must not matter."""
    home = tmp_path_factory.mktemp("home") / "Maria Canary #1"
    home.mkdir()
    shutil.copytree(phantom_dir, home / "data")
    shutil.copytree(store_dir, home / "store")
    settings = {"device": "cpu", "max_epochs": 1, "samples_per_epoch": 12, "batch_size": 4, "num_workers": 0}
    words = [word for key, value in {**settings, "validation_stride": 3}.items() for word in (f"--{key}", value)]
    run(
        *("monai.bundle", "run", "training", "--config_file", TRAIN_YAML, *words),
        LUNA16_DATA=home / "data", LUNA16_STORE=home / "store", LUNA16_RUNS=home / "runs",
    )  # fmt: skip
    output = home / "runs" / "nodule_classification"
    tables = [word for name in ("annotations", "seriesuids") for word in (f"--{name}", home / "data" / f"{name}.csv")]
    tables += ["--excluded", home / "data" / "annotations_excluded.csv"]
    for words in (
        ["evaluate", "--submission", output / "submission.csv", *tables, "--output", home / "evaluated"],
        ["report", "--run", output, "--store", home / "store", "--output", home / "report.html"],
    ):
        assert main([str(word) for word in words]) == 0
    return home


def test_training_works_in_a_folder_with_a_number_sign_that_the_environment_names(worked_on):
    output = worked_on / "runs" / "nodule_classification"
    assert {"model.pt", "metrics.json", "run.json", "submission.csv"} <= set(os.listdir(output))


def test_no_file_tells_where_it_or_the_data_lay(worked_on):
    forbidden = ["Maria Canary", "pytest-of", str(Path.home()) + "/", str(ROOT)]
    output = worked_on / "runs" / "nodule_classification"
    assert_without(forbidden, worked_on / "store", output, worked_on / "evaluated", worked_on / "report.html")
    assert (worked_on / "report.html").stat().st_size > 1000


def test_records_hold_no_absolute_path(worked_on):
    output = worked_on / "runs" / "nodule_classification"
    for path in (output / "run.json", output / "metrics.json", worked_on / "evaluated" / "metrics.json"):
        for text in texts(json.loads(path.read_text(encoding="utf-8"))):
            assert not re.match(r"/|[A-Za-z]:\\", text), f"{text} in {path.name}"
    index = json.loads((worked_on / "store" / "store.json").read_text(encoding="utf-8"))
    assert not [text for text in texts(index) if text.startswith("/")]
    assert {entry["source"] for entry in index["series"].values()} == {f"{uid}.mhd" for uid in index["series"]}


def texts(value: Any) -> list[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (key, *texts(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []
