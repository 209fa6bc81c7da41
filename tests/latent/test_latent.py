"Training a VAE: it learns, it resumes to the same bits, it says what does not fit"

import json
from itertools import islice

import pytest
import torch

from deffi_lab.core.knobs import knob_specs, set_knob
from deffi_lab.core.pool import Pool
from deffi_lab.core.step import bf16_is_fast
from deffi_lab.core.store import load_state, save_state
from deffi_lab.data.images import mnist, unit
from deffi_lab.methods.latent.train import LatentKnobs, TrainVAE
from deffi_lab.nets.vae import VAE, elbo


@pytest.fixture(scope="module")
def x():
    return mnist().x[:4000]


def losses(method: TrainVAE, n: int) -> list[float]:
    return [s.metrics["loss"] for s in islice(method, n)]


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("bf16", [False, True])
def test_loss_falls(x, kind, bf16):
    measured = losses(TrainVAE(x, kind=kind, bf16=bf16, seed=1), 60)
    assert measured[0] == pytest.approx(28 * 28 * 0.693, rel=0.02) and sum(measured[-5:]) / 5 < 240
    assert all(isinstance(v, float) for v in measured)


def test_bfloat16_learns_as_float32_does(x):
    ends = [sum(losses(TrainVAE(x, bf16=b, seed=2), 80)[-10:]) / 10 for b in (False, True)]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_a_step_is_adam_on_the_elbo(x):
    method = TrainVAE(x[:64], knobs=LatentKnobs(lr=1e-3, batch=64, beta=0.5), bf16=False, seed=3)
    hand = VAE(**method.vae.options)
    hand.load_state_dict(method.vae.state_dict())
    g = torch.Generator().manual_seed(3)
    x01 = unit(x[:64][torch.randperm(64, generator=g)])
    loss, recon, kl = elbo(*(lambda o: (o[0], x01, o[1], o[2]))(hand(x01, g)), beta=0.5)
    loss.backward()
    torch.optim.Adam(hand.parameters(), lr=1e-3).step()
    step = next(iter(method))
    assert (step.index, step.phase) == (1, "train")
    assert step.metrics == pytest.approx(
        dict(loss=loss.item(), recon=recon.item(), kl=kl.item()), rel=1e-5
    )
    for a, b in zip(method.vae.parameters(), hand.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("stop", [3, 5, 10])
def test_resumed_run_is_bit_equal(x, kind, stop, tmp_path):
    def make(seed):
        return TrainVAE(x[:300], kind=kind, knobs=LatentKnobs(batch=64), seed=seed)

    whole, first, second = make(0), make(0), make(9)
    straight = losses(whole, 13)
    begun = losses(first, stop)
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    assert begun + losses(second, 13 - stop) == straight
    assert second.index == 13 and second.epoch == whole.epoch
    for a, b in zip(whole.vae.parameters(), second.vae.parameters()):
        assert torch.equal(a, b)


def test_a_state_does_not_change_behind_its_back(x, tmp_path):
    method = TrainVAE(x[:300], seed=0)
    losses(method, 3)
    save_state(tmp_path / "a", method.state_dict())
    expected = losses(method, 3)
    other = TrainVAE(x[:300], seed=1)
    other.load_state_dict(load_state(tmp_path / "a"))
    assert losses(other, 3) == expected


def test_reset_starts_the_same_again(x):
    method = TrainVAE(x[:300], seed=4)
    first = losses(method, 4)
    method.reset()
    assert method.index == 0 and method.epoch == 0 and losses(method, 4) == first
    assert losses(TrainVAE(x[:300], seed=5), 4) != first


def test_epochs_see_every_image_once(x):
    method = TrainVAE(x[:300], epochs=2, knobs=LatentKnobs(batch=128))
    at = [(method.epoch, method.at_boundary) for _ in method]
    assert [b for _, b in at] == [False, False, True] * 2 and at[2][0] == 1 and at[-1][0] == 2
    assert sorted(method.order.tolist()) == list(range(300)) and not list(method)


def test_live_knobs_act_on_the_next_step(x):
    method = TrainVAE(x[:1000], bf16=False, knobs=LatentKnobs(batch=100))
    losses(method, 2)
    before = [p.clone() for p in method.vae.parameters()]
    set_knob(method.knobs, "lr", 1e-5)
    losses(method, 1)
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(before, method.vae.parameters()))
        < 2e-4
    )
    set_knob(method.knobs, "beta", 0.0)
    set_knob(method.knobs, "batch", 50)
    step = next(iter(method))
    assert step.metrics["loss"] == step.metrics["recon"] and method.cursor == 350
    assert [s.name for s in knob_specs(LatentKnobs)] == ["lr", "beta", "batch"]
    with pytest.raises(ValueError, match="lr=5"):
        set_knob(method.knobs, "lr", 5)


def test_starts_from_given_weights_without_touching_them(x):
    vae = VAE(3, "conv")
    before = [p.clone() for p in vae.parameters()]
    method = TrainVAE(x[:300], vae=vae)
    assert torch.equal(method.vae.encode(unit(x[:5]))[0], vae.encode(unit(x[:5]))[0])
    losses(method, 2)
    assert (
        all(torch.equal(a, b) for a, b in zip(before, vae.parameters()))
        and method.vae.options == vae.options
    )


def test_takes_a_pool_and_colour():
    x = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    method = TrainVAE(Pool(x, lambda i: i % 2, 2), kind="conv", latent=4)
    assert len(losses(method, 3)) == 3 and method.vae.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda x: TrainVAE(x / 255), "uint8"),
        (lambda x: TrainVAE(x[:0]), "n >= 1"),
        (lambda x: TrainVAE(x[:, :, :20]), "size"),
        (lambda x: TrainVAE(x, epochs=0), "epochs=0"),
        (lambda x: TrainVAE(x, vae=VAE(size=32)), "must agree"),
        (lambda x: TrainVAE(x, knobs=LatentKnobs(lr=9.0)), "lr=9"),
    ],
)
def test_bad_input_is_named(x, make, words):
    with pytest.raises(ValueError, match=words):
        make(x[:20])


def test_a_foreign_state_is_refused(x):
    a = TrainVAE(x[:100])
    losses(a, 1)
    with pytest.raises(ValueError, match="100 images, this set has 50"):
        TrainVAE(x[:50]).load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="another network"):
        TrainVAE(x[:100], latent=3).load_state_dict(a.state_dict())


def test_what_is_shipped_says_how_it_was_made():
    from importlib.resources import files

    from safetensors import safe_open

    for latent in (2, 16):
        path = files("deffi_lab") / "assets" / f"vae_mnist_{latent}.safetensors"
        with safe_open(str(path), "pt") as f:
            record = json.loads(f.metadata()["record"])
        assert (
            path.stat().st_size < 1.5e6
            and record["command"] == f"python tools/reference_weights.py {latent}"
        )


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_learns_and_resumes_on_a_gpu(x, kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def make(seed):
        return TrainVAE(x.cuda(), kind=kind, seed=seed)

    first, second = make(0), make(1)
    measured = losses(first, 40)
    assert measured[-1] < 280 and next(first.vae.parameters()).is_cuda
    second.load_state_dict(first.state_dict())
    assert losses(second, 5) == pytest.approx(losses(first, 5), rel=1e-3)
    assert isinstance(bf16_is_fast("cuda"), bool)
