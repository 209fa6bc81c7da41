"""A field and its agents: what is derived about them holds,
both ways of moving them agree, knobs and masks change live"""

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from shapes import shapes

from deffi_lab.core.knobs import set_knob
from deffi_lab.core.step import make_generator
from deffi_lab.core.store import load_state, save_state
from deffi_lab.methods.contours.field import (
    FlowKnobs,
    LabelDynamics,
    consistent,
    make_field,
    march,
    march_torch,
    sample,
)
from deffi_lab.methods.contours.orbits import SCHEMES
from deffi_lab.numeric.distance import gradient, signed_distance


def circle(R: float, size: int, **how) -> tuple:
    "The exact field of a disc, not that of its pixels; centre and field"
    y, x = torch.meshgrid(*[torch.arange(float(size)) - size / 2 + 0.5] * 2, indexing="ij")
    r = (x * x + y * y).sqrt()
    return size / 2 - 0.5, make_field((r - R)[None], (torch.stack([x, y]) / r)[None], **how).f


def start(c: float, r: float, n: int = 16) -> torch.Tensor:
    a = torch.arange(n) / n * 2 * math.pi
    return (c + r * torch.stack([a.cos(), a.sin()], 1))[None]


@pytest.mark.parametrize("k,away", [(0.05, 8.0), (0.2, -6.0), (0.5, 3.0)])
def test_distance_decays_as_exp_minus_kt(k, away):
    c, f = circle(80, 256, k=k)
    end, _ = march(f, start(c, 80 + away), int(1 / k / 0.05), 0.05, "rk4")
    left = float((end - c).norm(dim=-1).mean() - 80)
    assert left == pytest.approx(away * math.exp(-1), rel=0.01)


@pytest.mark.parametrize("name", ["disc", "U"])
def test_distance_decays_on_any_shape(name):
    phi = signed_distance(shapes()[name], smooth=1.0)[None]
    g = make_generator(1)
    p = torch.rand(1, 4000, 2, generator=g) * 127
    phi0 = sample(phi[:, None], p)[0, :, 0]
    end, _ = march(make_field(phi).f, p, 100, 0.05, "rk4")
    left, near = sample(phi[:, None], end)[0, :, 0], (phi0.abs() > 2) & (phi0.abs() < 8)
    assert float((left / phi0)[near].median()) == pytest.approx(math.exp(-1), rel=0.03)


def test_euler_settles_outside_by_its_formula():
    R, k, h = 160.0, 0.1, 2.0
    c, f = circle(R, 400, k=k)
    _, path = march(f, start(c, R), 400, h, "euler", every=1)
    drift = float((path[-100:] - c).norm(dim=-1).mean() - R)
    assert drift == pytest.approx(h * h / (2 * R * k * h), rel=0.01)
    hat = R + drift  # the fixed point itself: r^2 = (r - kh φ)^2 + h^2
    assert hat**2 == pytest.approx((hat - k * h * drift) ** 2 + h**2, rel=1e-5)
    _, path = march(f, start(c, R), 400, h, "midpoint", every=1)
    assert abs(float((path[-100:] - c).norm(dim=-1).mean() - R)) < 0.1 * drift


@pytest.mark.parametrize("kh,stable", [(0.5, True), (1.0, True), (1.8, True), (2.3, False)])
def test_euler_is_stable_below_two(kh, stable):
    c, f = circle(40, 160, k=kh / 0.5)
    _, path = march(f, start(c, 43), 200, 0.5, "euler", every=1)
    away = ((path - c).norm(dim=-1) - 40).abs()
    assert (float(away[-20:].max()) < 0.5) == stable
    if kh <= 1:
        assert bool((away[1:] < away[:-1] + 0.05).all())


