"Nets trained as one: each member does what it would do alone"

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import Trainings, half_cosine, rates
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist, unit
from deffi_lab.nets import ensemble
from deffi_lab.nets.classify import Target, shift
from deffi_lab.nets.ensemble import Ensemble, train_ensemble

LOOSE = dict(rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def data():
    return mnist()


def nets(n: int = 3, channels: int = 1, size: int = 28) -> list[nn.Module]:
    made = [Target(channels, size, 10, 3, make_generator(s)) for s in range(n)]
    for s, net in enumerate(made):  # running statistics that differ
        with torch.no_grad():
            for _ in range(3):
                net(torch.rand(16, channels, size, size, generator=make_generator(9 + s)) * (s + 1))
    return made


def sets(data, n: int = 3, size: int = 40) -> tuple[list, list]:
    return (
        [data.x[100 * i : 100 * i + size] for i in range(n)],
        [data.y[100 * i : 100 * i + size] for i in range(n)],
    )


def generators(n: int = 3, device: str = "cpu") -> list:
    return [make_generator(20 + i, device) for i in range(n)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 32)])
@pytest.mark.parametrize("training", [False, True])
def test_forward_is_each_member_s_own(channels, size, training):
    alone = nets(3, channels, size)
    joint = Ensemble(alone).train(training)
    for net in alone:
        net.train(training)
    x = torch.rand(5, 3, channels, size, size, generator=make_generator(1))
    own = torch.stack([net(x[:, i]) for i, net in enumerate(alone)])
    torch.testing.assert_close(joint(x), own, **LOOSE)
    if not training:
        torch.testing.assert_close(
            joint(x[:, 0]), torch.stack([net(x[:, 0]) for net in alone]), **LOOSE
        )
        assert (own[0] - own[1]).abs().max() > 0.1  # members that differ


