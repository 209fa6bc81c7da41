"U-Nets for masks and fields, their augmentation and measures, against libraries and bad input"

import math
import sys

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from scipy.ndimage import distance_transform_edt as edt

from deffi_lab.core.step import make_generator
from deffi_lab.nets import segment
from deffi_lab.nets.augment import augment
from deffi_lab.nets.score import dice
from deffi_lab.nets.segment import (
    TrainUNet,
    field_loss,
    field_target,
    largest,
    mask_loss,
    outputs,
    unet,
)


def disc(x=30.0, y=26.0, r=11.0, size=(56, 64)):
    yy, xx = torch.meshgrid(
        torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij"
    )
    return ((xx - x) ** 2 + (yy - y) ** 2).sqrt() - r


@pytest.fixture(scope="module")
def labelled():
    phi = torch.stack([disc(24, 30, 9), disc(38, 24, 12)])
    return ((phi < 0) * 0.6 + 0.2)[:, None] + 0.05 * torch.randn(
        2, 1, 56, 64, generator=make_generator(0)
    ), phi


def test_nothing_asked_of_augmentation_changes_nothing_but_a_flip(labelled):
    image, phi = labelled
    a, p = augment(image.clamp(0, 1), phi, make_generator(1), 0, 0, 0, 0)
    for i in range(2):
        difference = min(
            float((p[i] - phi[i]).abs().max()), float((p[i] - phi[i].flip(-1)).abs().max())
        )
        assert difference < 1e-3
        assert (
            min(
                float((a[i, 0] - image[i, 0].clamp(0, 1)).abs().max()),
                float((a[i, 0] - image[i, 0].flip(-1).clamp(0, 1)).abs().max()),
            )
            < 1e-3
        )


def test_a_disc_stays_a_disc_with_its_distance_and_image():
    phi = disc().expand(40, 56, 64)
    image = (phi < 0).float()[:, None]
    a, p = augment(image, phi, make_generator(0), math.pi, 0.3, 0.05, 0)
    radii = ((p < 0).flatten(1).sum(1) / math.pi).sqrt()
    assert radii.min() < 9 and radii.max() > 13  # zoom was drawn
    assert (
        float(((a[:, 0] > 0.5) ^ (p < 0)).float().mean()) < 0.006
    )  # image and label moved together
    m = (p < 0).numpy()
    for i in range(0, 40, 7):  # phi is still the distance of its own mask
        if m[i][0].any() or m[i][-1].any() or m[i][:, 0].any() or m[i][:, -1].any():
            continue
        d = edt(~m[i]) - edt(m[i])
        near = np.abs(p[i].numpy()) < 6
        assert np.abs((d - 0.5 * np.sign(d)) - p[i].numpy())[near].max() < 1.2


def test_turns_go_both_ways_and_seeds_repeat():
    image, phi = torch.rand(6, 1, 32, 32, generator=make_generator(0)), torch.rand(6, 32, 32)
    a, b, c = (augment(image, phi, make_generator(s)) for s in (0, 0, 1))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])


def test_the_target_of_a_disc_by_hand():
    t = field_target(disc()[None], 4.0)[0]
    torch.testing.assert_close(t[0], torch.tanh(disc() / 4))
    assert t[1, 26, 50] == pytest.approx(1, abs=0.01) and t[2, 26, 50] == pytest.approx(
        0, abs=0.05
    )  # right: outward along x
    assert t[2, 45, 30] == pytest.approx(1, abs=0.01) and t[1, 26, 10] == pytest.approx(
        -1, abs=0.01
    )
    perfect = field_target(disc()[None])
    assert (
        float(field_loss(perfect, disc()[None], overlap=0))
        < 1e-6
        < 0.5
        < float(field_loss(-perfect, disc()[None], overlap=0))
    )
    whole = field_loss(perfect, disc()[None]) - mask_loss(-4 * perfect[:, :1], disc()[None])
    assert abs(float(whole)) < 1e-6 and float(field_loss(perfect, disc()[None])) < 0.3 < float(
        field_loss(-perfect, disc()[None])
    )
    assert (
        float(mask_loss(-20 * disc()[None, None], disc()[None]))
        < 0.02
        < 1
        < float(mask_loss(20 * disc()[None, None], disc()[None]))
    )


@pytest.mark.parametrize("field", [False, True])
def test_a_net_learns_two_discs(labelled, field):
    image, phi = labelled
    net = unet(3 if field else 1, channels=(8, 16, 32), seed=0)
    steps = list(
        TrainUNet(
            net, image, phi, field=field, steps=120, batch=4, generator=make_generator(0), chunk=20
        )
    )
    assert [s.index for s in steps] == [20, 40, 60, 80, 100, 120] and steps[0].phase == "train"
    losses = [s.metrics["loss"] for s in steps]
    assert losses[-1] < 0.9 * losses[0] and not net.training
    out = outputs(net, image)[:, 0]
    assert float(dice(largest(out < 0 if field else out > 0), phi < 0).min()) > 0.85


