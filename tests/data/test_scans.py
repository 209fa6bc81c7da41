"""Levels and regions, brightness, padding; BraTS folders made
here and broken in every way; the real slices where at hand"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deffi_lab.data.scans import REGIONS, Scans, brats_folder, exposed, gliomas, nested, regions

root = Path(__file__).resolve().parents[2]
data = Path(os.environ.get("DEFFI_LAB_DATA") or root / ".." / "shared" / "data") / "brats4.npz"


def some(n=4, dims=2, sides=(20, 24, 28)):
    shape = sides[3 - dims :]
    label = torch.randint(
        0, 4, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Scans(
        torch.rand(n, 2, *shape), label, [f"p{i // 2}" for i in range(n)], 2.0, ("T1c", "FLAIR")
    )


# ---- levels


def test_regions_and_back():
    label = some().label
    r = regions(label)
    assert len(REGIONS) == r.shape[1] == 3 and torch.equal(nested(*r.unbind(1)), label)
    assert not (r[:, 1] & ~r[:, 0]).any() and not (r[:, 2] & ~r[:, 1]).any()


@pytest.mark.parametrize(
    ("which", "says"), [(1, "scan 2: 1 voxels of TC lie outside WT"), (2, "scan 2: 1 voxels of ET")]
)
def test_not_nested(which, says):
    masks = [torch.zeros(4, 8, 8, dtype=torch.bool) for _ in range(3)]
    for m in masks[:which]:
        m[2, :4] = True
    masks[which][2, 6, 6] = True
    with pytest.raises(ValueError, match=says):
        nested(*masks)
    mended = nested(*masks, mend=True)
    assert int(mended[2, 6, 6]) == 0 and torch.equal(mended >= 1, masks[0])


def test_mending_cuts_at_all_enclosing_regions():
    wt, tc, et = (torch.zeros(1, 1, 4, dtype=torch.bool) for _ in range(3))
    wt[..., :2], tc[..., 1:3], et[..., 2:] = True, True, True
    assert nested(wt, tc, et, mend=True).flatten().tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(label=torch.full((4, 24, 28), 4, dtype=torch.uint8)), "p0 #0: level 4"),
        (dict(label=torch.zeros(4, 24, 28)), "uint8"),
        (dict(label=torch.zeros(4, 24, 27, dtype=torch.uint8)), r"\[4, 24, 28\]"),
        (dict(image=torch.rand(4, 2, 24, 28).double()), "float32"),
        (dict(image=torch.rand(4, 24, 28)), "n m h w"),
        (dict(modalities=("T1",)), "1 modalities"),
        (dict(subject=["a"]), "1 subjects"),
        (dict(spacing=0.0), "spacing"),
        (
            dict(image=torch.rand(4, 2, 24, 28).index_fill_(0, torch.tensor(3), torch.nan)),
            "p1 #3: voxels",
        ),
    ],
)
def test_bad_scans(change, says):
    s = some()
    whole = dict(
        image=s.image, label=s.label, subject=s.subject, spacing=2.0, modalities=s.modalities
    )
    with pytest.raises(ValueError, match=says):
        Scans(**(whole | change))


@pytest.mark.parametrize("dims", [2, 3])
def test_take_split_pick_pad(dims):
    s = some(6, dims)
    assert (
        s.dims == dims
        and s.take([4, 1]).subject == ["p2", "p0"]
        and torch.equal(s.take([4]).image, s.image[4:5])
    )
    train, test = s.split("p1")
    assert len(train) == 4 and test.subject == ["p1"] * 2 and torch.equal(test.label, s.label[2:4])
    assert torch.equal(s.pick(("FLAIR", "T1c")).image, s.image.flip(1))
    p = s.padded(8)
    assert all(n % 8 == 0 for n in p.label.shape[1:]) and p.padded(8).label.shape == p.label.shape
    low = [(a - b) // 2 for a, b in zip(p.label.shape[1:], s.label.shape[1:])]
    inside = tuple(slice(a, a + b) for a, b in zip(low, s.label.shape[1:]))
    assert torch.equal(p.image[(..., *inside)], s.image) and torch.equal(
        p.label[(slice(None), *inside)], s.label
    )
    assert (
        float(p.image.sum()) == pytest.approx(float(s.image.sum()), rel=1e-5)
        and p.label.sum() == s.label.sum()
    )
    for bad in ("p9", ["p0", "p1", "p2"], []):
        with pytest.raises(ValueError):
            s.split(bad)
    with pytest.raises(ValueError, match="T2"):
        s.pick(("T2",))
    with pytest.raises(ValueError):
        s.take([6])


def test_exposed_ignores_the_scanner_and_the_tumour():
    head = torch.zeros(2, 30, 30, dtype=torch.bool)
    head[:, 4:26, 4:26] = True
    image = (100 + 20 * torch.rand(2, 1, 30, 30)) * head[:, None]
    image[1] = image[0] * 37
    out = exposed(image, head)
    assert torch.allclose(out[0], out[1], atol=1e-5) and float(
        out[0, 0][head[0]].median()
    ) == pytest.approx(0.4, abs=0.005)
    with_tumour = image.clone()
    with_tumour[0, 0, 8:12, 8:12] = 600
    assert torch.allclose(exposed(with_tumour, head)[0, :, 15:], out[0, :, 15:], rtol=0.03)
    assert float(exposed(with_tumour, head).max()) == 1.5
    assert not exposed(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)).any()


# ---- BraTS folders

nib = pytest.importorskip("nibabel")
SHAPE = (40, 44, 20)  # x, y, z of a file
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])  # as BraTS: to the left, to the back, upwards


def ball(radius, at):
    x = np.stack(np.indices(SHAPE), -1) * (2, 2, 3)
    return np.linalg.norm(x - np.array(at), axis=-1) < radius


def case(folder, name="A_01", affine=AFFINE, values=(1, 2, 4), new=False, flip=(), at=(30, 54, 30)):
    folder = folder / name
    folder.mkdir(parents=True)
    head = ball(28, (40, 44, 30))
    seg = np.zeros(SHAPE, np.uint8)
    for r, v in zip((14, 10, 6), (values[1], values[2], values[0])):
        seg[ball(r, at)] = v
    names = ("-t1n", "-t1c", "-t2w", "-t2f") if new else ("_t1", "_t1ce", "_t2", "_flair")
    files = {n: head * (100.0 + 10 * i) + 30 * i * (seg > 0) for i, n in enumerate(names)} | {
        "-seg" if new else "_seg": seg
    }
    for n, v in files.items():
        v = np.flip(v, flip).copy() if flip else v
        nib.save(
            nib.Nifti1Image(v.astype(np.uint8 if "seg" in n else np.float32), affine),
            folder / f"{name}{n}.nii.gz",
        )
    return folder


def test_folder_as_slices_and_volumes(tmp_path):
    for name in ("A", "B"):
        case(tmp_path, name)
    v = brats_folder(tmp_path, size=48, dims=3)
    assert (
        v.image.shape[:2] == (2, 4)
        and v.image.shape[-2:] == (48, 48)
        and v.subject == ["A", "B"]
        and v.spacing == 2
    )
    for k, cubes in enumerate((14**3, 10**3, 10**3 - 6**3)):  # two balls and a shell, mm³
        assert float(v.regions[0, k].sum()) * 8 == pytest.approx(4 / 3 * np.pi * cubes, rel=0.12)
    s = brats_folder(tmp_path, ("FLAIR", "T1c"), size=48)
    assert (
        s.modalities == ("FLAIR", "T1c")
        and s.label.flatten(1).any(1).all()
        and set(s.subject) == {"A", "B"}
    )
    planes = (v.label[0] > 0).flatten(1).any(1)
    assert torch.equal(s.label[: int(planes.sum())], v.label[0][planes])
    assert torch.equal(s.image[0, 0], v.image[0, 3][planes][0])
    thinned = brats_folder(tmp_path, ("FLAIR",), size=48, every=3)
    assert len(thinned) == 2 * -(-int(planes.sum()) // 3)


def test_orientation_comes_from_the_affine(tmp_path):
    case(tmp_path / "one")
    turned = AFFINE.copy()
    turned[0] *= -1
    turned[0, 3] = -2 * (SHAPE[0] - 1)  # stored from the other side, told so by the affine
    case(tmp_path / "two", affine=turned, flip=(0,))
    one, two = (brats_folder(tmp_path / k, size=48, dims=3) for k in ("one", "two"))
    assert torch.equal(one.label, two.label) and torch.allclose(one.image, two.image, atol=1e-4)
    z, y, x = one.label[0].nonzero().float().mean(0).tolist()
    assert (
        x < 23.5 < y
    )  # stored to the left and to the back: low x is right, shown left; y is behind


def test_what_three_means(tmp_path):
    old = brats_folder(case(tmp_path / "old", values=(3, 2, 4)).parent, size=48)
    assert int((old.label == 3).sum()) > 0 and int((old.label == 2).sum()) > 0
    new = brats_folder(case(tmp_path / "new", values=(1, 2, 3), new=True).parent, size=48)
    assert torch.equal(old.label, new.label)
    with pytest.raises(ValueError, match=r"seg.nii.gz: label value 4"):
        brats_folder(case(tmp_path / "cavity", values=(1, 2, 4), new=True).parent)


def test_an_absent_class_is_no_error(tmp_path):
    s = brats_folder(case(tmp_path, values=(2, 2, 2)).parent, size=48)
    assert s.regions[:, 0].any() and not s.regions[:, 1:].any()


def resave(path, values=None, affine=None, code=1):
    scan = nib.load(path)
    out = nib.Nifti1Image(
        np.asarray(scan.dataobj) if values is None else values,
        scan.affine if affine is None else affine,
    )
    out.set_sform(out.affine, code)
    out.set_qform(None, 0) if code == 0 else None
    if code == 0:
        out.header["sform_code"], out.header["qform_code"] = 0, 0
    path.unlink()
    nib.save(out, path)


def oblique():
    c, s = np.cos(0.6), np.sin(0.6)
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn @ AFFINE


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "truncated"),
        (lambda p: p.write_bytes(b"nothing of the kind"), "truncated or no NIfTI"),
        (lambda p: resave(p, code=0), "no affine in its header"),
        (lambda p: resave(p, affine=np.diag([-2.0, -2.0, 4.0, 1.0])), "its affine differs"),
        (lambda p: resave(p, affine=oblique()), "oblique"),
        (lambda p: resave(p, values=np.ones((40, 44, 19), np.float32)), r"shape \[19, 44, 40\]"),
        (lambda p: resave(p, values=np.ones((40, 44, 20, 2), np.float32)), "one volume"),
        (lambda p: resave(p, values=np.full(SHAPE, np.nan, np.float32)), "not finite"),
    ],
)
def test_broken_files_are_named(tmp_path, how, says):
    folder = case(tmp_path)
    how(folder / "A_01_flair.nii.gz")
    with pytest.raises(ValueError, match=says) as e:
        brats_folder(tmp_path, size=48)
    assert "A_01_flair.nii.gz" in str(e.value)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    folder = case(tmp_path / "whole")
    (folder / "A_01_t2.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no file of T2.*_t2.nii"):
        brats_folder(folder.parent)
    assert brats_folder(folder.parent, ("T1c",), size=48).modalities == ("T1c",)
    with pytest.raises(FileNotFoundError, match="no folders"):
        brats_folder(tmp_path / "none")
    aside = case(tmp_path / "aside", at=(22, 62, 30)).parent
    with pytest.raises(ValueError, match="A_01_seg.*raise size"):
        brats_folder(aside, ("T1c",), size=16, spacing=0.5)
    for wrong in (
        dict(dims=4),
        dict(every=0),
        dict(size=8),
        dict(spacing=0.0),
        dict(modalities=("PD",)),
    ):
        with pytest.raises(ValueError):
            brats_folder(folder.parent, **wrong)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install deffi_lab\[brain\]"):
        brats_folder(folder.parent, ("T1c",))


def test_a_header_whose_affine_cannot_be_inverted(tmp_path):
    path = case(tmp_path) / "A_01_t1.nii.gz"
    scan = nib.load(path)
    out = nib.Nifti1Image(np.asarray(scan.dataobj), None)
    out.header["sform_code"], out.header["srow_x"] = 1, 0
    path.unlink()
    nib.save(out, path)
    with pytest.raises(ValueError, match="A_01_t1.nii.gz.*cannot be inverted"):
        brats_folder(tmp_path)


# ---- the packed real slices


def test_real_slices():
    if not data.is_file():
        pytest.skip(f"{data} is missing (set DEFFI_LAB_DATA)")
    g, fine = gliomas(data), gliomas(data, size=192, spacing=1)
    assert (
        g.image.shape == (116, 2, 96, 96)
        and len(set(g.subject)) == 4
        and g.modalities == ("T1c", "FLAIR")
    )
    for k in range(3):
        a, b = 4.0 * g.regions[:, k].sum(), float(fine.regions[:, k].sum())
        assert float(a) == pytest.approx(b, rel=0.06)
    with np.load(data) as z:
        raw = z["label"]
    assert int((fine.label == 3).sum()) == int((raw == 4).sum()) and int(
        (fine.label > 0).sum()
    ) == int((raw > 0).sum())
    assert int((fine.label == 2).sum()) == int(((raw == 1) | (raw == 3)).sum())
    for c in set(g.subject):
        one = g.take([i for i, s in enumerate(g.subject) if s == c])
        assert float(one.image[:, 1][one.image[:, 1] > 0].median()) == pytest.approx(0.4, abs=0.06)
    train, test = g.split(g.subject[0])
    assert len(train) == 87 and len(test) == 29


def test_real_slices_missing_or_broken(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="DEFFI_LAB_DATA"):
        gliomas(tmp_path / "x.npz")
    monkeypatch.setenv("DEFFI_LAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        gliomas()
    (tmp_path / "brats4.npz").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(ValueError, match="not a whole archive"):
        gliomas()
    arrays = dict(
        image_t1c_flair=np.ones((2, 2, 32, 32), np.uint8),
        case=np.array(["a", "b"]),
        z=np.array([1, 2], np.uint8),
    )
    np.savez(tmp_path / "brats4.npz", label=np.full((2, 32, 32), 7, np.uint8), **arrays)
    with pytest.raises(ValueError, match="label value 7"):
        gliomas()
    np.savez(tmp_path / "brats4.npz", label=np.full((2, 32, 32), 4, np.uint8), **arrays)
    assert gliomas(size=16).label.unique().tolist() == [3]
    assert gliomas(size=32).label.shape == (2, 32, 32)
    for wrong in (dict(spacing=1.5), dict(spacing=0.0), dict(size=8)):
        with pytest.raises(ValueError):
            gliomas(**wrong)
