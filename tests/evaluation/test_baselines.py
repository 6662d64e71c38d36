import numpy as np
import pytest

from luna16_monai.evaluation.baselines import baseline_features, score_baselines

SPACING = (1.25, 0.7, 0.7)


def cutout_with_box(half_zyx, hu):
    cutout = np.full((32, 48, 48), -850, np.int16)
    z, y, x = (slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(cutout.shape, half_zyx, strict=True))
    cutout[z, y, x] = hu
    return cutout


def test_baseline_features_measures_a_box():
    # 3 x 5 x 5 voxels of 0.6125 mm3 = 45.94 mm3
    features = baseline_features(cutout_with_box((1, 2, 2), 40)[None], SPACING)
    assert {name: f.shape for name, f in features.items()} == {
        "mean_hu_centre": (1, 1),
        "size_brightness": (1, 4),
        "radial_profile": (1, 12),
        "component_shape": (1, 18),
    }
    assert features["size_brightness"][0, 1:].tolist() == pytest.approx([40, 45.9375, 40])
    # along an axis of n voxels of s mm the variance is s² n² / 12; all but 1 x 3 x 3 voxels lie at the surface
    sides = np.array([3 * 1.25, 5 * 0.7, 5 * 0.7])
    sd = np.sort(sides) / np.sqrt(12)
    expected = [45.9375, *sd, sd[0] / sd[2], sd[1] / sd[2], 66 / 75, 0, 40]
    assert features["component_shape"][0].tolist() == pytest.approx(expected * 2, rel=1e-5)
    profile = features["radial_profile"][0]
    # voxels nearer than 1.25 mm lie within the box; none of it lies beyond hypot(1.25, 1.4, 1.4) = 2.34 mm
    assert profile[0] == 40
    assert -850 < profile[1] < 40
    assert profile[2:].tolist() == [-850] * 10


def test_baseline_features_takes_the_mean_of_a_ball_of_3_mm():
    # 5 x 7 x 7 voxels reach 2.5, 2.1 and 2.1 mm: of the ball of 3 mm, z = 0 +-1 +-2 with (y, x) within the radius
    inside = total = 0
    for z in range(-2, 3):
        for y in range(-4, 5):
            for x in range(-4, 5):
                if (1.25 * z) ** 2 + (0.7 * y) ** 2 + (0.7 * x) ** 2 <= 9:
                    total += 1
                    inside += abs(y) <= 3 and abs(x) <= 3
    mean = baseline_features(cutout_with_box((2, 3, 3), 150)[None], SPACING)["mean_hu_centre"][0, 0]
    assert mean == pytest.approx(-850 + 1000 * inside / total, abs=0.01)


def test_baseline_features_of_empty_lung_finds_no_blob():
    features = baseline_features(np.full((2, 32, 48, 48), -850, np.int16), SPACING)
    assert features["size_brightness"][1].tolist() == [-850, -850, 0, -1000]
    assert features["component_shape"][1].tolist() == ([0] * 8 + [-1000]) * 2


def test_component_shape_tells_how_much_of_a_vessel_leaves_the_ball():
    # along z through the whole box of 32 voxels: within 10 mm lie 17 x 3 x 3, of which |z| > 9 mm are 2 x 3 x 3
    shape = baseline_features(cutout_with_box((16, 1, 1), 40)[None], SPACING)["component_shape"][0]
    assert shape[0] == pytest.approx((17 * 9 - 8 * 2) * 0.6125, rel=1e-5)
    assert shape[7] == pytest.approx((2 * 9 - 8 * 2) / (17 * 9 - 8 * 2), rel=1e-5)


def test_baseline_features_of_no_cutouts():
    assert baseline_features(np.empty((0, 32, 48, 48), np.int16), SPACING)["radial_profile"].shape == (0, 12)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [((32, 48, 48), SPACING, r"cutouts of shape \(32, 48, 48\)"), ((1, 32, 48, 48), (1.25, 0.7, 0), "above 0")],
)
def test_baseline_features_refuses_bad_input(shape, spacing, message):
    with pytest.raises(ValueError, match=message):
        baseline_features(np.zeros(shape, np.int16), spacing)


def test_score_baselines_tells_bright_from_dark():
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    cutouts = np.stack([cutout_with_box((2, 3, 3), int(rng.integers(-20, 60) if c else -700)) for c in labels])
    scores = score_baselines(cutouts[:60], labels[:60], cutouts[60:], SPACING)
    assert list(scores) == ["mean_hu_centre", "size_brightness", "radial_profile", "component_shape"]
    for probability in scores.values():
        assert probability.shape == (20,)
        assert probability[labels[60:] == 1].min() > probability[labels[60:] == 0].max()


def test_score_baselines_refuses_one_class():
    cutouts = np.zeros((3, 32, 48, 48), np.int16)
    with pytest.raises(ValueError, match=r"class \[1\] only: give both classes"):
        score_baselines(cutouts, [1, 1, 1], cutouts, SPACING)
