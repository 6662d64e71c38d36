"""One nodule put into a CT: blur, voxels, level, noise, edge, and the side of the wall."""

from dataclasses import replace

import numpy as np
import pytest
from real_nodules import BLUR_MM, ball

from luna16_monai.geometry.grid import Geometry
from luna16_monai.phantom.background import Background
from luna16_monai.semi_real.blend import blend, own_blur, prepare_nodule, random_turn
from luna16_monai.semi_real.contact import find_contact

MIDDLE = np.array([20.0, 25.0, 25.0])


def scene_of(hu, spacing=(2.0, 1.0, 1.0), blur=BLUR_MM, noise_growth=0.0):
    nothing, affine = np.empty((0, 3)), np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    return Background(hu, Geometry(hu.shape, affine), *[nothing] * 5, np.array(blur), noise_growth)


def lung(level=-850, noise=0.0, shape=(20, 50, 50)):
    return np.rint(level + noise * np.random.default_rng(0).standard_normal(shape)).astype(np.int16)


def put(hu, nodule, turn=None, **scene):
    changed = hu.copy()
    box = blend(changed, scene_of(hu, **scene), prepare_nodule(nodule, BLUR_MM), MIDDLE, turn)
    return changed, box


def test_blend_brings_the_nodule_with_its_volume_and_its_level_to_its_place():
    hu = lung()
    changed, box = put(hu, ball(8.0), np.eye(3))
    added = (changed - hu).astype(float)
    outside = np.ones(hu.shape, bool)
    outside[box] = False
    assert not added[outside].any()
    # 40 over -850 HU in each voxel of the ball
    assert changed.max() == pytest.approx(40, abs=40)
    assert added.sum() / 890 == pytest.approx(ball(8.0).share.sum(), rel=0.05)
    index = np.indices(hu.shape).reshape(3, -1) + 0.5
    middle = (index * added.ravel()).sum(1) / added.sum() * [2, 1, 1]
    assert middle == pytest.approx(MIDDLE, abs=0.3)


def test_blend_leaves_the_lung_as_dark_as_the_ct_has_it():
    nodule = ball(8.0)
    nodule = replace(nodule, hu=np.where(nodule.share > 0, nodule.hu, -700).astype(np.int16))
    changed, _ = put(lung(-900), nodule, np.eye(3))
    # 2 mm outside the ball, where the nodule's own lung is 200 HU brighter
    assert changed[10, 25, 31] == pytest.approx(-900, abs=15)


def test_blend_keeps_the_noise_of_the_ct():
    hu = lung(noise=30.0, shape=(40, 80, 80))
    nodule = ball(16.0, shape_zyx=(25, 49, 49))
    scene = scene_of(hu)
    changed = hu.copy()
    place = np.array([40.0, 40.0, 40.0])
    blend(changed, scene, prepare_nodule(nodule, BLUR_MM), place, np.eye(3))
    core = changed[18:22, 37:43, 37:43].astype(float)
    noise = core[:, 1:, 1:] - core[:, 1:, :-1] - core[:, :-1, 1:] + core[:, :-1, :-1]
    assert noise.std() / 2 == pytest.approx(30, rel=0.25)
    assert core.mean() == pytest.approx(40, abs=10)


def test_blend_does_not_cut_a_vessel_beside_the_nodule():
    hu = lung()
    hu[:, :, 31:34] = 40
    changed, _ = put(hu, ball(8.0), np.eye(3))
    # it passes 2 mm outside of the ball, where the box of the nodule shows lung
    assert changed[:, :, 31:34].min() > -10


def test_blend_replaces_a_thin_vessel_and_leaves_the_wall():
    faint = ball(12.0)
    faint = replace(faint, hu=np.where(faint.share > 0, -600, -850).astype(np.int16))
    hu = lung()
    hu[:, 24:26, 24:26] = 40
    hu[:, :, 30:] = 40
    changed, _ = put(hu, faint, np.eye(3))
    # ground glass in place of the vessel, but none in the wall that the ball reaches into by 1 mm
    assert changed[10, 25, 25] < -400
    assert changed[:, :, 31:].min() > 20


def test_blend_makes_a_sharp_nodule_as_soft_as_the_ct():
    hu = lung()
    soft, sharp = hu.copy(), hu.copy()
    for image, blur in ((soft, [2.0, 1.5, 1.5]), (sharp, BLUR_MM)):
        blend(image, scene_of(hu, blur=blur), prepare_nodule(ball(8.0), np.array(blur)), MIDDLE, np.eye(3))
    steepest = [np.abs(np.diff(image[10, 25].astype(float))).max() for image in (soft, sharp)]
    assert steepest[0] < 0.6 * steepest[1]


def test_own_blur_is_measured_where_the_bank_does_not_say():
    assert own_blur(ball(8.0)).tolist() == [1.0, 0.8, 0.8]
    unknown = replace(ball(8.0), blur_zyx_mm=np.full(3, np.nan))
    assert np.isfinite(own_blur(unknown)).all()


@pytest.mark.parametrize("outward", [[0, 0, 1.0], [0, -1.0, 0], [0.6, 0, -0.8], [-0.6, 0.8, 0]])
def test_random_turn_turns_the_wall_to_the_wall(outward):
    contact = find_contact(ball(8.0, wall_from_x=19))
    rng = np.random.default_rng(1)
    for _ in range(5):
        turn = random_turn(rng, contact, np.array(outward))
        assert turn @ turn.T == pytest.approx(np.eye(3))
        flat = np.array([0, *outward[1:]]) / np.linalg.norm(outward[1:])
        assert (turn @ flat) @ contact.outward > 0.99


def test_random_turn_keeps_the_long_axis():
    rng = np.random.default_rng(0)
    turns = [random_turn(rng, find_contact(ball(8.0)), np.zeros(3)) for _ in range(20)]
    assert {abs(turn[0, 0]) for turn in turns} == {1.0}
    assert {round(float(np.linalg.det(turn))) for turn in turns} == {-1, 1}
