"Orbits: period, multiplier and return map as derived; fields become masks again; failures say why"

import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path
from shapes import shapes
from test_labelling import circle

from deffi_lab.core.step import make_generator
from deffi_lab.methods.contours.field import make_field
from deffi_lab.methods.contours.orbits import (
    REASONS,
    closed_orbit,
    disc_return_map,
    orbits,
    outline,
    random_starts,
    return_map,
    union_mask,
)
from deffi_lab.numeric.distance import signed_distance
from deffi_lab.numeric.polygon import fill_polygon


def dice(a, b):
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def field(mask, **how):
    return make_field(signed_distance(mask, smooth=how.pop("smooth", 1.0))[None], **how).f[0]


@pytest.mark.parametrize("name", list(shapes()))
def test_field_to_orbit_to_mask(name):
    mask = shapes()[name]
    traced = outline(field(mask), n_starts=200, seed=2)
    assert dice(traced.mask, mask) >= 0.99 and traced.failed == {}
    parts = {"two discs": (2, 0), "ring": (1, 1)}.get(name, (1, 0))
    assert (sum(not c.hole for c in traced.contours), sum(c.hole for c in traced.contours)) == parts


@pytest.mark.parametrize("omega", [1.0, -1.0, 0.3])
def test_speed_and_sense_do_not_matter(omega):
    mask = shapes()["ring"]
    assert dice(outline(field(mask, omega=omega), n_starts=60).mask, mask) >= 0.99


@pytest.mark.parametrize("scheme,h", [("euler", 0.5), ("midpoint", 0.5), ("rk4", 1.0)])
def test_2000_starts_all_close(scheme, h):
    mask = shapes()["U"]
    traced = outline(field(mask), n_starts=2000, scheme=scheme, h=h)
    assert traced.failed == {} and len(traced.contours) == 1 and traced.contours[0].count == 2000
    assert dice(traced.mask, mask) > 0.99


@pytest.mark.parametrize("R,k", [(60.0, 0.004), (120.0, 0.002), (120.0, 0.0005)])
def test_multiplier_is_exp_minus_k_length(R, k):
    c, f = circle(R, 300, k=k)
    orbit = closed_orbit(
        f[0], torch.tensor([c + R + 5, c]), tol=5e-3, reach=20.0, transient=0, limit=5e4
    )
    assert orbit.closed and orbit.multiplier == pytest.approx(
        math.exp(-k * 2 * math.pi * R), rel=0.03
    )
    assert orbit.period == pytest.approx(2 * math.pi * R, rel=1e-3)
    away = float(((orbit.points - c).norm(dim=1) - R).abs().max())
    assert away <= orbit.residual + 1 / (8 * R) + 1e-3  # what bilinear interpolation bends


@pytest.mark.parametrize("name,top", [("ellipse", 160.0), ("square", 188.0)])
def test_multiplier_holds_on_another_shape(name, top):
    mask, k = shapes(256)[name], 0.002
    orbit = closed_orbit(field(mask), torch.tensor([128.0, top]))
    place = orbit.points[((orbit.points - torch.tensor([128.0, top])).norm(dim=1)).argmin()]
    low, high = return_map(
        field(mask, k=k), place, torch.tensor([0.0, 1.0]), torch.tensor([-6.0, 6.0])
    )
    assert float(high - low) / 12 == pytest.approx(math.exp(-k * orbit.length), rel=0.03)


@pytest.mark.parametrize("omega", [1.0, -1.0])
def test_return_map_to_four_digits(omega):
    R, k = 200.0, 0.001
    c, f = circle(R, 600, k=k, omega=omega)
    s = torch.tensor([-90.0, -50.0, -20.0, 10.0, 40.0, 80.0])
    got = return_map(f[0], torch.tensor([c + R, c]), torch.tensor([1.0, 0.0]), s, h=0.5, turn=omega)
    torch.testing.assert_close(got, disc_return_map(s, R, k, omega), rtol=1e-4, atol=5e-4)


def test_closed_form_by_integration():
    R, k, phi = 20.0, 0.01, 7.0
    n = 20000
    dt = 2 * math.pi / n
    for _ in range(n):  # dφ/dθ = -k φ (R + φ) / ω
        mid = phi - dt / 2 * k * phi * (R + phi)
        phi -= dt * k * mid * (R + mid)
    assert disc_return_map(7.0, R, k, 1.0) == pytest.approx(phi, rel=1e-5)
    with pytest.raises(ValueError, match="R=0"):
        disc_return_map(1.0, 0, k, 1.0)


def test_what_is_left_is_bounded():
    c, f = circle(60, 192, k=0.002)
    loose, fine = (
        closed_orbit(f[0], torch.tensor([c + 75, c]), tol=t, reach=20.0, transient=0)
        for t in (0.5, 1e-4)
    )
    gap = abs(float((loose.points - c).norm(dim=1)[0] - (fine.points - c).norm(dim=1).mean()))
    assert 0.01 < gap <= 1.05 * loose.residual / fine.multiplier + 0.01 and loose.residual < 0.5


