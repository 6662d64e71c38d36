"""The volume store: the voxels that went in come out, at their place, in full, and damage does not go unnoticed."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from drawn_scans import CUTOUT_ZYX, FLIPPED, ORIGIN_XYZ, SHAPE_ZYX, SPACING_XYZ, random_hu, raw_cutout, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd
from point_tables import point_table

from luna16_monai.ct.folders import find_cts
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import Volume
from luna16_monai.store.preparation import Preparation
from luna16_monai.store.prepare import prepare
from luna16_monai.store.reader import CTReader
from luna16_monai.store.reading import Store, verify

PREPARE_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "prepare.yaml"
PLAIN_HU, FLIPPED_HU = random_hu(1), random_hu(2)


@pytest.fixture(scope="module")
def native_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store at native spacing of one plain scan and one that is stored flipped."""
    data, store = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("store")
    write_scan(data / "subset0", "plain", PLAIN_HU)
    write_scan(data / "subset1", "flipped", FLIPPED_HU, FLIPPED)
    prepare(data, store, Preparation.read(PREPARE_YAML, None), workers=1, progress=False)
    return store


@pytest.fixture
def store_to_break(tmp_path) -> Path:
    """A finished store of one scan, for tests that damage it."""
    data = tmp_path / "data"
    write_scan(data, "a", PLAIN_HU)
    prepare(data, tmp_path / "store", Preparation.read(PREPARE_YAML, None), workers=1, progress=False)
    return tmp_path / "store"


# --- what went in comes out -----------------------------------------------------------------------------------------


def test_store_at_native_spacing_holds_the_raw_voxels(native_store):
    store = Store(native_store, None)
    assert store.series_uids == ("flipped", "plain")
    assert store.subsets == {"plain": 0, "flipped": 1}
    plain, flipped = store.volume("plain"), store.volume("flipped")
    np.testing.assert_array_equal(plain.voxels[:], PLAIN_HU)
    # turned the right way round, so that left is left in every cutout
    np.testing.assert_array_equal(flipped.voxels[:], FLIPPED_HU[:, ::-1, ::-1])
    assert plain.voxels.dtype == np.int16
    assert plain.geometry == Geometry.from_axes(SHAPE_ZYX[::-1], SPACING_XYZ, ORIGIN_XYZ, np.eye(3))


@pytest.mark.parametrize("index_zyx", [(20, 30, 35), (0, 0, 0), (39, 59, 69), (2, 57, 1), (16, 24, 24)])
def test_cutout_has_the_candidates_voxel_in_its_place_in_a_plain_scan(native_store, index_zyx):
    z, y, x = index_zyx
    # a world point of LUNA16's tables: origin + index * spacing, and a fifth of a voxel beside
    point = [ORIGIN_XYZ[0] + (x + 0.2) * 0.5, ORIGIN_XYZ[1] + (y - 0.2) * 0.75, ORIGIN_XYZ[2] + (z + 0.2) * 2]
    cutout = Store(native_store).volume("plain").cutout(point)
    assert cutout[16, 24, 24] == PLAIN_HU[z, y, x]
    np.testing.assert_array_equal(cutout, raw_cutout(PLAIN_HU, index_zyx))


@pytest.mark.parametrize("index_zyx", [(20, 30, 35), (0, 0, 0), (39, 59, 69), (2, 57, 1)])
def test_cutout_has_the_candidates_voxel_in_its_place_in_a_flipped_scan(native_store, index_zyx):
    z, y, x = index_zyx
    # x and y run the other way from the origin
    point = [ORIGIN_XYZ[0] - x * 0.5, ORIGIN_XYZ[1] - y * 0.75, ORIGIN_XYZ[2] + z * 2]
    cutout = Store(native_store).volume("flipped").cutout(point)
    assert cutout[16, 24, 24] == FLIPPED_HU[z, y, x]
    # index x counts from the other side: 69 - x and 59 - y
    np.testing.assert_array_equal(cutout, raw_cutout(FLIPPED_HU[:, ::-1, ::-1], (z, 59 - y, 69 - x)))


