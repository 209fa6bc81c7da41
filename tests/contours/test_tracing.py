"The tracer: patches, pairs, the net at once and patch by patch, training, walking, tracing"

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from deffi_lab.core.ledger import Ledger
from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.readers import sunnybrook_npz
from deffi_lab.methods.contours import pairs as pairs_module
from deffi_lab.methods.contours.duel import TracingKnobs
from deffi_lab.methods.contours.pairs import (
    PairSampler,
    agent_velocity,
    in_frame,
    patches,
    sample_pairs,
    turned,
)
from deffi_lab.methods.contours.tracing import (
    BATCH,
    STEPS,
    UNET_STEPS,
    TracerKnobs,
    TrainTracer,
    closing,
    pair_loss,
    studied_unet,
    trace,
    tracer_field,
    train_tracer,
    walk_patchwise,
)
from deffi_lab.nets.tracer import TracerNet, scale_space
from deffi_lab.numeric.distance import gradient, signed_distance

root = Path(__file__).resolve().parents[2]
SHIPPED = root / "deffi_lab" / "assets" / "labelling.sqlite"
data = Path(os.environ.get("DEFFI_LAB_DATA") or root / ".." / "shared" / "data")


def discs(n, size=48, seed=0, noise=0.05):
    "Bright discs on a dark, uneven ground: (images [n 1 size size], masks)"
    g = make_generator(seed)
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    c, r = (
        size * (0.35 + 0.3 * torch.rand(n, 2, 1, 1, generator=g)),
        size * (0.15 + 0.1 * torch.rand(n, 1, 1, generator=g)),
    )
    mask = (x - c[:, 0]).square() + (y - c[:, 1]).square() < r.square()
    image = 0.2 + 0.6 * mask + 0.1 * x / size + noise * torch.randn(n, size, size, generator=g)
    return image[:, None], mask


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def units(n, g):
    a = 6.283 * torch.rand(n, generator=g)
    return torch.stack([a.cos(), a.sin()], 1)


@pytest.fixture(scope="module")
def learnt():
    "A small net that has learnt eight discs"
    net = TracerNet(size=19, width=8, generator=make_generator(0))
    for step in train_tracer(
        net, discs(8), steps=250, batch=128, lr=4e-3, generator=make_generator(1)
    ):
        pass
    return net, step.metrics["loss"]


# Patches
@pytest.mark.parametrize("scales", [(1,), (1, 2), (2, 3)])
@pytest.mark.parametrize("way", ["compiled", "gathered"])
def test_patches_are_those_of_map_coordinates(scales, way):
    g = make_generator(0)
    images, n, size = torch.rand(3, 1, 40, 52, generator=g), 40, 15
    levels = scale_space(images, scales)
    index, at = (
        torch.randint(0, 3, (n,), generator=g),
        torch.rand(n, 2, generator=g) * torch.tensor([51.0, 39.0]),
    )
    at[:4] = torch.tensor([[0.0, 0.0], [51.0, 39.0], [0.0, 39.0], [51.0, 0.0]])  # the corners
    heading = units(n, g)
    if way == "compiled":
        got = patches(images, index, at, size, scales, heading)
    else:
        got = pairs_module._gathered(
            levels, index, at, heading, size, torch.tensor(scales, dtype=torch.float32)
        )
    o = np.arange(size) - size // 2
    b, a = np.meshgrid(o, o, indexing="ij")
    for i in range(n):
        (x, y), (u, v) = at[i].tolist(), heading[i].tolist()
        for s, scale in enumerate(scales):
            place = [y + scale * (a * v + b * u), x + scale * (a * u - b * v)]
            want = map_coordinates(levels[index[i], s].numpy(), place, order=1, mode="nearest")
            np.testing.assert_allclose(got[i, s], want, atol=2e-5)


