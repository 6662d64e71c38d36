"""What is drawn around the nodules: motion and beam hardening."""

from dataclasses import replace

import numpy as np

from luna16_monai.anatomy import blur_motion, draw_chest, harden_beam

SHAPE, SPACING = (40, 96, 96), np.array([2.0, 0.7, 0.7])


def test_blur_motion_moves_what_is_near_the_heart_only():
    chest = draw_chest(np.random.default_rng(3), SHAPE, SPACING)
    still = replace(chest, image_hu=chest.image_hu.copy(), lung=replace(chest.lung, motion=chest.lung.motion * 0))
    before = chest.image_hu.copy()
    blur_motion(np.random.default_rng(0), still)
    np.testing.assert_array_equal(still.image_hu, before)
    blur_motion(np.random.default_rng(0), chest)
    change = np.abs(chest.image_hu - before)
    # the coarse grid has a cell for every four voxels
    motion = np.kron(chest.lung.motion, np.ones((4, 4, 4)))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    near, far = change[motion > 0.6], change[motion < 0.1]
    assert len(far) > 1000
    assert near.mean() > 3 * far.mean()


def test_harden_beam_darkens_beside_bone_and_nothing_else():
    image = np.zeros((4, 96, 96), np.float32)
    image[:, 40:56, 40:56] = 850  # 600 HU above what counts as bone
    dark = harden_beam(image, np.array([2.0, 0.7, 0.7]))
    # spread evenly over a slice: 600 HU on 16 x 16 of 96 x 96 voxels
    np.testing.assert_allclose(dark.mean(), 600 * 16**2 / 96**2, rtol=0.15)
    assert dark[2, 48, 48] > dark[2, 48, 68] > dark[2, 48, 90] > 0
    assert not harden_beam(np.full((4, 96, 96), 60, np.float32), SPACING).any()