def test_store_at_default_spacing_equals_monais_spacingd(phantom_dir, store_dir):
    store = Store(store_dir, [1.25, 0.7, 0.7])
    # a scan in the usual direction and one that is flipped
    cts = {ct.series_uid: ct.path for ct in find_cts(phantom_dir)}
    directions = {uid: sitk.ReadImage(str(path)).GetDirection()[0] for uid, path in cts.items()}
    assert set(directions.values()) == {1, -1}
    spacing = Compose(
        [
            LoadImaged("image", reader=CTReader, image_only=True, ensure_channel_first=True),
            Orientationd("image", axcodes="LPS", labels=None),
            Spacingd("image", pixdim=(0.7, 0.7, 1.25), mode="bilinear", padding_mode="border", dtype=np.float32),
        ]
    )
    for sign in (1, -1):
        uid = next(uid for uid, direction in directions.items() if direction == sign)
        image = spacing({"image": str(cts[uid])})["image"]
        volume = store.volume(uid)
        # an axis at a time sums in another order, so a value near the half may round the other way
        error = np.abs(volume.voxels[:].astype(int) - np.rint(image[0].numpy()).transpose(2, 1, 0))
        assert error.max() <= 1
        assert (error > 0).mean() < 0.01
        np.testing.assert_allclose(volume.geometry.ras_affine_xyz(), image.affine, atol=1e-9)
        assert volume.geometry.spacing_zyx == pytest.approx((1.25, 0.7, 0.7))


def test_store_at_default_spacing_lies_where_the_scan_lies(phantom_dir, store_dir):
    """SimpleITK as the referee: HU at world points between the voxels, read from the raw file and from the store."""
    store = Store(store_dir)
    for ct in find_cts(phantom_dir)[:3]:
        image = sitk.Cast(sitk.ReadImage(str(ct.path)), sitk.sitkFloat32)
        geometry = store.volume(ct.series_uid).geometry
        # indices of the store's grid away from its border
        inside = np.random.default_rng(0).integers(3, np.array(geometry.shape_zyx) - 3, (50, 3))
        voxels = store.volume(ct.series_uid).voxels[:]
        ours = [voxels[tuple(index)] for index in inside]
        points = geometry.world_from_voxel(inside)
        theirs = [image.EvaluateAtPhysicalPoint(point.tolist(), sitk.sitkLinear) for point in points]
        # half a HU is lost by rounding; float32 positions do the rest
        np.testing.assert_allclose(ours, theirs, atol=1.0)


@settings(max_examples=25)
@given(st.data())
def test_cutout_around_every_candidate_is_whole(phantom_dir, store_dir, data):
    store = Store(store_dir)
    uid = data.draw(st.sampled_from(store.series_uids))
    scan = store.volume(uid).scan
    # from border to border, and half a voxel beyond the outermost centres
    index = [data.draw(st.floats(-0.499, side - 0.501)) for side in scan.shape_zyx]
    cutout = store.volume(uid).cutout(scan.world_from_voxel(index))
    assert cutout.shape == CUTOUT_ZYX
    assert cutout.dtype == np.int16


# --- many readers ---------------------------------------------------------------------------------------------------


def read_some(store: Store) -> list[int]:
    """Voxels from all over the two scans, in turn."""
    steps = itertools.product(("plain", "flipped"), range(0, 40, 8), range(0, 60, 13))
    return [int(store.volume(uid).voxels[z, y, 5]) for uid, z, y in steps]


