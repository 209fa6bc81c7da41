"Another grid: skimage, scipy and MONAI agree; ties favour no level; areas stay"

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, distance_transform_edt, map_coordinates
from skimage.measure import block_reduce

from deffi_lab.numeric.distance import signed_distance
from deffi_lab.numeric.regrid import (
    by_dims,
    centred,
    majority,
    pixel_centres,
    pooled,
    resampled_image,
    resampled_mask,
    resampled_volume,
)


def test_two_or_three_dimensions():
    assert by_dims(2, "flat", "deep") == "flat" and by_dims(3, "flat", "deep") == "deep"
    with pytest.raises(ValueError, match="dims=4: 2"):
        by_dims(4, 0, 1)


@pytest.mark.parametrize("sides", [(12, 20), (8, 12, 16)])
def test_pooling_is_skimages(sides):
    x = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    want = block_reduce(x.numpy(), (1, 1) + (4,) * len(sides), np.mean)
    torch.testing.assert_close(pooled(x, 4), torch.from_numpy(want))
    assert pooled(x, 1) is x
    with pytest.raises(ValueError, match="cannot be divided by 5"):
        pooled(x, 5)


@pytest.mark.parametrize("sides", [(12, 18), (6, 12, 18)])
def test_majority_is_the_mode_where_there_is_one(sides):
    label = torch.randint(0, 4, (2, *sides), generator=torch.Generator().manual_seed(1)).byte()
    cells = label.clone()
    for axis in range(1, len(sides) + 1):
        cells = cells.unfold(axis, 3, 3)
    cells = cells.flatten(1 + len(sides)).long()
    votes = torch.stack([(cells == k).sum(-1) for k in range(4)], -1).sort(-1)
    clear = votes.values[..., 3] > votes.values[..., 2]
    assert torch.equal(majority(label, 3).long()[clear], votes.indices[..., 3][clear])
    assert 0.2 < clear.float().mean() < 1


def test_ties_favour_no_level():
    stripes = (torch.arange(32) % 2).byte().expand(1, 32, 32).contiguous()
    assert majority(stripes, 2).float().mean() == 0.5


def test_centred_crops_and_pads():
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(centred(x, 2, (2, 3)), x[:, :, 1:3, 2:4])
    wide = centred(x, 8, (2, 3))
    assert wide.shape == (1, 1, 8, 8) and torch.equal(centred(wide[..., 1:7], 4, (2,)), x)


def test_a_finer_grid_is_scipys_affine_reading():
    image = np.random.default_rng(0).uniform(0, 9, (40, 30))
    got = resampled_image(image, (1.5, 1.0), 24, 0.8)
    start = [(n - 1) / 2 - 11.5 * 0.8 / s for n, s in zip(image.shape, (1.5, 1.0))]
    want = affine_transform(
        image.astype(np.float32), [0.8 / 1.5, 0.8], start, (24, 24), order=1, mode="nearest"
    )
    assert np.allclose(got, want, atol=1e-5)


def test_a_mask_goes_as_scipys_distance_says():
    mask = np.random.default_rng(2).random((9, 9)).repeat(6, 0).repeat(6, 1) > 0.6
    inside, padded = resampled_mask(mask, (1.25, 1.25), 40, 1.75), np.pad(mask, 1)
    phi = np.where(padded, 0.5 - distance_transform_edt(padded), 0)
    phi = np.where(padded, phi, distance_transform_edt(~padded) - 0.5)
    at = pixel_centres((40, 40), (1.4, 1.4), [(n - 1) / 2 for n in padded.shape])
    want = map_coordinates(phi, at, order=1, mode="nearest")
    assert np.array_equal(inside[np.abs(want) > 1e-6], (want < 0)[np.abs(want) > 1e-6])
    assert not resampled_mask(mask & False, (1.0, 1.0), 8, 1.0).any()


def test_only_ratios_of_spacings_count():
    y, x = np.indices((60, 90))
    disc = np.hypot((y - 29.5) * 2, (x - 44.5) * 0.8) < 25
    a, b = (resampled_mask(disc, (2 * k, 0.8 * k), 70, k) for k in (1.0, 3.0))
    assert np.array_equal(a, b) and abs(a.sum() / (np.pi * 25**2) - 1) < 0.02
    phi = signed_distance(torch.from_numpy(disc), (0.8, 2.0))
    assert torch.equal(phi < 0, torch.from_numpy(disc))


def test_volumes_are_averaged_and_labels_counted():
    volume = np.random.default_rng(3).uniform(0, 1, (8, 12, 16)).astype(np.float32)
    middle = [(n - 1) / 2 for n in volume.shape]
    same = resampled_volume(volume, (1, 1, 1), volume.shape, 1, middle)
    assert np.allclose(same, volume, atol=1e-6)
    half = resampled_volume(volume, (1, 1, 1), (4, 6, 8), 2, middle)
    assert np.allclose(half, block_reduce(volume, (2, 2, 2), np.mean), atol=1e-6)
    levels = (volume * 4).astype(np.uint8)
    got = resampled_volume(levels, (1, 1, 1), (4, 6, 8), 2, middle, levels=True)
    assert np.array_equal(got, majority(torch.from_numpy(levels)[None], 2)[0].numpy())
