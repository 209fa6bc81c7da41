"""Signed distance: against scipy, across ways of
computing it, at its edges, and for masks that have none"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter

from deffi_lab.numeric.distance import batched_distance, gradient, signed_distance


def blobs(n: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    "Smooth random masks, several components each, some on the border"
    noise = np.random.default_rng(seed).normal(size=(n, h, w))
    return torch.from_numpy(np.stack([gaussian_filter(x, 4) for x in noise]) > 0.02)


def by_scipy(mask: np.ndarray) -> np.ndarray:
    "Both sides, beyond the image background"
    wide = np.pad(mask, 1)
    return np.where(wide, 0.5 - distance_transform_edt(wide), distance_transform_edt(~wide) - 0.5)[
        1:-1, 1:-1
    ]


@pytest.mark.parametrize("h,w", [(96, 96), (40, 71), (3, 50)])
def test_it_is_scipys(h, w):
    masks = blobs(6, h, w)
    want = np.stack([by_scipy(m) for m in masks.numpy()])
    np.testing.assert_allclose(signed_distance(masks).numpy(), want, atol=1e-5)


@given(
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(0, 10**6),
    st.sampled_from([(1.0, 1.0), (1.4, 0.6), (1.0, 2.0), (0.5, 0.5)]),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_agree(h, w, seed, spacing):
    mask = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[:, 0, 0], mask[:, -1, -1] = True, False
    torch.testing.assert_close(
        signed_distance(mask, spacing), batched_distance(mask, *spacing), rtol=1e-6, atol=1e-6
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.4, 0.6)])
def test_cuda_gives_the_same(spacing):
    masks = blobs(8, 96, 80)
    there = signed_distance(masks.cuda(), spacing, smooth=1.0).cpu()
    torch.testing.assert_close(
        there, signed_distance(masks, spacing, smooth=1.0), rtol=1e-4, atol=1e-4
    )


def test_zero_lies_on_the_edges_of_pixels_whatever_the_spacing():
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:30, 20:40] = True
    phi = signed_distance(mask, (2.0, 0.5))
    assert phi[20, 40] == 1 and phi[20, 39] == -1 and phi[20, 41] == 3  # x: 2 a pixel
    assert phi[30, 30] == 0.25 and phi[29, 30] == -0.25 and phi[33, 30] == 1.75  # y: .5 a pixel


def test_a_mask_on_the_border_ends_there_and_one_pixel_is_half_a_pixel_deep():
    mask = torch.zeros(2, 9, 9, dtype=torch.bool)
    mask[0, :, :4], mask[1, 4, 4] = True, True
    phi = signed_distance(mask)
    assert phi[0, 4, :5].tolist() == [-0.5, -1.5, -1.5, -0.5, 0.5]
    assert phi[1, 4, 3:7].tolist() == [0.5, -0.5, 0.5, 1.5]


def test_smoothing_moves_a_circle_inwards_as_said():
    y, x = torch.meshgrid(torch.arange(128.0) - 63.5, torch.arange(128.0) - 63.5, indexing="ij")
    r = (x * x + y * y).sqrt()
    rough, smooth = (signed_distance(r < 40, smooth=s)[64, 64:] for s in (0.0, 1.5))
    shift = float((smooth - rough)[25:55].mean())
    assert shift == pytest.approx(1.5**2 / (2 * 40), rel=0.3)
    n = gradient(signed_distance(r < 40, smooth=1.5))
    band = (r - 40).abs() < 4
    assert float((n - torch.stack([x, y]) / r).norm(dim=0)[band].max()) < 0.15


def test_gradient_knows_spacing_and_order():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    n = gradient(3 * 2 * x - 0.5 * y, (2.0, 0.5))
    torch.testing.assert_close(n, torch.stack([torch.full((5, 7), 3.0), torch.full((5, 7), -1.0)]))


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda m: m & False, "mask 0 of 2 is empty"),
        (lambda m: m | True, "mask 0 of 2 is full"),
        (lambda m: torch.stack([m[0], ~(m[0] ^ m[0])]), "mask 1 of 2 is full"),
        (lambda m: m.float(), "bool mask"),
        (lambda m: m[0, 0], "shape"),
    ],
)
def test_what_has_no_distance_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        signed_distance(change(blobs(2, 20, 20)))


@pytest.mark.parametrize(
    "how,words",
    [
        (dict(spacing=(1.0, 0.0)), "spacing"),
        (dict(spacing=(1.0, float("nan"))), "spacing"),
        (dict(smooth=2.0), "0..1.5"),
        (dict(smooth=-1.0), "0..1.5"),
    ],
)
def test_bad_settings_are_named(how, words):
    with pytest.raises(ValueError, match=words):
        signed_distance(blobs(1, 20, 20), **how)


def test_batch_axes_are_kept():
    masks = blobs(6, 20, 30)
    assert torch.equal(
        signed_distance(masks.reshape(2, 3, 20, 30)).reshape(6, 20, 30), signed_distance(masks)
    )
    assert torch.equal(signed_distance(masks[0]), signed_distance(masks)[0])
    assert gradient(signed_distance(masks.reshape(2, 3, 20, 30))).shape == (2, 3, 2, 20, 30)
