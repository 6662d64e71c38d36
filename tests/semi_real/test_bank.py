"""The file with real nodules: what is read back, and what is refused."""

import numpy as np
import pytest
from real_nodules import ball, bank_of

from luna16_monai.semi_real.bank import leaves_box, read_bank, write_bank


@pytest.fixture
def arrays(tmp_path):
    write_bank(tmp_path / "bank.npz", [ball(6.0), ball(8.0, wall_from_x=25, patient="two")])
    with np.load(tmp_path / "bank.npz") as file:
        return dict(file)


def test_read_bank_gives_what_write_bank_wrote(tmp_path):
    written = bank_of(3)
    write_bank(tmp_path / "bank.npz", written)
    bank = read_bank(tmp_path / "bank.npz")
    assert bank.patient.tolist() == ["patient 0", "patient 1", "patient 2"]
    for one, other in zip(written, bank.nodules, strict=True):
        assert np.array_equal(one.hu, other.hu)
        assert np.array_equal(one.share, other.share)
        assert other.blur_zyx_mm == pytest.approx([1.0, 0.8, 0.8])
        assert (other.diameter_mm, other.kind) == (one.diameter_mm, "solid")
    # mean ratings of 3.0
    assert bank.ratings() == {0: (3,), 1: (3,), 2: (3,)}


def test_read_bank_leaves_out_what_is_kept_for_tests(tmp_path, arrays):
    np.savez(tmp_path / "some.npz", **arrays, use=np.array(["test", "train"]))
    bank = read_bank(tmp_path / "some.npz")
    assert [one.patient for one in bank.nodules] == ["two"]
    assert bank.number.tolist() == [1]
    np.savez(tmp_path / "none.npz", **arrays, use=np.array(["test", "test"]))
    with pytest.raises(ValueError, match="none of its nodules has use = train"):
        read_bank(tmp_path / "none.npz")


def test_read_bank_takes_ratings_and_blur_as_unknown_where_they_are_absent(tmp_path, arrays):
    for name in ("blur", "texture", "calcification", "malignancy"):
        del arrays[name]
    np.savez(tmp_path / "bank.npz", **arrays)
    bank = read_bank(tmp_path / "bank.npz")
    assert np.isnan(bank.nodules[0].blur_zyx_mm).all()
    assert bank.nodules[0].kind == "solid"
    assert bank.ratings() == {}


def changed(arrays, name, value):
    return {**arrays, name: value(arrays[name].copy())}


def set_first(value):
    def change(array):
        array[0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shape", lambda a: a + 1, r"vox is int16 .* where the shapes need whole numbers \(41616,\)"),
        ("shape", lambda a: a[:, :2], r"shape is int32 \(2, 2\)"),
        ("shape", lambda a: a.astype(float), "shape is float64"),
        ("vox", lambda a: a.astype(float) * np.nan, "vox is float64"),
        ("mask", lambda a: a[:-1], "mask is uint8"),
        ("mask", set_first(4), "box 0: the mask reaches the edge of its box"),
        ("mask", lambda a: a * 3, "box 0: mask reaches 12"),
        ("mask", lambda a: a * 0, "box 0: mask reaches 0"),
        ("spacing", set_first(np.nan), r"box 0: spacing \[nan, nan, nan\] mm"),
        ("spacing", lambda a: a[:1], r"spacing has the shape \(1, 3\), where \(2, 3\) fits the 2 boxes"),
        ("spacing", lambda a: a * 10, "box 0: spacing .* where 0.2 to 6.0"),
        ("diam", set_first(np.nan), "box 0: diam nan mm"),
        ("patient", lambda a: a[:1], r"patient has the shape \(1,\)"),
    ],
)
def test_read_bank_refuses_what_does_not_fit(tmp_path, arrays, name, value, message):
    np.savez(tmp_path / "bad.npz", **changed(arrays, name, value))
    with pytest.raises(ValueError, match=f"bank of nodules .*bad.npz: {message}"):
        read_bank(tmp_path / "bad.npz")


def test_read_bank_refuses_what_is_no_bank(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match="make one with luna16 bank"):
        read_bank(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz"):
        read_bank(tmp_path / "text.npz")
    del arrays["diam"], arrays["mask"]
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(ValueError, match="it lacks mask, diam"):
        read_bank(tmp_path / "less.npz")
    np.savez(tmp_path / "objects.npz", **(arrays | {"mask": np.array([None]), "diam": np.array([1.0])}))
    with pytest.raises(ValueError, match=r"objects\.npz"):
        read_bank(tmp_path / "objects.npz")


def test_write_bank_refuses_no_nodule_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no nodule to write"):
        write_bank(tmp_path / "bank.npz", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("place", "leaves"), [((0, 1, 1), True), ((1, 1, 2), True), ((1, 1, 1), False)])
def test_leaves_box_looks_at_all_faces(place, leaves):
    mask = np.zeros((3, 3, 3), int)
    mask[place] = 1
    assert leaves_box(mask) is leaves