def test_a_heading_along_x_is_no_heading():
    g = make_generator(1)
    images, at, index = (
        torch.rand(1, 1, 30, 30, generator=g),
        29 * torch.rand(9, 2, generator=g),
        torch.zeros(9).long(),
    )
    x_axis = torch.tensor([[1.0, 0.0]]).expand(9, 2)
    assert torch.equal(patches(images, index, at), patches(images, index, at, heading=x_axis))
    whole = patches(images, index[:1], torch.tensor([[14.0, 13.0]]), 11, (1,))
    torch.testing.assert_close(whole[0, 0], images[0, 0, 8:19, 9:20])


@pytest.mark.parametrize(
    "images, index, at, words",
    [
        (torch.zeros(2, 1, 9, 9), [2], [[1.0, 1.0]], "images 0..1"),
        (torch.zeros(2, 1, 9, 9), [0, 1], [[1.0, 1.0]], "2 indices, 1 positions"),
        (torch.zeros(2, 1, 9, 9), [0], [[float("nan"), 1.0]], "not finite"),
        (torch.full((2, 1, 9, 9), float("inf")), [0], [[1.0, 1.0]], "not finite"),
        (torch.zeros(2, 1, 1, 9), [0], [[1.0, 1.0]], "at least 2 x 2"),
        (torch.zeros(2, 3, 9, 9), [0], [[1.0, 1.0]], r"\[n, 1, h, w\]"),
    ],
)
def test_bad_patches(images, index, at, words):
    with pytest.raises(ValueError, match=words):
        patches(images, torch.tensor(index), torch.tensor(at))


# The net
@pytest.mark.parametrize(
    "size, scales, shape", [(31, (1, 2), (40, 33)), (15, (1,), (17, 21)), (11, (1, 2, 3), (20, 20))]
)
def test_dense_is_patch_by_patch(size, scales, shape):
    net = TracerNet(size, scales, width=4, generator=make_generator(3))
    images = torch.rand(2, 1, *shape, generator=make_generator(4))
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    at, n = torch.stack([x, y], -1).view(-1, 2).float(), shape[0] * shape[1]
    with torch.no_grad():
        dense = net.dense(images)
        for i in range(2):
            by_patch = net(patches(images, torch.full((n,), i), at, size, scales)).T.view(3, *shape)
            torch.testing.assert_close(dense[i], by_patch, atol=1e-4, rtol=0)


def test_equal_seeds_give_equal_nets_and_options_make_it_again():
    a, b = (
        TracerNet(size=15, width=4, oriented=True, generator=make_generator(5)) for _ in range(2)
    )
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    TracerNet(**a.options).load_state_dict(a.state_dict())


# Pairs
def test_targets_are_those_of_a_disc():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    phi = torch.hypot(x - 30, y - 33) - 15
    p = sample_pairs(
        torch.zeros(1, 1, 64, 64), phi[None], None, 2000, make_generator(0), sigma=5.0, turn=1.0
    )
    d = p.at - torch.tensor([30.0, 33.0])
    r = d.norm(dim=1)
    clear = (
        (r > 4) & (p.at.amin(1) > 1) & (p.at.amax(1) < 62)
    )  # away from the centre and the border
    torch.testing.assert_close(p.target[:, 0], ((r - 15) / 5).tanh(), atol=0.02, rtol=0)
    n = in_frame(p.target[:, 1:], p.heading, back=True)
    torch.testing.assert_close(n[clear], (d / r[:, None])[clear], atol=0.03, rtol=0)
    assert float((r[(p.target[:, 0] > 0)] - 15).min()) > -0.1


def test_most_pairs_are_near_the_boundary_and_some_anywhere():
    images, masks = discs(3)
    phi = signed_distance(masks)
    near = PairSampler(images, phi, far=0.0, band=3.0).draw(4000, make_generator(0))
    wide = PairSampler(images, phi, far=1.0).draw(4000, make_generator(0))
    inside = [float((p.target[:, 0].abs() < np.tanh(6 / 4)).float().mean()) for p in (near, wide)]
    assert inside[0] > 0.8 > 0.6 > inside[1]
    assert abs(float(wide.at.mean()) - 23.5) < 1 and wide.at.min() >= 0 and wide.at.max() <= 47
    assert torch.equal(near.image_index, near.image_index.sort().values)
    assert near.image_index.bincount().min() > 1100


