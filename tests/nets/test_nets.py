"VAE and classifier: losses by hand, weights that ship, batches, bad input"

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Trainings, half_cosine, rates

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist, unit
from deffi_lab.nets import classify
from deffi_lab.nets.classify import SmallCNN, accuracy, predict, shift, train_classifier
from deffi_lab.nets.vae import VAE, elbo, latents, reference_vae, whiten

KINDS = [("mlp", 1, 28), ("conv", 1, 28), ("mlp", 3, 32), ("conv", 3, 32)]


@pytest.fixture(scope="module")
def data():
    return mnist()


def images(n: int, channels: int, size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), generator=make_generator(1), dtype=torch.uint8
    )


@pytest.mark.parametrize("kind, channels, size", KINDS)
def test_vae_shapes_and_seed(kind, channels, size):
    nets = [VAE(5, kind, channels, size, generator=make_generator(s)) for s in (0, 0, 1)]
    x = unit(images(7, channels, size))
    outs = [net(x, make_generator(2)) for net in nets]
    assert outs[0][0].shape == x.shape and outs[0][1].shape == outs[0][2].shape == (7, 5)
    assert all(torch.equal(a, b) for a, b in zip(outs[0], outs[1])) and not torch.equal(
        outs[0][1], outs[2][1]
    )
    pixels = nets[0].decode(outs[0][1])
    assert pixels.shape == x.shape and 0 <= pixels.min() and pixels.max() <= 1
    again = VAE(**nets[0].options)
    again.load_state_dict(nets[0].state_dict())
    assert torch.equal(again.encode(x)[0], outs[0][1])


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_elbo_is_the_formula_and_its_gradient_is_autograd_s(beta):
    g = make_generator(0)
    logits, x = torch.randn(6, 1, 4, 4, generator=g) * 4, torch.rand(6, 1, 4, 4, generator=g)
    mu, logvar = torch.randn(6, 3, generator=g), torch.randn(6, 3, generator=g)
    leaves = [t.clone().requires_grad_() for t in (logits, x, mu, logvar)]
    loss, recon, kl = elbo(*leaves, beta=beta)
    p = logits.double().sigmoid()
    by_hand = -(x * p.log() + (1 - x) * (1 - p).log()).sum() / 6
    normal = torch.distributions.Normal
    kl_by_torch = (
        torch.distributions.kl_divergence(normal(mu, (logvar / 2).exp()), normal(0.0, 1.0)).sum()
        / 6
    )
    assert float(recon.detach()) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(kl.detach()) == pytest.approx(float(kl_by_torch), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(by_hand + beta * kl_by_torch), rel=1e-5)
    plain = [t.clone().requires_grad_() for t in (logits, x, mu, logvar)]
    (
        F.binary_cross_entropy_with_logits(plain[0], plain[1], reduction="sum") / 6
        + beta * 0.5 * (plain[2] ** 2 + plain[3].exp() - 1 - plain[3]).sum() / 6
    ).backward()
    loss.backward()
    for a, b in zip(leaves, plain):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_elbo_stays_finite_at_extreme_logits():
    logits = torch.tensor([[[[-300.0, 300.0]]]], requires_grad=True)
    loss, _, _ = elbo(logits, torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, 2), torch.zeros(1, 2))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.isfinite(logits.grad).all()
    wrong, _, _ = elbo(
        logits.detach(), torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 2), torch.zeros(1, 2)
    )
    assert float(wrong) == pytest.approx(600)


@pytest.mark.parametrize("kind, channels, size", KINDS)
def test_encoding_in_batches_equals_one_by_one(kind, channels, size):
    vae, x = VAE(4, kind, channels, size, generator=make_generator(0)), images(11, channels, size)
    one = torch.cat([vae.encode(unit(x[i : i + 1]))[0] for i in range(11)])
    for batch in (1, 4, 11, 100):
        torch.testing.assert_close(latents(vae, x, batch), one, rtol=1e-4, atol=1e-6)
    assert latents(vae, x[:0]).shape == (0, 4) and not latents(vae, x).requires_grad


@pytest.mark.parametrize("latent, bound, votes", [(2, 140, 0.77), (16, 108, 0.90)])
def test_shipped_weights_are_as_recorded(data, latent, bound, votes):
    vae = reference_vae(latent)
    assert vae.record["test"]["loss"] < bound and vae.record["test_5nn_accuracy"] > votes
    g, losses = make_generator(0), []
    with torch.no_grad():
        for part in data.x_test.split(1000):
            x = unit(part)
            logits, mu, logvar = vae(x, g)
            losses.append(float(elbo(logits, x, mu, logvar)[0]))
    assert sum(losses) / 10 == pytest.approx(vae.record["test"]["loss"], abs=0.02)
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    w = whiten(latents(vae, data.x_test))
    vectors, y = w.apply(latents(vae, data.x_test)), data.y_test
    near = torch.cdist(vectors[:1000], vectors[1000:]).topk(5, largest=False).indices
    assert float((y[1000:][near].mode(1).values == y[:1000]).float().mean()) > votes - 0.05


