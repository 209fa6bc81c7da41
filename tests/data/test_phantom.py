"The phantom heart: seeded, bounded, its contour right, hard and yet learnable"

import time

import pytest
import torch

from deffi_lab.data.heart.phantom import phantom

many = phantom(256, seed=7, device="cpu")


def test_shapes_and_range():
    assert (
        many.image.shape == (256, 1, 96, 96)
        and many.mask.shape == (256, 96, 96) == many.outer.shape
    )
    assert float(many.image.min()) >= -0.1 and float(many.image.max()) <= 1.5
    low, high = (torch.tensor([float(i.quantile(q)) for i in many.image]) for q in (0.01, 0.99))
    assert low.abs().max() < 0.01 and (high - 1).abs().max() < 0.01
    assert len(set(many.subject)) == 256, "each heart is a patient of its own"


def test_the_seed_decides_and_the_first_ones_stay():
    again = phantom(50, seed=7, device="cpu")
    assert torch.equal(again.image, many.image[:50]) and torch.equal(again.mask, many.mask[:50])
    other = phantom(50, seed=8, device="cpu")
    assert not (other.image == again.image).flatten(1).all(1).any()


def test_the_generator_of_torch_is_left_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    phantom(2, device="cpu")
    assert torch.equal(torch.rand(3), want)


def test_every_mask_is_one_whole_piece_inside_the_image():
    from scipy.ndimage import binary_fill_holes, label

    assert (
        not (many.mask & ~many.outer).any()
        and (many.outer.sum((1, 2)) > many.mask.sum((1, 2)) * 1.2).all()
    )
    for m in many.mask.numpy():
        assert label(m)[1] == 1 and (binary_fill_holes(m) == m).all()
    assert not many.mask[:, [0, -1]].any() and not many.mask[:, :, [0, -1]].any()


def test_sizes_and_places_vary():
    area = many.mask.sum((1, 2)).float() * many.spacing**2 / 100
    assert (
        1 < float(area.min())
        and float(area.max()) < 60
        and float(area.quantile(0.9) / area.quantile(0.1)) > 3
    )
    centre = torch.stack([m.nonzero().double().mean(0) for m in many.mask])
    assert (centre.std(0) > 5).all()


def test_papillary_muscles_are_dark_and_inside():
    """Within many masks some pixels are far darker than
    the pool's median; blood alone does not make the mask"""
    dark = torch.tensor(
        [
            float((v < 0.6 * v.median()).float().mean())
            for v in (i[0][m] for i, m in zip(many.image, many.mask))
        ]
    )
    assert float((dark > 0.02).float().mean()) > 0.4


def test_a_threshold_does_not_solve_it():
    """The best threshold of each image (it knows the answer)
    stays far from the mask: brightness alone is no label"""
    best = torch.zeros(256)
    for t in torch.linspace(0.1, 1.0, 19):
        predicted = many.image[:, 0] > t
        best = torch.maximum(
            best,
            2
            * (predicted & many.mask).sum((1, 2))
            / (predicted.sum((1, 2)) + many.mask.sum((1, 2))),
        )
    assert float(best.mean()) < 0.7


def test_blood_is_brighter_than_the_wall_around_it():
    wall = many.outer & ~many.mask
    step = torch.tensor(
        [float(i[0][m].mean() - i[0][w].mean()) for i, m, w in zip(many.image, many.mask, wall)]
    )
    assert float((step > 0.05).float().mean()) > 0.95


def test_label_size_and_spacing():
    epi = phantom(4, seed=7, device="cpu", label="epi")
    assert torch.equal(epi.mask, many.outer[:4])
    fine = phantom(4, size=168, spacing=1.0, seed=7, device="cpu")
    assert fine.image.shape[-1] == 168
    same = fine.mask.sum((1, 2)) * 1.0 / (many.mask[:4].sum((1, 2)) * 1.75**2)
    assert (same - 1).abs().max() < 0.1, "the same hearts on a finer grid"


def test_hardness_widens_the_spread():
    easy, hard = (phantom(64, seed=3, device="cpu", hardness=h) for h in (0.0, 1.5))
    spread = [
        torch.stack([m.nonzero().double().mean(0) for m in s.mask]).std(0).mean()
        for s in (easy, hard)
    ]
    assert spread[0] < 2 and spread[1] > 5


@pytest.mark.parametrize(
    "wrong, match",
    [
        (dict(n=0), "n=0"),
        (dict(n=2, size=16), "size=16"),
        (dict(n=2, spacing=0.5), "100 mm"),
        (dict(n=2, hardness=3.0), "hardness=3.0"),
        (dict(n=2, label="rv"), "label='rv'"),
    ],
)
def test_bad_input(wrong, match):
    with pytest.raises(ValueError, match=match):
        phantom(**wrong, device="cpu")


def test_it_is_fast():
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        phantom(128, seed=1, device="cpu")
        best = min(best, time.process_time() - start)
    assert best / 128 < 0.02, "1,000 take about 5 s on one free core; four times that on a busy one"


@pytest.mark.cuda
def test_the_device_does_not_matter():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    on = phantom(40, seed=7, device="cuda")
    assert on.image.is_cuda
    assert (on.image.cpu() - many.image[:40]).abs().mean() < 1e-4
    assert (on.mask.cpu() != many.mask[:40]).float().mean() < 1e-4