def test_noise_spreads_agents_as_derived():
    k, h, sigma = 0.4, 1.0, 0.3
    c, f = circle(100, 320, k=k)
    end, _ = march(f, start(c, 100, 4000), 60, h, "rk4", noise=sigma, generator=make_generator(0))
    spread = float(((end - c).norm(dim=-1) - 100).std())
    assert spread == pytest.approx(
        sigma / math.sqrt(1 - math.exp(-2 * k * h)), rel=0.05
    )  # RK4: exact decay a step
    end, _ = march(f, start(c, 100, 4000), 60, h, "euler", noise=sigma, generator=make_generator(0))
    spread = float(((end - c).norm(dim=-1) - 100).std())
    assert spread == pytest.approx(sigma / math.sqrt(k * h * (2 - k * h)), rel=0.05)


@pytest.mark.parametrize("name", list(shapes()))
def test_all_of_2000_random_starts_arrive(name):
    phi = signed_distance(shapes()[name], smooth=1.0)[None]
    p = torch.rand(1, 2000, 2, generator=make_generator(3)) * 127
    end, _ = march(make_field(phi).f, p, 400, 0.5, wall=0.2)
    assert float(sample(phi[:, None], end).abs().max()) < 1.0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wall", [0.0, 0.2])
def test_both_ways_of_moving_agree(scheme, wall):
    phi = signed_distance(torch.stack([shapes()["star"], shapes()["U"]]), smooth=1.0)
    f, p = make_field(phi).f, torch.rand(2, 300, 2, generator=make_generator(0)) * 140 - 6
    end, path = march(f, p, 40, 0.5, scheme, every=10, wall=wall)
    other, trail = march_torch(f, p, 40, 0.5, scheme, 10, [], wall)
    close = (end - other).norm(dim=-1)
    assert (
        float(close.median()) < 1e-4 and float((close < 0.05).float().mean()) > 0.99
    )  # a ridge parts some
    assert path.shape == trail.shape == (4, 2, 300, 2) and torch.equal(path[-1], end)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_moves_agents_alike():
    phi = signed_distance(shapes()["star"], smooth=1.0)[None]
    f, p = make_field(phi).f, torch.rand(1, 300, 2, generator=make_generator(0)) * 127
    end, there = march(f, p, 400, 0.5)[0], march(f.cuda(), p.cuda(), 400, 0.5)[0].cpu()
    assert float((end - there).norm(dim=-1).median()) < 0.05
    assert float(sample(phi[:, None], there).abs().max()) < 1


def test_noise_is_seeded_and_in_pieces_the_same():
    f, p = circle(30, 96)[1], torch.rand(1, 50, 2, generator=make_generator(0)) * 95
    a, b = (march(f, p, 30, 0.5, noise=0.5, generator=make_generator(4))[0] for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(
        a, march(f, p, 30, 0.5, noise=0.5, generator=make_generator(5))[0]
    )
    assert march(f, p, 7, 0.5, every=3)[1].shape == (2, 1, 50, 2)
    half = march(f, march(f, p, 15, 0.5)[0], 15, 0.5)[0]
    torch.testing.assert_close(half, march(f, p, 30, 0.5)[0])


def test_sample_is_map_coordinates_and_holds_the_border():
    grid, p = (
        torch.randn(2, 3, 11, 17, generator=make_generator(0)),
        torch.rand(2, 90, 2, generator=make_generator(1)) * 24 - 4,
    )
    got = sample(grid, p)
    for b in range(2):
        for ch in range(3):
            want = map_coordinates(
                grid[b, ch].numpy(), p[b].numpy().T[::-1], order=1, mode="nearest"
            )
            torch.testing.assert_close(got[b, :, ch], torch.from_numpy(want), atol=1e-5, rtol=0)


def test_field_by_hand():
    phi = torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 2.0]] * 3])
    field = make_field(phi, k=0.5, omega=2.0)
    torch.testing.assert_close(field.f[0, :, 1, 3], torch.tensor([-0.5, 2.0]))
    assert float(make_field(phi, k=0.5, saturation=1.0).f[0, 0, 1, 4]) == pytest.approx(
        -0.5 * math.tanh(2)
    )
    assert make_field(phi, band=1.0).f[0, 1, 1].tolist() == pytest.approx([0, 1, 1, 1, 0])