def test_training_repeats_by_its_seed(labelled):
    image, phi = labelled
    run = lambda seed: list(
        TrainUNet(
            unet(1, channels=(4, 8), seed=0),
            image,
            phi,
            steps=6,
            batch=2,
            generator=make_generator(seed),
        )
    )
    assert run(0) == run(0) != run(1)
    before = torch.get_rng_state()
    unet(1, channels=(4, 8), seed=3)
    assert torch.equal(before, torch.get_rng_state())  # the user's own generator is left alone


def test_training_taken_up_again_ends_alike(labelled):
    image, phi = labelled

    def start(steps=8, channels=(4, 8)):
        return TrainUNet(
            unet(1, channels=channels, seed=0),
            image,
            phi,
            steps=steps,
            batch=2,
            generator=make_generator(1),
        )

    whole, first, again = start(), start(), start()
    losses = list(whole)
    head = [loss for _, loss in zip(range(3), first)]
    list(again)  # somewhere else entirely
    again.load_state_dict(first.state_dict())
    assert (
        head + list(again) == losses and again.fit.rate == whole.fit.rate and not again.net.training
    )
    with pytest.raises(ValueError, match="'steps': 8.*'steps': 9.*use the same"):
        start(9).load_state_dict(first.state_dict())
    other = start(channels=(6, 8))
    before = {k: v.clone() for k, v in other.net.state_dict().items()}
    with pytest.raises(ValueError, match="same channels"):
        other.load_state_dict(first.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in other.net.state_dict().items()), (
        "a refused state changes nothing"
    )


def test_a_hint_is_a_further_channel_made_from_the_augmented_label(labelled):
    image, phi = labelled
    seen = []

    def hint(p, g):
        seen.append(p.shape)
        return torch.exp(-(p[:, None] ** 2))

    list(
        TrainUNet(
            unet(1, 2, (4, 8)), image, phi, steps=3, batch=5, generator=make_generator(0), hint=hint
        )
    )
    assert seen == [(5, 56, 64)] * 3


def test_dice_agrees_with_monai_and_knows_empty_masks():
    g = make_generator(0)
    a, b = torch.rand(7, 20, 20, generator=g) > 0.5, torch.rand(7, 20, 20, generator=g) > 0.3
    torch.testing.assert_close(
        dice(a, b), compute_dice(a[:, None].float(), b[:, None].float())[:, 0]
    )
    none = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert float(dice(none, none)) == 1 and float(dice(none, ~none)) == 0
    with pytest.raises(ValueError, match="same shape"):
        dice(a, b[:3])


def test_the_largest_piece_is_kept_and_filled():
    m = torch.zeros(2, 20, 20, dtype=torch.bool)
    m[0, 2:10, 2:10] = True
    m[0, 5, 5] = False
    m[0, 15:17, 15:17] = True
    piece = largest(m)
    assert piece[0].sum() == 64 and not piece[0, 15:].any() and not piece[1].any()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda im, p: list(TrainUNet(unet(1, channels=(4, 8)), im[:0], p[:0])), "at least 1"),
        (
            lambda im, p: list(TrainUNet(unet(1, channels=(4, 8)), im, p[:1])),
            r"labels \(1, 56, 64\)",
        ),
        (
            lambda im, p: list(TrainUNet(unet(1, channels=(4, 8)), im / 0, p)),
            "image 0 holds values that are not finite",
        ),
        (
            lambda im, p: list(TrainUNet(unet(1, channels=(4, 8)), im, p.log())),
            "label 0 holds values that are not finite",
        ),
        (lambda im, p: list(TrainUNet(unet(1, channels=(4, 8)), im, p, steps=0)), "steps=0"),
        (lambda im, p: augment(im, p, zoom=-1), "zoom=-1"),
        (lambda im, p: augment(im, p[:, 1:]), "one distance a pixel"),
        (lambda im, p: field_target(p, 0.0), "sigma=0"),
        (lambda im, p: unet(0), "outputs=0"),
        (lambda im, p: unet(1, channels=(4,)), "two levels"),
    ],
)
def test_bad_input_is_named(labelled, call, match):
    with pytest.raises(ValueError, match=match):
        call(*labelled)


def test_without_monai_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match=r"pip install deffi_lab\[segment\]"):
        segment.unet(1)


@pytest.mark.cuda
def test_on_a_gpu(labelled):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image, phi = (v.cuda() for v in labelled)
    net = unet(3, channels=(8, 16, 32), seed=0).cuda()
    list(
        TrainUNet(
            net, image, phi, field=True, steps=120, batch=4, generator=make_generator(0, "cuda")
        )
    )
    assert float(dice(largest(outputs(net, image)[:, 0] < 0), phi < 0).min()) > 0.85
