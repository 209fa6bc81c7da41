"""Growth against the equation: fronts, mass, fluid, stability,
3-D on extruded media, numba against torch, bad input"""

import math

import numpy as np
import pytest
import torch

from deffi_lab.data.brain.growth import Growth, _step_torch, faces, first_cells, grow, stable_step


def medium(n=3, sides=(40, 48), seed=0):
    g = torch.Generator().manual_seed(seed)
    D = torch.rand(n, *sides, generator=g) * 0.6 + 0.05
    D[..., sides[-2] // 4 : sides[-2] // 2, 3 : sides[-1] // 2] = 0
    at = torch.tensor([[0.55, 0.5, 0.6], [0.75, 0.7, 0.3], [0.4, 0.3, 0.75]])[
        :n, -len(sides) :
    ] * torch.tensor(sides)
    return D, first_cells(at, sides, 1.0) * (D > 0)


def edge(c):
    j = int((c > 0.5).nonzero().max())
    return j + float((c[j] - 0.5) / (c[j] - c[j + 1]))


@pytest.mark.parametrize(
    ("D", "rho", "h", "near"),
    [(0.4, 0.05, 0.5, 0.02), (1.0, 0.05, 1.0, 0.025), (0.4, 0.05, 1.0, 0.04)],
)
@pytest.mark.parametrize("axis", [1, 2])
def test_front_speed(D, rho, h, near, axis):
    "Bramson: 2 sqrt(rho D) less 3/2 sqrt(D / rho) / t; `near` is what the grid adds"
    n = round(260 / h)
    strip = torch.zeros(1, 3, n)
    strip[..., : round(5 / h)] = 1
    if axis == 1:
        strip = strip.mT.contiguous()
    g = Growth(strip, torch.full_like(strip, D), rho, h)
    at = [h * edge(g.advance(t)[0].select(2 - axis, 1)) for t in (240.0, 40.0)]
    speed, ideal = (at[1] - at[0]) / 40, 2 * math.sqrt(rho * D)
    assert speed == pytest.approx(
        ideal - 1.5 * math.sqrt(D / rho) * math.log(280 / 240) / 40, rel=near
    )
    assert 0.9 * ideal < speed < ideal


def test_front_of_a_disc_is_round_and_later_nears_the_speed():
    D = torch.full((1, 241, 241), 0.4)
    g = Growth(first_cells(torch.tensor([[120.0, 120.0]]), (241, 241), 1.0), D, 0.06, 1.0)
    c = g.advance(240.0)[0]
    across, along = edge(c[120, 120:]), edge(c[120:, 120])
    slanted = math.sqrt(2) * edge(c.diagonal()[120:])
    assert across == pytest.approx(along, abs=1e-3) and slanted == pytest.approx(across, rel=0.02)
    speed = edge(g.advance(60.0)[0][120, 120:]) - across
    assert 0.85 < speed / 60 / (2 * math.sqrt(0.4 * 0.06)) < 1


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("sides", [(40, 48), (14, 20, 26)])
def test_mass_fluid_and_range(compile, sides):
    D, start = medium(sides=sides)
    days = torch.tensor([20.0, 50.0, 80.0])
    moved = grow(start, D, 0.0, days, 1.0, compile=compile)
    assert torch.allclose(moved.flatten(1).sum(1), start.flatten(1).sum(1), rtol=2e-5)
    assert float((moved - start).abs().max()) > 0.1  # and it did move
    grown = grow(start, D, 0.06, days, 1.0, compile=compile)
    assert float(grown[D == 0].max()) == 0 and float(grown.min()) >= 0 and float(grown.max()) <= 1
    assert (grown.flatten(1).sum(1) > 1.5 * start.flatten(1).sum(1)).all()


def test_nothing_crosses_a_wall_of_fluid_one_voxel_thin():
    D = torch.full((1, 30, 30), 0.5)
    D[:, :, 15] = 0
    c = grow(first_cells(torch.tensor([[15.0, 7.0]]), (30, 30), 1.0) * (D > 0), D, 0.08, 300.0, 1.0)
    assert float(c[0, 2:-2, :14].min()) > 0.9
    assert float(c[0, :, 15:].abs().max()) < 1e-3 * float(c.max())


@pytest.mark.parametrize("compile", [True, False])
def test_a_mask_keeps_cells_out(compile):
    D, start = medium()
    mask = torch.ones_like(D, dtype=torch.bool)
    mask[:, 25:] = False
    c = grow(start, D, 0.06, 60.0, 1.0, mask=mask, compile=compile)
    assert float(c[~mask].max()) == 0 and float(c[mask].max()) > 0.5


def test_stable_at_the_bound_and_not_beyond():
    rho, h = 0.05, 1.0
    D = torch.full((1, 32, 32), 0.7)
    rough = (torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    bound = stable_step(D, rho, h)
    assert bound == pytest.approx(1 / (4 * 0.7 + 0.05))

    def steps(dt, k=200):
        c, faced = rough.clone(), faces(D)
        low, high = 0.0, 0.0
        for _ in range(k):
            c = _step_torch(c, [f * dt / h**2 for f in faced], torch.tensor(dt * rho))
            low, high = min(low, float(c.min())), max(high, float(c.max()))
        return low, high

    low, high = steps(bound)
    assert low >= -1e-6 and high <= 1 + 1e-6
    low, high = steps(2.2 * bound)
    assert low < -0.1 or high > 1.1 or not math.isfinite(high)
    assert stable_step(D * 0, 0.0, 1.0) == math.inf


def test_volume_agrees_with_slice_on_an_extruded_medium():
    D, start = medium()
    wide = (3, 9, 40, 48)
    flat, deep = (
        Growth(start, D, 0.05, 1.0),
        Growth(
            start[:, None].expand(wide).contiguous(),
            D[:, None].expand(wide).contiguous(),
            0.05,
            1.0,
        ),
    )
    flat.longest = deep.longest.clone()  # the same steps
    a, b = flat.advance(60.0), deep.advance(60.0)
    assert torch.allclose(b, a[:, None].expand(wide), atol=2e-6)


@pytest.mark.parametrize("sides", [(40, 48), (41, 33), (2, 3), (12, 20, 34), (2, 2, 2)])
def test_numba_and_torch_agree(sides):
    g = torch.Generator().manual_seed(3)
    D, c = torch.rand(4, *sides, generator=g), torch.rand(4, *sides, generator=g)
    D[:2][torch.rand(2, *sides, generator=g) < 0.4] = 0
    rho, days = torch.tensor([0.02, 0.05, 0.0, 0.06]), torch.tensor([40.0, 0.0, 25.0, 90.0])
    a, b = (grow(c, D, rho, days, 1.3, compile=k) for k in (True, False))
    assert torch.allclose(a, b, atol=2e-6)
    assert torch.equal(a[1], c[1] * (D[1] > 0))  # no time, no change
    alone = torch.cat([grow(c[i : i + 1], D[i : i + 1], rho[i], days[i], 1.3) for i in range(4)])
    assert torch.equal(a, alone)  # a case does not feel its batch


def test_a_loop_written_by_hand():
    D, c = medium(1, (12, 14))
    dt, k, rho = 0.3, 7, 0.05
    d, want = D[0].double().numpy(), c[0].double().numpy()
    for _ in range(k):
        new = want + dt * rho * want * (1 - want)
        for i in range(12):
            for j in range(14):
                for y, x in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if 0 <= y < 12 and 0 <= x < 14 and d[i, j] + d[y, x] > 0:
                        new[i, j] += (
                            dt
                            * 2
                            * d[i, j]
                            * d[y, x]
                            / (d[i, j] + d[y, x])
                            * (want[y, x] - want[i, j])
                        )
        want = new
    g = Growth(c, D, rho, 1.0)
    g.longest = torch.tensor([dt])
    assert np.allclose(g.advance(dt * k)[0].numpy(), want, atol=1e-6)


def test_advancing_in_parts_counts_days():
    D, start = medium()
    g = Growth(start, D, 0.05, 1.0)
    for _ in range(4):
        g.advance(torch.tensor([5.0, 10.0, 15.0]))
    assert torch.allclose(g.days, torch.tensor([20.0, 40.0, 60.0]))
    assert torch.allclose(
        g.c, grow(start, D, 0.05, torch.tensor([20.0, 40.0, 60.0]), 1.0), atol=0.01
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(c=torch.zeros(2, 8, 9)), "sides"),
        (dict(c=torch.full((2, 8, 8), 2.0)), "share"),
        (dict(c=torch.full((2, 8, 8), torch.nan)), "share"),
        (dict(D=torch.full((2, 8, 8), -1.0)), "D from -1"),
        (dict(D=torch.full((2, 8, 8), math.inf)), "finite"),
        (dict(rho=-0.1), "rho"),
        (dict(rho=torch.ones(3)), "rho"),
        (dict(spacing=0.0), "spacing"),
        (dict(time=-1.0), "days"),
        (dict(time=math.nan), "days"),
        (dict(c=torch.zeros(2, 8), D=torch.zeros(2, 8)), "n h w"),
    ],
)
def test_bad_input(change, says):
    whole = (
        dict(c=torch.zeros(2, 8, 8), D=torch.ones(2, 8, 8), rho=0.05, time=3.0, spacing=1.0)
        | change
    )
    with pytest.raises(ValueError, match=says):
        grow(whole["c"], whole["D"], whole["rho"], whole["time"], whole["spacing"])
    if "spacing" in change:
        with pytest.raises(ValueError):
            stable_step(whole["D"], 0.05, 0.0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sides", [(40, 48), (12, 20, 34)])
def test_devices_agree(sides):
    D, start = medium(sides=sides)
    days = torch.tensor([20.0, 50.0, 80.0])
    there = grow(start.cuda(), D.cuda(), 0.05, days.cuda(), 1.0)
    assert there.is_cuda and torch.allclose(there.cpu(), grow(start, D, 0.05, days, 1.0), atol=5e-6)