def test_the_leak_a_patch_exactly_along_the_flow_has_a_constant_label():
    images, masks = discs(2)
    sampler, k, omega = PairSampler(images, signed_distance(masks)), 0.2, 1.0

    def displacement(**how):
        p = sampler.draw(1000, make_generator(0), oriented=True, k=k, omega=omega, **how)
        v = agent_velocity(sampler.sigma * p.target[:, 0], p.target[:, 1:], k, omega)
        return v / v.norm(dim=1, keepdim=True)

    leak, sound = (
        displacement(heading_noise=0.0, lost=0.0),
        displacement(heading_noise=0.5, lost=0.0),
    )
    torch.testing.assert_close(leak, torch.tensor([[1.0, 0.0]]).expand(1000, 2), atol=1e-4, rtol=0)
    angle = torch.atan2(sound[:, 1], sound[:, 0])
    assert 0.45 < float(angle.std()) < 0.55
    assert float(displacement(heading_noise=0.0, lost=1.0).mean(0).norm()) < 0.1


def test_frames_turn_there_and_back():
    g = make_generator(0)
    v, h = units(50, g), units(50, g)
    torch.testing.assert_close(in_frame(in_frame(v, h), h, back=True), v)
    torch.testing.assert_close(
        in_frame(h, h), torch.tensor([[1.0, 0.0]]).expand(50, 2), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        turned(torch.tensor([[1.0, 0.0]]), torch.tensor([np.pi / 2])),
        torch.tensor([[0.0, 1.0]]),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("how", [dict(band=0.0), dict(sigma=-1.0), dict(far=1.5)])
def test_bad_samplers(how):
    with pytest.raises(ValueError, match="band"):
        PairSampler(torch.zeros(1, 1, 9, 9), torch.zeros(1, 9, 9), **how)
    with pytest.raises(ValueError, match="must agree"):
        PairSampler(torch.zeros(2, 1, 9, 9), torch.zeros(1, 9, 9))


# Training
def test_it_learns_discs_it_has_not_seen(learnt):
    net, loss = learnt
    images, masks = discs(6, seed=9)
    phi, field = tracer_field(net, images)
    assert loss < 0.2 and dice(phi < 0, masks) > 0.95
    phi_true = signed_distance(masks)
    near = phi_true.abs() < 4
    assert float((phi - phi_true)[near].abs().mean()) < 0.8
    cosine = (field.normal * torch.nn.functional.normalize(gradient(phi_true), dim=1)).sum(1)
    assert float(cosine[near].mean()) > 0.95


def test_equal_seeds_learn_equally_and_unlabelled_or_empty_is_refused():
    runs = []
    for _ in range(2):
        net = TracerNet(size=11, scales=(1,), width=4, generator=make_generator(0))
        runs.append(
            list(
                train_tracer(
                    net, discs(2), steps=12, batch=16, generator=make_generator(3), chunk=4
                )
            )
        )
    assert runs[0] == runs[1] and len(runs[0]) == 3
    blank = torch.zeros(1, 1, 9, 9), torch.zeros(1, 9, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="0 labelled"):
        next(train_tracer(net, (blank[0][:0], blank[1][:0])))
    with pytest.raises(ValueError, match="is empty"):
        next(train_tracer(net, blank))
    with pytest.raises(ValueError, match="steps=0"):
        next(train_tracer(net, discs(1), steps=0))


def test_the_lab_takes_the_steps_that_the_study_measured():
    "The method with its knobs untouched is `train_tracer`, and both are a one-cycle loop by hand"
    data, steps = discs(2), 6
    method = TrainTracer(data, seed=3, steps=steps, size=11, width=4)
    watched = [s.metrics["loss"] for s in method]
    net = TracerNet(size=11, width=4, generator=make_generator(3))
    g = make_generator(3)
    measured = [
        s.metrics["loss"] for s in train_tracer(net, data, steps=steps, generator=g, chunk=1)
    ]
    hand, g = TracerNet(size=11, width=4, generator=make_generator(3)), make_generator(3)
    sampler = PairSampler(data[0], signed_distance(data[1]), None, 11, hand.scales)
    optimiser = torch.optim.AdamW(hand.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps + 1, pct_start=0.1)
    by_hand = []
    for _ in range(steps):
        pairs = sampler.draw(256, g, turn=3.14, gain=0.15, zoom=0.1)
        loss = pair_loss(hand(pairs.patches), pairs.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        by_hand.append(float(loss.detach()))
    assert watched == measured == by_hand and len(set(watched)) == steps
    for a, b, c in zip(method.net.parameters(), net.parameters(), hand.parameters()):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_the_training_is_that_of_the_shipped_study():
    "Steps and batch of the ledger that ships are those that the lab shows"
    with Ledger(SHIPPED, "labelling", readonly=True) as ledger:
        settings = ledger.settings()
    assert settings["tracer"] == STEPS and settings["long"] == UNET_STEPS
    unet = studied_unet(discs(2, size=64))
    assert unet.batch == settings["batch"] and unet.sigma == settings["sigma"]
    assert unet.fit.steps == UNET_STEPS and TrainTracer(discs(1)).steps == STEPS
    assert TracingKnobs().batch == TracerKnobs().batch == BATCH == 256


def test_a_method_stopped_and_resumed_ends_with_the_same_numbers():
    how = dict(knobs=TracerKnobs(batch=16), size=11, width=4)
    whole, first = TrainTracer(discs(2), **how), TrainTracer(discs(2), **how)
    second = TrainTracer(discs(2), seed=4, **how)
    straight = [s.metrics["loss"] for _, s in zip(range(9), whole)]
    begun = [s.metrics["loss"] for _, s in zip(range(4), first)]
    second.load_state_dict(first.state_dict())
    assert (
        begun + [s.metrics["loss"] for _, s in zip(range(5), second)] == straight == second.losses
    )
    whole.reset()
    assert [s.metrics["loss"] for _, s in zip(range(4), whole)] == begun
    assert whole.field(discs(1)[0]).f.shape == (1, 2, 48, 48)


def test_states_of_others_are_refused():
    state = TrainTracer(discs(2), size=11, width=4).state_dict()
    with pytest.raises(ValueError, match="2 images"):
        TrainTracer(discs(3), size=11, width=4).load_state_dict(state)
    with pytest.raises(ValueError, match="another net"):
        TrainTracer(discs(2), size=15, width=4).load_state_dict(state)
    with pytest.raises(ValueError):
        TrainTracer(discs(2), knobs=TracerKnobs(batch=3))


# Walking and tracing
def test_closing_finds_the_last_turn_of_a_spiral():
    t = torch.arange(400.0) * 0.1
    r = 10 + 5 * torch.exp(-0.3 * t)
    spiral = torch.stack([20 + r * t.cos(), 20 + r * t.sin()], 1)
    line = torch.stack([t, t], 1)
    slow = torch.stack([20 + (20 - 0.3 * t) * t.cos(), 20 + (20 - 0.3 * t) * t.sin()], 1)
    traced = closing(torch.stack([spiral, line, slow], 1))
    assert [o.reason for o in traced] == ["closed", "no return", "no convergence"]
    assert traced[0].closed and not len(traced[1].points) and 60 <= len(traced[0].points) <= 64
    assert (
        abs(float((traced[0].points - 20).norm(dim=1).mean()) - 10) < 0.01
        and traced[0].residual < 0.01
    )


def test_patch_by_patch_and_dense_trace_the_same(learnt):
    net, _ = learnt
    images, masks = discs(2, seed=11)
    for image, mask in zip(images, masks):
        both = [
            trace(net, image[None], consistent=False, patchwise=patchwise, starts=16, steps=250)
            for patchwise in (False, True)
        ]
        assert dice(both[0].mask, both[1].mask) > 0.97
        assert dice(both[0].mask, mask) > 0.93
        assert trace(net, image[None], starts=24).mask.shape == mask.shape


def test_an_oriented_net_follows_the_boundary():
    net = TracerNet(size=19, width=8, oriented=True, generator=make_generator(0))
    for _ in train_tracer(
        net, discs(8), steps=300, batch=128, lr=4e-3, generator=make_generator(1)
    ):
        pass
    images, masks = discs(2, seed=12)
    for image, mask in zip(images, masks):
        assert dice(trace(net, image[None], starts=16, steps=250).mask, mask) > 0.9


def test_failures_are_counted_not_hidden(learnt):
    net, _ = learnt
    nothing = trace(net, torch.full((1, 1, 48, 48), 0.2), starts=20)
    closed = sum(o.closed for o in nothing.orbits)
    assert len(nothing.orbits) == 20 and sum(nothing.failed.values()) == 20 - closed > 10


def test_walkers_stay_in_the_image_and_steps_are_those_of_the_field(learnt):
    net, _ = learnt
    image, _ = discs(1, seed=13)
    p0 = 47 * torch.rand(30, 2, generator=make_generator(0))
    path = walk_patchwise(net, image, p0, steps=20, midpoint=False)
    assert (
        path.shape == (21, 30, 2)
        and path.min() >= 0
        and path.max() <= 47
        and torch.equal(path[0], p0)
    )
    grid = p0.round()
    walked = walk_patchwise(net, image, grid, steps=1, midpoint=False)
    field = tracer_field(net, image, consistent=False)[1].f[0]
    want = grid + field[:, grid[:, 1].long(), grid[:, 0].long()].T
    inside = (want > 0).all(1) & (want < 47).all(1)
    torch.testing.assert_close(walked[1][inside], want[inside], atol=0.05, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree(learnt):
    net, _ = learnt
    images, masks = discs(2, seed=14)
    g = make_generator(0)
    index, at, heading = torch.tensor([0, 1, 1]), 47 * torch.rand(3, 2, generator=g), units(3, g)
    near = patches(images, index, at, 19, (1, 2), heading)
    far = patches(images.cuda(), index.cuda(), at.cuda(), 19, (1, 2), heading.cuda())
    torch.testing.assert_close(far.cpu(), near, atol=1e-4, rtol=1e-4)
    cpu = tracer_field(net, images)[0]
    there = TracerNet(**net.options).cuda()
    there.load_state_dict(net.state_dict())
    torch.testing.assert_close(tracer_field(there, images.cuda())[0].cpu(), cpu, atol=0.05, rtol=0)
    fresh = TracerNet(size=11, width=4, generator=make_generator(0)).cuda()
    there = images.cuda(), masks.cuda()
    steps = list(
        train_tracer(fresh, there, steps=40, batch=64, generator=make_generator(0, "cuda"))
    )
    assert steps[-1].metrics["loss"] < steps[0].metrics["loss"]


def test_real_slices_of_other_patients():
    path = data / "sunnybrook3.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing (set DEFFI_LAB_DATA)")
    slices = sunnybrook_npz(path)
    train, test = slices.split([slices.subject[-1]])
    few = train.take(torch.arange(0, len(train), len(train) // 5)[:5])
    net = TracerNet(generator=make_generator(0))
    for _ in train_tracer(net, few, steps=150, batch=128, generator=make_generator(1)):
        pass
    assert dice(tracer_field(net, test.image)[0] < 0, test.mask) > 0.5