def test_members_come_back_as_they_went_in():
    alone = nets()
    joint = Ensemble(alone)
    for net, back in zip(alone, joint.members(), strict=True):
        assert same(net, back) and not back.training
    before = copy.deepcopy(joint.members()[0])
    joint.members()[0].head.bias.data += 1
    alone[0].head.bias.data += 1
    assert same(joint.members()[0], before)  # nothing is shared
    assert not any(name.startswith("template") for name in joint.state_dict())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_step_changes_weights_as_alone(data, size):
    alone, (x, y) = nets(size), sets(data, size)
    joint = Ensemble(alone)
    losses = list(train_ensemble(joint, x, y, generators(size), steps=1, batch=16, lr=1e-3))
    single = []
    for net, a, b, g in zip(alone, x, y, generators(size)):
        i = torch.randint(len(a), (16,), generator=g)
        net.train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
        loss = F.cross_entropy(net(shift(unit(a[i]), g, 2)), b[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        single.append(float(loss.detach()))
    assert losses[0] == pytest.approx(sum(single) / size, rel=1e-4) and not joint.training
    for net, back in zip(alone, joint.members()):
        for (name, p), q in zip(net.state_dict().items(), back.state_dict().values(), strict=True):
            if name in ("features.0.bias", "features.3.bias", "features.6.bias"):
                continue  # before a norm: no gradient
            close = (
                p - q
            ).abs() < 1e-4  # a first step of Adam is +-lr: chance where gradients are near 0
            assert close.float().mean() > 0.98, name
    assert (back.head.weight - nets(size)[-1].head.weight).abs().max() > 5e-4


def test_gradients_are_those_of_vmap(data):
    alone, (x, y) = [net.eval() for net in nets()], sets(data, size=8)
    images, labels = torch.stack([unit(a) for a in x]), torch.stack(y)
    params, buffers = stack_module_state(alone)
    base = copy.deepcopy(alone[0]).to("meta")

    def loss(p, b, images, labels):
        return F.cross_entropy(functional_call(base, (p, b), (images,)), labels)

    want = vmap(grad(loss))(params, buffers, images, labels)
    joint = Ensemble(alone).eval()
    out = joint(images.transpose(0, 1))
    (3 * F.cross_entropy(out.flatten(0, 1), labels.flatten())).backward()
    for name, p in joint.features.named_parameters():
        torch.testing.assert_close(torch.stack(p.grad.chunk(3)), want[f"features.{name}"], **LOOSE)
    torch.testing.assert_close(joint.weight.grad.transpose(1, 2), want["head.weight"], **LOOSE)
    torch.testing.assert_close(joint.bias.grad[:, 0], want["head.bias"], **LOOSE)


def test_members_are_independent(data):
    x, y = sets(data)
    other = [x[0].flip(3), *x[1:]], [y[0].flip(0), *y[1:]]
    results = []
    for a, b in ((x, y), other):
        joint = Ensemble(nets())
        list(train_ensemble(joint, a, b, generators(), steps=4, batch=16, dropout=0.2))
        results.append(joint.members())
    first, second = results
    assert not torch.equal(first[0].head.weight, second[0].head.weight)
    assert all(same(p, q) for p, q in zip(first[1:], second[1:]))


def test_dropout_is_drawn_by_the_members_generators_and_0_is_none(data):
    def run(dropout, seed=20):
        joint, (x, y) = Ensemble(nets()), sets(data)
        g = [make_generator(seed + i) for i in range(3)]
        return list(train_ensemble(joint, x, y, g, steps=3, batch=16, dropout=dropout)), [
            a.get_state() for a in g
        ]

    (a, state_a), (b, _), (none, state), (again, _) = run(0.3), run(0.3), run(0.0), run(0.0)
    assert a == b and none == again and a != none and run(0.3, 40)[0] != a
    assert not torch.equal(state_a[0], state[0])  # none draws nothing


def test_each_member_draws_as_alone_and_the_rate_is_on_half_a_cosine(data, monkeypatch):
    x, y = sets(data, size=9)
    seen = Trainings(monkeypatch, ensemble)
    list(train_ensemble(Ensemble(nets()), x, y, generators(), steps=12, batch=5, dropout=0.4))
    drawn, keep, labels = seen[0]["draw"](generators())
    for m, (a, b, g) in enumerate(zip(x, y, generators())):
        i = torch.randint(len(a), (5,), generator=g)
        assert torch.equal(drawn[:, m], shift(unit(a[i]), g, 2))
        assert torch.equal(labels[5 * m : 5 * m + 5], b[i])
        left = torch.rand(keep.shape[1:], generator=g) >= 0.4
        torch.testing.assert_close(keep[m], left / 0.6)
    assert rates(seen[0]["schedule"], 12) == pytest.approx(half_cosine(12), abs=1e-6)


def test_keep_multiplies_the_features():
    alone, x = [net.eval() for net in nets()], torch.rand(4, 1, 28, 28, generator=make_generator(0))
    joint = Ensemble(alone).eval()
    keep = (torch.rand(3, 4, joint.weight.shape[1], generator=make_generator(1)) > 0.5).float() * 2
    want = torch.stack([net.head(net.features(x) * k) for net, k in zip(alone, keep)])
    torch.testing.assert_close(joint(x, keep), want, **LOOSE)


def test_training_lowers_the_loss_and_sets_may_differ_in_size(data):
    joint = Ensemble(nets())
    x, y = [data.x[:n] for n in (10, 60, 1)], [data.y[:n] for n in (10, 60, 1)]
    losses = list(train_ensemble(joint, x, y, generators(), steps=25, batch=16))
    assert len(losses) == 25 and sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_bad_input_is_named(data):
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    with pytest.raises(ValueError, match="different architectures"):
        Ensemble([Target(width=3), Target(width=4)])
    with pytest.raises(ValueError, match="can be joined"):
        net = Target(width=3)
        net.features.append(nn.Dropout())
        Ensemble([net])
    joint, (x, y) = Ensemble(nets()), sets(data)
    for more in ({"dropout": 1.0}, {"dropout": -0.1}, {"dropout": float("nan")}):
        with pytest.raises(ValueError, match="dropout="):
            next(train_ensemble(joint, x, y, generators(), **more))
    for a, b, g in ((x[:2], y, generators()), (x, y[:2], generators()), (x, y, generators(2))):
        with pytest.raises(ValueError, match="for 3 members"):
            next(train_ensemble(joint, a, b, g))
    with pytest.raises(ValueError, match="0 images"):
        next(train_ensemble(joint, [x[0][:0], *x[1:]], [y[0][:0], *y[1:]], generators()))
    with pytest.raises(ValueError, match="40 images, 3 labels"):
        next(train_ensemble(joint, x, [y[0][:3], *y[1:]], generators()))


@pytest.mark.cuda
def test_cuda_agrees_with_cpu(data):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    joint, images = Ensemble(nets()).eval(), unit(data.x[:20])
    torch.testing.assert_close(
        copy.deepcopy(joint).cuda()(images.cuda()).cpu(), joint(images), rtol=1e-2, atol=1e-2
    )
    x, y = sets(data)
    joint = Ensemble([net.cuda() for net in nets()])
    losses = list(
        train_ensemble(
            joint, [a.cuda() for a in x], [b.cuda() for b in y], generators(3, "cuda"), steps=25
        )
    )
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and joint.members()[0].head.weight.is_cuda
