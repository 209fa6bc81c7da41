"Scores are MONAI's, in two dimensions and three; augmentation is scipy's affine reading"

import math

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_confusion_matrix_metric,
    compute_dice,
    get_confusion_matrix,
)
from scipy.ndimage import affine_transform

from deffi_lab.core.step import make_generator
from deffi_lab.data.scans import regions
from deffi_lab.nets.augment import augment, exposed_again
from deffi_lab.nets.blocks import onehot
from deffi_lab.nets.score import dice, levels, nested_sums, scores


@pytest.mark.parametrize("sides", [(20, 24), (8, 10, 12)])
def test_dice_is_monais(sides):
    g = make_generator(0)
    a, b = (torch.rand(6, *sides, generator=g) > 0.6 for _ in range(2))
    a[0], b[0], b[1] = False, False, False
    want = compute_dice(a[:, None].float(), b[:, None].float(), ignore_empty=False)[:, 0]
    assert torch.equal(dice(a, b), want) and dice(a, b)[:2].tolist() == [1, 0]
    with pytest.raises(ValueError, match="the same shape"):
        dice(a, b[1:])


@pytest.mark.parametrize("sides", [(16, 16), (8, 8, 8)])
def test_scores_are_monais(sides):
    g = make_generator(1)
    label = torch.randint(0, 4, (5, *sides), generator=g).byte()
    label[0], label[1] = 0, label[1].clamp(max=2)
    share = (2 * torch.randn(5, 4, *sides, generator=g)).softmax(1)
    result = scores(share, label)
    prediction, true = (nested_sums(share) > 0.5).float(), nested_sums(onehot(label))
    assert torch.equal(true.bool(), regions(label))
    want = compute_dice(prediction, true, include_background=True, ignore_empty=False)
    torch.testing.assert_close(result.dice, want, atol=0, rtol=0)
    matrix = get_confusion_matrix(prediction, true)
    want = compute_confusion_matrix_metric("sensitivity", matrix)
    empty = true.flatten(2).sum(2) == 0
    assert torch.equal(result.sensitivity.isnan(), empty) and empty.sum() == 4
    torch.testing.assert_close(result.sensitivity[~empty], want[~empty])
    assert torch.equal(regions(levels(share)), nested_sums(share) > 0.5)


def test_a_turned_slice_is_scipys_affine_reading():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = (torch.sin(x / 7) * torch.cos(y / 5) + 1)[None, None].repeat(3, 1, 1, 1)
    phi = torch.hypot(x - 28, y - 21)[None].repeat(3, 1, 1) - 9
    got, distance = augment(image, phi, make_generator(4), 0.6, 0.2, 0.0, 0.0)
    r = torch.rand(8, 3, generator=make_generator(4)) * 2 - 1
    for i in range(3):
        angle, scale = 0.6 * float(r[0, i]), math.exp(0.2 * float(r[1, i]))
        flip = 1 if r[2, i] > 0 else -1
        c, s = math.cos(angle) / scale, math.sin(angle) / scale
        matrix = np.array([[c, s * flip], [-s, c * flip]])  # (rows, columns) of the old image
        middle = np.array([19.5, 29.5])
        at = dict(offset=middle - matrix @ middle, order=1, mode="nearest")
        assert np.allclose(
            got[i, 0], affine_transform(image[i, 0].numpy(), matrix, **at), atol=1e-3
        )
        want = scale * affine_transform(phi[i].numpy(), matrix, **at)
        assert np.allclose(distance[i], want, atol=2e-2)


def test_exposure_is_gain_gamma_and_noise():
    image = torch.rand(200, 1, 16, 16, generator=make_generator(0)) - 0.1
    gain, gamma, noise = (torch.full((200, 1, 1, 1), v) for v in (1.5, 0.8, 0.05))
    error = exposed_again(image, gain, gamma, noise, make_generator(1)) - 1.5 * image.clamp(
        min=0
    ).pow(0.8)
    assert abs(float(error.mean())) < 1e-3 and abs(float(error.std()) - 0.05) < 1e-3
