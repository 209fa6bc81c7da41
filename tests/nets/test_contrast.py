"Contrast: warps, the loss by hand, training, the shipped encoder"

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Trainings

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist, unit
from deffi_lab.nets import contrast
from deffi_lab.nets.classify import predict
from deffi_lab.nets.contrast import Encoder, contrast_loss, reference_encoder, train_encoder, warp
from deffi_lab.numeric.neighbours import nearest


@pytest.fixture(scope="module")
def data():
    return mnist()


def noise(n: int, channels: int = 1, size: int = 28, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=make_generator(seed))


def small(seed: int = 0, **options) -> Encoder:
    return Encoder(**({"width": 4, "dims": 16, "out": 8} | options), generator=make_generator(seed))


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, 5, generator=make_generator(seed)), dim=1)


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (2, 9)])
def test_warp_keeps_shape_and_range_and_repeats_with_its_generator(channels, size):
    x = noise(6, channels, size)
    a, b, c = (warp(x, make_generator(s)) for s in (0, 0, 1))
    assert a.shape == x.shape and a.dtype == x.dtype and 0 <= a.min() and a.max() <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.allclose(warp(x, make_generator(0), 0, 0, 0, 0), x, atol=1e-4)
    still = warp(x[:1].expand(6, -1, -1, -1), make_generator(0))
    assert all(not torch.equal(still[0], one) for one in still[1:])  # each image has its own warp


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_pure_shift_moves_by_the_drawn_pixels_and_lets_zeros_in(seed):
    side, place = 20, 0.2
    x = torch.zeros(4, 1, side, side)
    x[:, :, 10, 10] = 1
    out = warp(x, make_generator(seed), 0, 0, 0, place)
    u = torch.rand(5, 4, generator=make_generator(seed)) * 2 - 1
    at = torch.arange(side).float()
    for image, a, b in zip(out, u[3], u[4]):  # sampled from x + t: it moves by -t
        row, column = image[0].sum(1) @ at, image[0].sum(0) @ at
        assert float(column) == pytest.approx(10 - float(a) * place * side, abs=1e-3)
        assert float(row) == pytest.approx(10 - float(b) * place * side, abs=1e-3)
    outside = warp(torch.ones(4, 1, side, side), make_generator(seed), 0, 0, 0, place)
    share = (1 - (u[3] * place).abs()) * (1 - (u[4] * place).abs())
    torch.testing.assert_close(outside.mean((1, 2, 3)), share, rtol=0, atol=0.02)


def test_turning_keeps_the_middle_and_scaling_changes_the_area():
    x = torch.zeros(20, 1, 41, 41)
    x[:, :, 12:29, 12:29] = 1
    for turn, size, low, high in (
        (15.0, 0.0, 0.99, 1.01),
        (0.0, 0.3, math.exp(-0.6), math.exp(0.6)),
    ):
        out = warp(x, make_generator(0), turn, size, 0, 0)
        share = out.sum((1, 2, 3)) / x[0].sum()
        assert (out[:, 0, 20, 20] > 0.999).all() and low < share.min() and share.max() < high
    assert share.min() < 0.8 and share.max() > 1.25