def test_whitening():
    z = torch.randn(500, 4, generator=make_generator(0)) * torch.tensor([1.0, 3.0, 0.01, 0.5]) + 2
    w = whiten(z)
    assert w.alive.tolist() == [True, True, False, True]
    white = w.apply(z)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.std(0), torch.ones(3))
    back = w.invert(white)
    torch.testing.assert_close(back[:, w.alive], z[:, w.alive], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back[:, 2], z[:, 2].mean().expand(500))
    leaf = white.clone().requires_grad_()  # gradients pass, as a walk needs
    w.invert(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, w.scale[w.alive].expand(500, 3))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: VAE(0), "latent=0"),
        (lambda: VAE(kind="unet"), "kind='unet'"),
        (lambda: VAE(size=30), "size=30"),
        (lambda: VAE(2).encode(torch.rand(2, 1, 32, 32)), "this VAE takes"),
        (lambda: VAE(2).encode(images(2, 1, 28)), "uint8"),
        (lambda: VAE(2).decode(torch.rand(2, 3)), r"\[n, 2\]"),
        (lambda: reference_vae(3), "latent=3"),
        (lambda: latents(VAE(2), torch.rand(2, 1, 28, 28)), "uint8"),
        (lambda: latents(VAE(2), images(2, 1, 28), 0), "batch=0"),
        (lambda: whiten(torch.rand(1, 2)), "n >= 2"),
        (lambda: whiten(torch.full((3, 2), math.nan)), "NaN"),
        (lambda: whiten(torch.zeros(5, 2)), "dead"),
        (
            lambda: elbo(
                torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5), torch.rand(2, 1), torch.rand(2, 1)
            ),
            "must agree",
        ),
        (lambda: SmallCNN(size=4), "size=4"),
        (lambda: SmallCNN(n_classes=1), "n_classes=1"),
        (lambda: shift(images(2, 1, 8), pixels=-1), "pixels=-1"),
        (
            lambda: next(train_classifier(SmallCNN(), images(3, 1, 28), torch.tensor([0, 1]))),
            "3 images, 2 labels",
        ),
        (
            lambda: next(train_classifier(SmallCNN(), images(2, 1, 28), torch.tensor([0, -1]))),
            "label -1",
        ),
        (
            lambda: next(
                train_classifier(SmallCNN(), images(1, 1, 28), torch.tensor([0]), steps=0)
            ),
            "steps=0",
        ),
        (lambda: predict(SmallCNN(), torch.rand(2, 1, 28, 28)), "uint8"),
        (lambda: accuracy(SmallCNN(), images(2, 1, 28), torch.tensor([0])), "2 images, 1 labels"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32), (1, 9)])
def test_classifier_shapes(channels, size):
    net = SmallCNN(channels, size, 7, generator=make_generator(0))
    x = images(5, channels, size)
    torch.testing.assert_close(
        predict(net, x, batch=2), net(unit(x)).detach(), rtol=1e-4, atol=1e-5
    )
    assert predict(net, x).shape == (5, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_moves_whole_images(channels):
    x = images(300, channels, 9)
    out = shift(x, make_generator(0), 2)
    padded, seen = F.pad(x, (2, 2, 2, 2)), set()
    for a, b in zip(padded, out):
        result = [
            (i, j) for i in range(5) for j in range(5) if torch.equal(a[:, i : i + 9, j : j + 9], b)
        ]
        assert len(result) == 1
        seen |= set(result)
    assert len(seen) == 25  # every offset comes up, corners too
    assert torch.equal(shift(x, make_generator(0), 2), out) and shift(x, pixels=0) is x


def test_training_is_repeatable_and_learns(data):
    x, y = data.x[:300], data.y[:300]

    def run() -> tuple[list[float], SmallCNN]:
        net = SmallCNN(generator=make_generator(0))
        return list(train_classifier(net, x, y, steps=105, generator=make_generator(1))), net

    (losses, net), (again, _) = run(), run()
    assert losses == again and len(losses) == 11 and losses[-1] < losses[0] / 3
    assert accuracy(net, data.x_test, data.y_test) > 0.75 and not net.training
    assert accuracy(net, x, y) == float((predict(net, x).argmax(1) == y).float().mean())


def test_one_step_is_adamw_on_cross_entropy(data):
    net = SmallCNN(generator=make_generator(0))
    hand = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(hand.parameters(), lr=2e-3, weight_decay=1e-4)
    i = torch.randint(0, 100, (64,), generator=make_generator(3))
    loss = F.cross_entropy(hand(unit(data.x[:100][i])), data.y[:100][i])
    loss.backward()
    optimiser.step()
    result = next(
        train_classifier(
            net, data.x[:100], data.y[:100], steps=1, generator=make_generator(3), pixels=0
        )
    )
    assert result == pytest.approx(float(loss.detach()), rel=1e-5)
    for a, b in zip(net.parameters(), hand.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_classifier_learns_shifted_images_at_a_rate_on_half_a_cosine(data, monkeypatch):
    seen = Trainings(monkeypatch, classify)
    list(train_classifier(SmallCNN(), data.x[:9], data.y[:9], steps=15, batch=7, pixels=2))
    drawn, y = seen[0]["draw"](make_generator(3))
    g = make_generator(3)
    i = torch.randint(0, 9, (7,), generator=g)
    assert torch.equal(drawn, unit(shift(data.x[i], g, 2))) and torch.equal(y, data.y[i])
    assert not torch.equal(drawn, unit(data.x[i]))
    assert rates(seen[0]["schedule"], 15) == pytest.approx(half_cosine(15), abs=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_what_is_decoded_is_the_mean_and_noise_times_its_own_deviation(kind):
    vae = VAE(3, kind, generator=make_generator(0))
    x = unit(images(400, 1, 28)[:1]).expand(400, -1, -1, -1)
    seen = []
    vae.decode_logits = lambda z: (seen.append(z), z.new_zeros(len(z), 1, 28, 28))[1]
    _, mu, logvar = vae(x, make_generator(2))
    noise = (seen[0] - mu) / (0.5 * logvar).exp()
    torch.testing.assert_close(noise, torch.randn(400, 3, generator=make_generator(2)))
