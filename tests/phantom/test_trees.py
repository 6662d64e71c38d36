import numpy as np
import pytest

from luna16_monai.phantom.trees import Branches, Tree, crossings, grow_tree, paint_tubes, wind_branches


def line_of(start, end, radius, branch=0, count=61):
    points = np.linspace(start, end, count)
    return points, np.full(count, radius), np.full(count, branch)


def branches(*lines):
    points, radius, branch = (np.concatenate(part) for part in zip(*lines, strict=True))
    empty = np.empty((0, 3))
    return Branches(points, radius, branch, empty, np.empty(0), empty)


def test_grow_tree_adds_radii_up_by_murrays_law():
    # a stem that forks into two twigs
    points = np.array([[10.0, 0, 0], [20, 5, 0], [20, -5, 0]])
    tree = grow_tree(points, np.zeros(3), 0.4)
    assert tree.parent.tolist() == [-1, 0, 1, 1]
    assert tree.children.tolist() == [1, 2, 0, 0]
    assert tree.radius_mm.tolist() == pytest.approx([0.4 * 2 ** (1 / 2.7)] * 2 + [0.4] * 2)


def test_grow_tree_straightens_a_vessel_through_its_forks():
    # each of four times the node between the two ends goes 0.6 of the way to their middle, (10, 0, 0)
    tree = grow_tree(np.array([[10.0, 2, 0], [20, 0, 0]]), np.zeros(3), 0.4)
    assert tree.parent.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(tree.points_zyx[1], [10, 2 * 0.4**4, 0], atol=1e-12)
    np.testing.assert_array_equal(tree.points_zyx[2], [20, 0, 0])


def test_wind_branches_tapers_from_fork_to_tip():
    nodes = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0]])
    tree = Tree(nodes, np.array([-1, 0, 1]), np.array([2.0, 1.0, 0.9]), np.array([1, 1, 0]))
    paths = wind_branches(np.random.default_rng(0), tree)
    stem, twig = (paths.radius_mm[paths.branch == b] for b in (0, 1))
    # no more than 1.25 of its own radius where it leaves a thicker vessel; half of it at a tip
    assert [stem[0], stem[-1], twig[0], twig[-1]] == pytest.approx([1.25, 1.0, 1.0, 0.45])
    ends = [paths.points_zyx[paths.branch == b][[0, -1]] for b in (0, 1)]
    np.testing.assert_allclose(ends, [[nodes[0], nodes[1]], [nodes[1], nodes[2]]], atol=1e-9)


def test_crossings_finds_where_two_vessels_touch():
    along_x = branches(line_of([5.0, 5, 0], [5, 5, 10], 1.0))
    # one passes 1.5 mm above at x = 4, one 3 mm above, one touches but is thin
    others = branches(
        line_of([6.5, 0, 4], [6.5, 10, 4], 1.0, 0),
        line_of([8.0, 0, 6], [8, 10, 6], 1.0, 1),
        line_of([5.5, 0, 8], [5.5, 10, 8], 0.5, 2),
    )
    np.testing.assert_allclose(crossings(along_x, others, 0.8), [[5.75, 5, 4]], atol=0.1)
    assert crossings(along_x, branches(line_of([8.0, 0, 6], [8, 10, 6], 0.5)), 0.8).shape == (0, 3)


@pytest.mark.parametrize(("radius", "edge"), [(2.0, 0.5), (0.6, 0.7), (0.2, 0.7)])
def test_paint_tubes_fills_the_volume_of_a_tube(radius, edge):
    coverage = np.zeros((60, 80, 80), np.float32)
    points, radii, _ = line_of([4.0, 10.05, 10.1], [11, 10.05, 10.1], radius)
    paint_tubes(coverage, points, radii, np.full(3, 0.25), edge)
    # pi r² 5 mm between z = 5 and 10, away from the ends: 62.83, 5.65 and 0.63 mm3
    assert coverage[20:40].sum() * 0.25**3 == pytest.approx(np.pi * radius**2 * 5, rel=0.03)


def test_paint_tubes_keeps_what_is_fuller():
    coverage = np.full((8, 8, 8), 0.9, np.float32)
    paint_tubes(coverage, np.full((1, 3), 2.0), np.array([0.3]), np.full(3, 0.5), 0.7)
    assert (coverage == np.float32(0.9)).all()