def test_reasons_are_counted():
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    sink, wind = torch.stack([-x, -y]) * 0.1, torch.stack([torch.ones(64, 64), torch.zeros(64, 64)])
    for f, why in ((sink, "came to rest"), (wind, "left the image")):
        traced = outline(f, n_starts=20)
        assert traced.failed == {why: 20} and not traced.mask.any() and traced.contours == []
    repelled = outline(
        -field(shapes(64)["disc"]), n_starts=20
    )  # some may circle on the disc's centre
    assert sum(repelled.failed.values()) + sum(c.count for c in repelled.contours) == 20
    assert set(repelled.failed) <= set(REASONS[1:]) and sum(repelled.failed.values()) >= 10
    assert repelled.mask.sum() <= 9, "the boundary repels: nobody may trace it"
    strict = orbits(
        field(shapes()["U"], k=0.0005),
        torch.tensor([[20.0, 64.0]]),
        tol=1e-6,
        transient=0,
        limit=1500.0,
    )
    assert strict[0].reason in ("no convergence", "no return") and not len(strict[0].points)


def test_border_one_pixel_and_small_images():
    one = torch.zeros(32, 32, dtype=torch.bool)
    one[12, 20] = True
    traced = outline(field(one, smooth=0.0), n_starts=50, h=0.1)
    assert int(traced.mask.sum()) <= 9 and (traced.failed or bool(traced.mask[12, 20]))
    corner = torch.zeros(48, 48, dtype=torch.bool)
    corner[:20, :24] = True
    leaving = outline(field(corner), n_starts=50)  # its boundary is not in the image
    assert leaving.failed and not leaving.mask.any()
    around = outline(field(torch.nn.functional.pad(corner, (6, 6, 6, 6))), n_starts=50).mask[
        6:-6, 6:-6
    ]
    assert dice(around, corner) > 0.98


@pytest.mark.parametrize("seed", range(5))
def test_fill_is_matplotlibs(seed):
    g = np.random.default_rng(seed)
    a = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    r = 25 + 8 * np.sin(3 * a + g.uniform(0, 6)) + g.normal(0, 2, 60)
    polygon = np.column_stack([30.3 + r * np.cos(a), 22.7 + r * np.sin(a)])  # part of it outside
    y, x = np.mgrid[:48, :64]
    want = Path(polygon).contains_points(np.column_stack([x.ravel(), y.ravel()])).reshape(48, 64)
    assert np.array_equal(fill_polygon(torch.from_numpy(polygon), (48, 64)).numpy(), want)


def test_fill_takes_even_odd_and_names_bad_polygons():
    bow = torch.tensor([[2.0, 2.0], [20.0, 20.0], [20.0, 2.0], [2.0, 20.0]])
    got = fill_polygon(bow, (24, 24))
    assert got[11, 4] and got[11, 18] and not got[4, 11]
    assert (
        not fill_polygon(bow + 100, (24, 24)).any() and not fill_polygon(bow - 100, (24, 24)).any()
    )
    for bad, words in ((bow[:2], "3 points"), (bow * float("nan"), "not finite")):
        with pytest.raises(ValueError, match=words):
            fill_polygon(bad, (24, 24))


def test_union_leaves_out_what_is_small_rare_or_against_the_rest():
    mask = shapes()["two discs"]
    loops = orbits(field(mask), random_starts((128, 128), 100, 1))
    big = max(o.area for o in loops)
    assert dice(union_mask(loops, (128, 128))[0], mask) > 0.99
    one, contours = union_mask(loops, (128, 128), least=big - 1)
    assert int(one.sum()) == pytest.approx(big, rel=0.02) and [c.used for c in contours] == [
        True,
        False,
    ]
    few = [o for o in loops if o.area > big - 5] + [o for o in loops if o.area < big - 5][:1]
    assert [c.used for c in union_mask(few, (128, 128), share=0.1)[1]] == [True, False]
    assert not union_mask([], (8, 8))[0].any()


def test_starts_near_the_boundary():
    phi = signed_distance(shapes()["star"])
    p = random_starts((128, 128), 500, 0, phi, near=2.0)
    assert float(phi[p[:, 1].round().long(), p[:, 0].round().long()].abs().max()) <= 2
    assert torch.equal(p, random_starts((128, 128), 500, 0, phi, near=2.0))
    with pytest.raises(ValueError, match="near=2"):
        random_starts((128, 128), 5, 0, phi + 900, near=2.0)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda f: orbits(f[0], torch.zeros(1, 2)), "shape"),
        (lambda f: orbits(f * math.nan, torch.zeros(1, 2)), "not finite"),
        (lambda f: orbits(f, torch.zeros(2)), "positions"),
        (lambda f: orbits(f, torch.zeros(1, 2) * math.nan), "not finite"),
        (lambda f: orbits(f, torch.zeros(1, 2), h=0.0), "h=0"),
        (lambda f: orbits(f, torch.zeros(1, 2), tol=-1.0), "tol=-1"),
        (lambda f: orbits(f, torch.zeros(1, 2), scheme="x"), "scheme"),
        (lambda f: outline(f, n_starts=0), "n_starts=0"),
        (lambda f: return_map(f, torch.zeros(2), torch.zeros(2), torch.zeros(1)), "normal"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(field(shapes(64)["disc"]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_field_gives_the_same_mask():
    f = field(shapes()["ring"])
    starts = torch.rand(50, 2, generator=make_generator(0)) * 127
    assert torch.equal(outline(f.cuda(), starts=starts).mask.cpu(), outline(f, starts=starts).mask)
