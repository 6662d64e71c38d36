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
from drawn_scans import FLIPPED, ORIGIN_XYZ, SHAPE_ZYX, SPACING_XYZ, random_hu, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd
from point_tables import point_table

from luna16_monai.ct.folders import find_cts
from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import AIR_HU, Volume
from luna16_monai.store.preparation import Recipe, prepare_volume
from luna16_monai.store.prepare import prepare
from luna16_monai.store.reader import CTReader
from luna16_monai.store.reading import Store, verify

CUTOUT_ZYX = (32, 48, 48)
PREPARE_YAML = Path(__file__).parents[2] / "bundles" / "nodule_classification" / "configs" / "prepare.yaml"
# 10 x 12 x 14 voxels of 1 mm (z, y, x), the first one's centre at (100, 200, 300) mm.
GEOMETRY = Geometry.from_axes((14, 12, 10), (1, 1, 1), (100, 200, 300), np.eye(3))
VOXELS = np.arange(10 * 12 * 14, dtype=np.int16).reshape(10, 12, 14)
VOLUME = Volume(VOXELS, GEOMETRY, GEOMETRY)
PLAIN_HU, FLIPPED_HU = random_hu(1), random_hu(2)


@pytest.fixture(scope="module")
def native_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store at native spacing of one plain scan and one that is stored flipped."""
    data, store = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("store")
    write_scan(data / "subset0", "plain", PLAIN_HU)
    write_scan(data / "subset1", "flipped", FLIPPED_HU, FLIPPED)
    prepare(data, store, Recipe.read(PREPARE_YAML, None), workers=1, progress=False)
    return store


@pytest.fixture
def store_to_break(tmp_path) -> Path:
    """A finished store of one scan, for tests that damage it."""
    data = tmp_path / "data"
    write_scan(data, "a", PLAIN_HU)
    prepare(data, tmp_path / "store", Recipe.read(PREPARE_YAML, None), workers=1, progress=False)
    return tmp_path / "store"


def raw_cutout(voxels: np.ndarray, centre_zyx: tuple[int, ...]) -> np.ndarray:
    """The box by the plainest means: pad with air on all sides, then slice."""
    padded = np.pad(voxels, [(side, side) for side in CUTOUT_ZYX], constant_values=AIR_HU)
    start = [c + side - side // 2 for c, side in zip(centre_zyx, CUTOUT_ZYX, strict=True)]
    return padded[tuple(slice(s, s + side) for s, side in zip(start, CUTOUT_ZYX, strict=True))]


# --- a volume in memory ---------------------------------------------------------------------------------------------


def test_cutout_puts_the_nearest_voxel_at_half_the_shape():
    # (104.4, 206.4, 302.6) mm is index (2.6, 6.4, 4.4): nearest (3, 6, 4)
    box = VOLUME.cutout((104.4, 206.4, 302.6), (4, 6, 2))
    assert box.shape == (4, 6, 2)
    assert box[2, 3, 1] == VOXELS[3, 6, 4]
    np.testing.assert_array_equal(box, VOXELS[1:5, 3:9, 3:5])


def test_cutout_of_an_odd_shape_is_centred():
    np.testing.assert_array_equal(VOLUME.cutout((104, 206, 303), (3, 3, 3)), VOXELS[2:5, 5:8, 3:6])
    assert VOLUME.cutout((104, 206, 303), (1, 1, 1)).tolist() == [[[VOXELS[3, 6, 4]]]]


def test_cutout_rounds_a_half_up():
    assert VOLUME.cutout((104.5, 206, 303), (1, 1, 1)).item() == VOXELS[3, 6, 5]


def test_cutout_is_air_outside_the_scan():
    box = VOLUME.cutout((100, 200, 300), (4, 4, 4))  # the first voxel comes to (2, 2, 2)
    assert (box[:2] == AIR_HU).all()
    assert (box[:, :2] == AIR_HU).all()
    assert (box[:, :, :2] == AIR_HU).all()
    np.testing.assert_array_equal(box[2:, 2:, 2:], VOXELS[:2, :2, :2])
    box = VOLUME.cutout((113, 211, 309), (4, 4, 4))  # the last voxel comes to (2, 2, 2)
    np.testing.assert_array_equal(box[:3, :3, :3], VOXELS[7:, 9:, 11:])
    assert (box[3] == AIR_HU).all()
    assert (box[:, 3] == AIR_HU).all()
    assert (box[:, :, 3] == AIR_HU).all()


def test_cutout_larger_than_the_volume_holds_all_of_it():
    box = VOLUME.cutout((107, 206, 305), (40, 40, 40))
    # index (5, 6, 7) comes to (20, 20, 20)
    np.testing.assert_array_equal(box[15:25, 14:26, 13:27], VOXELS)
    assert (box != AIR_HU).sum() == VOXELS.size


@given(*[st.floats(99.5, 113.49), st.floats(199.5, 211.49), st.floats(299.5, 309.49)])
def test_cutout_around_any_point_of_the_scan_equals_the_padded_slice(x, y, z):
    nearest = tuple(int(np.floor(i + 0.5)) for i in (z - 300, y - 200, x - 100))
    box = VOLUME.cutout((x, y, z))
    assert box.dtype == np.int16
    np.testing.assert_array_equal(box, raw_cutout(VOXELS, nearest))
    assert box[16, 24, 24] == VOXELS[nearest]


@pytest.mark.parametrize("point", [(99.4, 206, 305), (107, 211.6, 305), (107, 206, 309.6), (np.nan, 206, 305)])
def test_cutout_refuses_a_point_outside_the_scan(point):
    message = r"lies outside the scan \(x from 100 to 113 mm, y from 200 to 211 mm, z from 300 to 309 mm\)"
    with pytest.raises(ValueError, match=message):
        VOLUME.cutout(point)


def test_cutout_of_a_grid_that_ends_short_of_its_scan_reaches_to_the_scans_border():
    # the scan has one slice of 4 mm more than the grid, so that its last point is 2.5 grid slices beyond
    scan = Geometry.from_axes((14, 12, 4), (1, 1, 4), (100, 200, 300), np.eye(3))
    volume = Volume(VOXELS, GEOMETRY, scan)
    box = volume.cutout((107, 206, 313.9), (8, 4, 4))  # index 13.9: slices 10 to 17
    assert (box == AIR_HU).all()
    box = volume.cutout((107, 206, 313.4), (10, 4, 4))  # index 13: slices 8 to 17
    np.testing.assert_array_equal(box[:2], VOXELS[8:, 4:8, 5:9])
    assert (box[2:] == AIR_HU).all()


def test_cutout_is_a_copy():
    volume = Volume(VOXELS.copy(), GEOMETRY, GEOMETRY)
    volume.cutout((107, 206, 305), (2, 2, 2))[:] = 0
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_prepare_volume_refuses_transforms_that_lose_the_place(tmp_path):
    path = write_scan(tmp_path, "a", PLAIN_HU)
    load = LoadImaged("image", reader=CTReader, image_only=True)
    with pytest.raises(ValueError, match=r"MetaTensor of shape \(70, 60, 40\) for a\.mhd: a MetaTensor \(1, x, y, z\)"):
        prepare_volume(path, load)
    with pytest.raises(ValueError, match=r"the transforms give Tensor of shape \(1, 70, 60, 40\)"):
        prepare_volume(path, lambda item: {"image": load(item)["image"].as_tensor()[None]})


def test_prepare_volume_rounds_and_clips_to_int16(tmp_path):
    path = write_scan(tmp_path, "a", np.array([[[-1024, 1]], [[3, 3000]]], np.int16))
    load = LoadImaged("image", reader=CTReader, image_only=True, ensure_channel_first=True)
    volume = prepare_volume(path, lambda item: {"image": load(item)["image"] * 20.3})
    # -20787.2, 20.3, 60.9 and 60900, which is more than int16 holds
    assert volume.voxels.tolist() == [[[-20787, 20]], [[61, 32767]]]
    assert volume.voxels.dtype == np.int16


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
