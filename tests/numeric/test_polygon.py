"Polygons become masks: matplotlib and skimage agree, polygons that share an edge share no pixel"

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from skimage.draw import polygon2mask

from deffi_lab.numeric.polygon import fill_polygon


def star(rng: np.random.Generator) -> np.ndarray:
    "Points (x, y) of a polygon that crosses itself, partly outside an image of 40 x 50"
    return rng.uniform(-8, 58, (rng.integers(3, 9), 2))


@pytest.mark.parametrize("seed", range(20))
def test_a_ring_is_matplotlibs_and_skimages(seed):
    rng, angle = np.random.default_rng(seed), np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = 14 + 4 * np.cos(3 * angle + rng.uniform(0, 6)) + rng.uniform(-2, 2)
    ring = np.stack([24.3 + radius * np.cos(angle), 19.7 + radius * np.sin(angle)], 1)
    mine = fill_polygon(ring, (40, 50)).numpy()
    i, j = np.indices((40, 50))
    centres = np.stack([j.ravel(), i.ravel()], 1)
    assert np.array_equal(mine, Path(ring).contains_points(centres).reshape(40, 50))
    assert np.array_equal(mine, polygon2mask((40, 50), ring[:, ::-1]))


@pytest.mark.parametrize("seed", range(10))
def test_even_odd_is_the_number_of_edges_to_the_left(seed):
    p = star(np.random.default_rng(seed))
    i, j = np.indices((40, 50)).astype(float)
    odd = np.zeros((40, 50), bool)
    for (x0, y0), (x1, y1) in zip(p, np.roll(p, -1, 0)):
        spans = (y0 <= i) != (y1 <= i)
        odd ^= spans & (x0 + (i - y0) / (y1 - y0) * (x1 - x0) <= j)
    assert np.array_equal(fill_polygon(p, (40, 50)).numpy(), odd)


def test_polygons_that_share_edges_share_no_pixel_and_leave_none_out():
    points = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    middle = np.array([4.0, 6.0])  # edges and the middle pass through centres of pixels
    count = sum(
        fill_polygon(np.stack([a, b, middle]), (12, 12)).int()
        for a, b in zip(points, np.roll(points, -1, 0))
    )
    assert torch.equal(count.bool(), fill_polygon(points, (12, 12))) and int(count.max()) == 1
    assert int(count.sum()) == 100


def test_tensors_arrays_and_reversed_views_are_one():
    ring = np.array([(2.5, 1.5), (9.0, 3.0), (5.0, 8.5)])
    mask = fill_polygon(torch.from_numpy(ring).requires_grad_(), (12, 12))
    assert torch.equal(mask, fill_polygon(ring[::-1], (12, 12))) and mask.any()
    for bad, words in (
        (ring[:2], "3 points"),
        (ring * np.inf, "not finite"),
        (ring[0], "3 points"),
    ):
        with pytest.raises(ValueError, match=words):
            fill_polygon(bad, (12, 12))