def test_store_is_read_from_several_threads_at_once(native_store):
    store = Store(native_store)
    expected = read_some(store)
    results: list[list[int]] = []
    threads = [threading.Thread(target=lambda: results.append(read_some(store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_store_opens_its_volumes_anew_in_each_thread(native_store):
    store = Store(native_store)
    first = store.volume("plain")
    assert store.volume("plain") is first
    others: list[Volume] = []
    thread = threading.Thread(target=lambda: others.append(store.volume("plain")))
    thread.start()
    thread.join()
    assert others[0].voxels is not first.voxels


def test_store_is_read_after_a_fork(native_store):
    store = Store(native_store)
    expected = read_some(store)
    before = store.volume("plain")
    readers, writers = zip(*[os.pipe() for _ in range(2)], strict=True)
    for write_end in writers:
        if os.fork() == 0:
            try:
                opened_anew = store.volume("plain") is not before
                os.write(write_end, json.dumps([opened_anew, read_some(store)]).encode())
            finally:
                os._exit(0)
        os.close(write_end)
    assert read_some(store) == expected
    for read_end in readers:
        with os.fdopen(read_end) as stream:
            assert json.load(stream) == [True, expected]
    for _ in readers:
        os.wait()


def test_store_is_pickled_without_what_it_opened(native_store):
    store = Store(native_store)
    expected = read_some(store)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.subsets == store.subsets
    assert read_some(copy) == expected


def test_whole_keeps_a_volume_in_memory_for_all_threads_within_the_block(native_store):
    store = Store(native_store)
    point = store.volume("flipped").geometry.world_from_voxel((4.0, 20.0, 30.0))
    pieces = store.volume("flipped").cutout(point, CUTOUT_ZYX)
    with store.whole("flipped"):
        seen: list[Volume] = []
        thread = threading.Thread(target=lambda: seen.append(store.volume("flipped")))
        thread.start()
        thread.join()
        assert seen == [store.volume("flipped")]
        assert isinstance(seen[0].voxels, np.ndarray)
        assert np.array_equal(seen[0].cutout(point, CUTOUT_ZYX), pieces)
        assert not isinstance(store.volume("plain").voxels, np.ndarray)
        assert len(pickle.dumps(store)) < seen[0].voxels.nbytes
    assert not isinstance(store.volume("flipped").voxels, np.ndarray)


def test_store_keeps_a_limited_number_of_volumes_open(native_store, monkeypatch):
    monkeypatch.setattr("luna16_monai.store.reading.OPEN_VOLUMES", 1)
    store = Store(native_store)
    first = store.volume("plain")
    store.volume("flipped")
    assert store.volume("plain") is not first
    assert len(store._open.volumes) == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def test_store_refuses_another_spacing(native_store, store_dir):
    Store(store_dir, (1.25, 0.7, 0.7))
    Store(native_store, None)
    with pytest.raises(
        ValueError, match=r"was made for spacing_zyx \[1\.25, 0\.7, 0\.7\], not \[1, 0\.7, 0\.7\]: prep"
    ):
        Store(store_dir, [1, 0.7, 0.7])
    with pytest.raises(ValueError, match=r"made for spacing_zyx \[1\.25, 0\.7, 0\.7\], not native: prepare another"):
        Store(store_dir, None)
    with pytest.raises(ValueError, match=r"was made for spacing_zyx native, not \[1\.25, 0\.7, 0\.7\]"):
        Store(native_store, [1.25, 0.7, 0.7])


def test_store_refuses_a_folder_without_a_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no store in {tmp_path}: run luna16 prepare --data DIR --store"):
        Store(tmp_path)


def test_store_refuses_what_is_not_finished(store_to_break):
    index = json.loads((store_to_break / "store.json").read_text(encoding="utf-8"))
    (store_to_break / "store.json").write_text(json.dumps({**index, "complete": False}))
    with pytest.raises(FileNotFoundError, match="is not finished: run luna16 prepare again, it goes on"):
        Store(store_to_break)
    assert verify(store_to_break, progress=False)[0].endswith("not finished: run luna16 prepare again, it goes on")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"store\.json is damaged \(.*\): remove it and run luna16 prepare again"),
        (b"\xff\xfe", r"store\.json is damaged"),
        (b"[]", r"store\.json is of another version \(this one reads format 1\): prepare the store anew"),
        (b'{"format": 2}', r"store\.json is of another version"),
    ],
)
def test_store_refuses_a_damaged_index(store_to_break, content, message):
    (store_to_break / "store.json").write_bytes(content)
    for use in (Store, lambda path: verify(path, progress=False)):
        with pytest.raises(ValueError, match=message):
            use(store_to_break)


def test_volume_of_an_unknown_series_and_of_a_file_that_is_gone(store_to_break):
    store = Store(store_to_break)
    with pytest.raises(KeyError, match=r"series b is not in the store .*: run luna16 prepare on its CT"):
        store.volume("b")
    (store_to_break / "a.b2nd").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.b2nd is gone: run luna16 prepare again, it makes what is missing"):
        store.volume("a")


def test_require_inside_names_the_first_row_outside_by_its_line(native_store):
    store = Store(native_store)
    good = [("plain", -80, -30, -250, 0), ("flipped", -120, -70, -250, 1)]
    store.require_inside(point_table(good))
    # the flipped scan goes the other way from the same origin: x from -134.5 to -100
    table = point_table([*good, ("plain", -80, -30, -221.1, 0), ("flipped", -80, -70, -250, 1)])
    message = (
        r"candidate \(-80\.0, -70\.0, -250\.0\) mm \(rows, line 5\) lies outside series flipped "
        r"\(x from -134 to -100 mm, y from -94 to -50 mm, z from -300 to -222 mm\): does this table belong to this CT\?"
    )
    with pytest.raises(ValueError, match=message):
        store.require_inside(table)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_good_store(store_dir):
    assert verify(store_dir, progress=False) == []


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_verify_finds_one_flipped_bit(store_to_break, at):
    path = store_to_break / "a.b2nd"
    content = bytearray(path.read_bytes())
    content[round(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)
    (line,) = verify(store_to_break, progress=False)
    assert line == f"{path}: its checksum differs, so its voxels have changed: remove it and run luna16 prepare again"


def test_verify_finds_truncated_and_missing_files(store_to_break):
    path, sidecar = store_to_break / "a.b2nd", store_to_break / "a.json"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    (line,) = verify(store_to_break, progress=False)
    assert line.startswith(f"{path}: {size - 1} bytes instead of {size}: remove it")
    path.unlink()
    assert verify(store_to_break, progress=False) == [f"{path}: missing: run luna16 prepare again"]
    entry = sidecar.read_text(encoding="utf-8")
    for change in (lambda: sidecar.write_text(entry.replace("0.75", "0.76")), sidecar.unlink):
        change()
        lines = verify(store_to_break, progress=False)
        assert len(lines) == 2
        assert lines[1].startswith(f"{sidecar}: missing or not what store.json says")


# --- several stores ---------------------------------------------------------------------------------------------------


def test_several_stores_are_read_as_one(two_sets, store_dir):
    one, both = Store(store_dir), Store(two_sets[1])
    assert both.series_uids == one.series_uids
    assert both.subsets == one.subsets
    assert [len(part) for part in both.parts] == [4, 4]
    for uid in (one.series_uids[0], one.series_uids[-1]):
        np.testing.assert_array_equal(both.volume(uid).voxels[:], one.volume(uid).voxels[:])
    # as LUNA16_STORE names them, and in a worker
    again = pickle.loads(pickle.dumps(Store(os.pathsep.join(map(str, two_sets[1])))))
    assert again.parts == both.parts


def test_several_stores_share_no_series(two_sets, store_dir):
    with pytest.raises(ValueError, match=r"series \S+ is in the stores \S+ and \S+: take its CT out"):
        Store([two_sets[1][0], store_dir])


def test_several_stores_are_prepared_alike(two_sets, tmp_path):
    index = json.loads((two_sets[1][1] / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**index, "recipe": "other", "spacing_zyx": [1.0, 1.0, 1.0]}))
    with pytest.raises(
        ValueError, match=r"\(\[1.25, 0.7, 0.7\]\) and .* \(\[1.0, 1.0, 1.0\]\) prepare CTs differently"
    ):
        Store([two_sets[1][0], tmp_path])