@pytest.mark.parametrize("name", ["turn", "size", "shear", "place"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_warp_refuses_what_is_no_amount(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        warp(noise(2), **{name: value})


@pytest.mark.parametrize("n, temperature", [(2, 1.0), (5, 0.2), (16, 0.5)])
def test_contrast_loss_is_the_double_loop_and_its_gradient(n, temperature):
    z = rows(2 * n).double().requires_grad_()
    total = 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        logits = torch.stack([z[i] @ z[j] / temperature for j in others])
        total = total + F.cross_entropy(
            logits[None], torch.tensor([others.index((i + n) % (2 * n))])
        )
    (total / (2 * n)).backward()
    own = z.detach().clone().requires_grad_()
    loss = contrast_loss(own, temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / (2 * n), rel=1e-9)
    torch.testing.assert_close(own.grad, z.grad, rtol=1e-8, atol=1e-10)


def test_contrast_loss_is_low_for_twins_and_high_for_strangers():
    z = rows(8)
    alike, strangers = contrast_loss(torch.cat([z, z])), contrast_loss(torch.cat([z, z.roll(1, 0)]))
    assert alike < strangers and float(contrast_loss(torch.ones(8, 1))) == pytest.approx(
        math.log(7), rel=1e-5
    )


@pytest.mark.parametrize(
    "z, temperature, match",
    [
        (rows(5), 0.2, "5 rows"),
        (rows(2), 0.2, "2 rows"),
        (rows(4), 0.0, "temperature=0"),
        (rows(4), math.nan, "temperature=nan"),
    ],
)
def test_contrast_loss_refuses(z, temperature, match):
    with pytest.raises(ValueError, match=match):
        contrast_loss(z, temperature)


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (2, 8), (1, 9)])
def test_encoder_gives_unit_vectors_of_its_size_and_repeats_with_its_seed(channels, size):
    a, b, c = (small(s, channels=channels, size=size).eval() for s in (0, 0, 1))
    x = noise(3, channels, size)
    assert a.features(x).shape == (3, 16) and a(x).shape == (3, 8)
    torch.testing.assert_close(a(x).norm(dim=1), torch.ones(3))
    assert torch.equal(a(x), b(x)) and not torch.equal(a(x), c(x))
    again = Encoder(**a.options).eval()
    again.load_state_dict(a.state_dict())
    assert torch.equal(again(x), a(x))


def test_training_lowers_the_loss_repeats_with_its_seed_and_ends_in_evaluation_mode(data):
    def run(seed):
        encoder = small()
        losses = list(
            train_encoder(encoder, data.x[:500], steps=30, batch=32, generator=make_generator(seed))
        )
        return encoder, losses

    (one, a), (two, b), (_, c) = run(0), run(0), run(1)
    assert len(a) == 30 and a == b and a != c and not one.training
    assert all(
        torch.equal(p, q) for p, q in zip(one.state_dict().values(), two.state_dict().values())
    )
    assert sum(a[-5:]) < 0.9 * sum(a[:5]) and not torch.equal(
        one.features[0].weight, small().features[0].weight
    )
    steps = train_encoder(small(), data.x[:50], steps=1, batch=2)
    assert math.isfinite(next(steps)) and next(steps, None) is None


def test_twins_are_two_warps_of_the_same_images(data, monkeypatch):
    seen = Trainings(monkeypatch, contrast)
    list(train_encoder(small(), data.x[:30], steps=2, batch=6))
    pairs = seen[0]["draw"](make_generator(4))
    g = make_generator(4)
    part = unit(data.x[:30][torch.randint(30, (6,), generator=g)])
    assert torch.equal(pairs, warp(torch.cat([part, part]), g))
    one, two = pairs.chunk(2)
    assert all(not torch.allclose(a, b, atol=0.1) for a, b in zip(one, two))


def test_an_interrupted_training_stays_in_training_mode_until_its_last_step(data):
    encoder = small().eval()
    steps = train_encoder(encoder, data.x[:50], steps=2, batch=4, generator=make_generator(0))
    next(steps)
    assert encoder.training
    next(steps)
    assert not encoder.training


@pytest.mark.parametrize(
    "x, more, match",
    [
        (torch.zeros(9, 1, 28, 28), {}, "float32"),
        (torch.zeros(9, 28, 28, dtype=torch.uint8), {}, "uint8"),
        (torch.zeros(9, 1, 28, 28, dtype=torch.uint8), {"steps": 0}, "steps=0"),
        (torch.zeros(9, 1, 28, 28, dtype=torch.uint8), {"batch": 1}, "batch=1"),
    ],
)
def test_training_refuses(x, more, match):
    with pytest.raises(ValueError, match=match):
        next(train_encoder(small(), x, **more))
    with pytest.raises(ValueError, match="size=7"):
        Encoder(size=7)


def test_features_in_batches_is_the_whole(data):
    encoder, x = reference_encoder(), data.x[:53]
    whole = encoder.features(unit(x))
    for batch in (1, 7, 53, 1000):
        torch.testing.assert_close(predict(encoder.features, x, batch), whole, rtol=1e-4, atol=1e-4)
    assert not predict(small().eval().features, x).requires_grad


def test_the_shipped_encoder_does_what_its_record_says(data):
    encoder = reference_encoder()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert encoder.options == encoder.record["options"] and "no labels" in encoder.record["data"]
    known, asked = (
        F.normalize(predict(encoder.features, x), dim=1) for x in (data.x[:10000], data.x_test)
    )
    pick = torch.randperm(10000, generator=make_generator(0))[:3000]
    votes = F.one_hot(data.y[nearest(asked[pick], known, 5)[1]], 10).sum(1)
    accuracy = float((votes.argmax(1) == data.y_test[pick]).float().mean())
    assert accuracy == pytest.approx(encoder.record["test_5nn_accuracy"], abs=0.01)


@pytest.mark.cuda
def test_cuda_agrees_with_cpu(data):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = data.x_test[:200]
    torch.testing.assert_close(
        predict(reference_encoder("cuda").features, x.cuda()).cpu(),
        predict(reference_encoder().features, x),
        rtol=1e-2,
        atol=1e-2,
    )
    z = rows(20)
    assert float(contrast_loss(z.cuda())) == pytest.approx(float(contrast_loss(z)), rel=1e-4)
    losses = list(
        train_encoder(
            small().cuda(), x.cuda(), steps=20, batch=32, generator=make_generator(0, "cuda")
        )
    )
    assert sum(losses[-5:]) < sum(losses[:5])