def test_consistent_takes_the_gradient_near_and_the_net_far():
    phi = signed_distance(shapes()["disc"], smooth=1.0)[None]
    other = F.normalize(torch.randn(1, 2, 128, 128, generator=make_generator(0)))
    n = consistent(phi, other, near=3.0)
    near, far = (phi.abs() < 3)[:, None].expand_as(n), (phi.abs() > 6)[:, None].expand_as(n)
    torch.testing.assert_close(n[near], F.normalize(gradient(phi), dim=1)[near])
    torch.testing.assert_close(n[far], other[far])


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda f, p: march(f, p, 5, 0.5, "heun"), "heun"),
        (lambda f, p: march(f, p, 5, 0.5, noise=1.0), "noise=1.0"),
        (lambda f, p: march(f[0], p, 5, 0.5), "shape"),
        (lambda f, p: march(f * float("nan"), p, 5, 0.5), "not finite"),
        (lambda f, p: march(f, p * float("nan"), 5, 0.5), "not finite"),
        (lambda f, p: march(f, p, -1, 0.5), "steps=-1"),
        (lambda f, p: make_field(f[:, 0] * float("nan")), "not finite"),
        (lambda f, p: make_field(f[0, 0]), "phi"),
        (lambda f, p: consistent(f[:, 0], f, near=0), "near=0"),
    ],
)
def test_bad_input_is_named(call, words):
    f = circle(20, 64)[1]
    with pytest.raises(ValueError, match=words):
        call(f, torch.rand(1, 5, 2) * 60)


def steps(method, n):
    return [s.metrics for s in islice(method, n)]


def test_live_agents_arrive_and_the_watched_one_closes():
    method = LabelDynamics(shapes()["U"], FlowKnobs(k=0.005, agents=100), seed=1)
    method.place(6.0, 64.0)
    walked = steps(method, 2400)
    assert walked[-1]["arrived"] == 1 and walked[0]["distance"] > 4 > 0.2 > walked[-1]["distance"]
    assert method.trails.shape == (100, method.trail, 2) and torch.equal(
        method.trails[:, -1], method.p
    )
    assert len(method.returns) > 2 and abs(method.returns[-1]) < 0.2 < 1 < abs(method.returns[0])
    assert method.orbit.closed and method.orbit.length == pytest.approx(
        method.orbit.period, rel=0.05
    )


def test_knobs_and_mask_change_live():
    method = LabelDynamics(shapes()["disc"], FlowKnobs(agents=50))
    steps(method, 50)
    for n in (200, 3):
        set_knob(method.knobs, "agents", n)
        steps(method, 2)
        assert len(method.p) == len(method.trails) == n
    before = method.field.f
    set_knob(method.knobs, "omega", -1.0)
    steps(method, 400)
    assert (
        not torch.equal(before, method.field.f)
        and method.orbit is not None
        and method.orbit.area < 0
    )
    method.set_mask(shapes()["two discs"])
    assert method.returns == [] and method.orbit is None
    assert steps(method, 300)[-1]["arrived"] == 1
    with pytest.raises(ValueError, match="empty"):
        method.set_mask(method.mask & False)
    assert bool(method.mask.any())
    with pytest.raises(ValueError, match="x=-3"):
        method.place(-3, 5)


def test_resumed_walk_is_the_same(tmp_path):
    def make():
        return LabelDynamics(shapes()["star"], FlowKnobs(agents=40, noise=0.2), seed=5)

    whole, first, second = make(), make(), make()
    straight = steps(whole, 90)
    begun = steps(first, 40)
    save_state(tmp_path / "s", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "s"))
    assert begun + steps(second, 50) == straight and torch.equal(second.p, whole.p)
    assert second.returns == whole.returns
    whole.reset()
    assert steps(whole, 40) == begun
