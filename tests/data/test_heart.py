"""Readers of contours, masks and images: folders made here,
wrong files of every kind, the packed file where it is at hand"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deffi_lab.data.heart import readers as heart
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.data.heart.readers import (
    duplicated,
    duplicated_files,
    nifti_folder,
    png_folder,
    sunnybrook,
    sunnybrook_npz,
)
from deffi_lab.data.slices import Raw, Slices, gather, scaled
from deffi_lab.numeric.polygon import fill_polygon

root = Path(__file__).resolve().parents[2]
data = Path(os.environ.get("DEFFI_LAB_DATA") or root / ".." / "shared" / "data") / "sunnybrook3.npz"
real = pytest.mark.skipif(not data.is_file(), reason=f"{data} is missing (set DEFFI_LAB_DATA)")
angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
RING = np.stack([66 + (15 + 2 * np.cos(2 * angle)) * np.cos(angle), 60 + 15 * np.sin(angle)], 1)


def raw(mask, mm=(1.0, 1.0), name="A", image=None):
    image = np.where(mask, 200.0, 20.0) if image is None else image
    return Raw(image, mask, mm, name, name)


def disc(shape=(100, 100), radius=20.0, mm=(1.0, 1.0), at=(0.0, 0.0)):
    i, j = np.indices(shape)
    return (
        np.hypot((i - (shape[0] - 1) / 2) * mm[0] - at[1], (j - (shape[1] - 1) / 2) * mm[1] - at[0])
        < radius
    )


# ---- Slices


def some(n=4):
    return Slices(
        torch.rand(n, 1, 8, 8),
        torch.rand(n, 8, 8) > 0.5,
        [f"p{i // 2}" for i in range(n)],
        1.5,
        outer=torch.ones(n, 8, 8, dtype=torch.bool),
    )


def test_split_goes_by_patient_and_keeps_every_slice():
    s = some(6)
    train, test = s.split(["p1"])
    assert (
        set(test.subject) == {"p1"}
        and set(train.subject) == {"p0", "p2"}
        and len(train) + len(test) == len(s)
    )
    assert torch.equal(test.image, s.image[2:4]) and torch.equal(test.outer, s.outer[2:4])
    for wrong in ([], ["p0", "p1", "p2"], ["nobody"]):
        with pytest.raises(ValueError, match="patients"):
            s.split(wrong)


def test_take_refuses_what_is_not_there():
    s = some()
    assert s.take([3, 0]).where == [s.where[3], s.where[0]]
    for wrong in ([], [4], [-1]):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            s.take(wrong)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(image=torch.rand(4, 8, 8)), "n 1 h w"),
        (dict(mask=torch.rand(4, 8, 8)), "bool"),
        (dict(mask=torch.zeros(4, 8, 9, dtype=torch.bool)), "mask"),
        (dict(subject=["a"]), "subjects"),
        (dict(spacing=0.0), "spacing"),
        (dict(image=torch.full((4, 1, 8, 8), float("nan"))), "p0 #0.*not finite"),
        (dict(outer=torch.zeros(3, 8, 8) > 0), "outer"),
    ],
)
def test_slices_refuse_what_does_not_fit(change, match):
    s = some()
    parts = dict(image=s.image, mask=s.mask, subject=s.subject, spacing=s.spacing) | change
    with pytest.raises(ValueError, match=match):
        Slices(**parts)


# ---- the grid


@pytest.mark.parametrize("mm", [(1.0, 1.0), (2.0, 0.8), (0.7, 1.9), (1.75, 1.75)])
def test_anisotropic_spacing_becomes_isotropic(mm):
    shape = tuple(int(round(150 / s)) for s in mm)
    s = gather([raw(disc(shape, 22.0, mm), mm)], 80, 1.5, "x")
    rows, columns = (s.mask[0].any(a).sum().item() * 1.5 for a in (1, 0))
    assert abs(rows - 44) <= 2.6 and abs(columns - 44) <= 2.6
    assert abs(float(s.mask.sum()) * 1.5**2 / (np.pi * 22**2) - 1) < 0.05
    overlap = ((s.image[0, 0] > 0.5) & s.mask[0]).sum() / ((s.image[0, 0] > 0.5) | s.mask[0]).sum()
    assert overlap > 0.93, "image and mask are moved alike"


def test_the_crop_knows_nothing_of_the_mask():
    ramp = np.arange(1e4).reshape(100, 100)
    a, b = (
        gather([raw(disc(radius=12.0, at=at), image=ramp)], 64, 1.0, "x")
        for at in ((0, 0), (18, -9))
    )
    assert torch.equal(a.image, b.image)
    i, j = (x.double().mean() for x in b.mask[0].nonzero(as_tuple=True))
    assert abs(float(j) - 31.5 - 18) < 0.6 and abs(float(i) - 31.5 + 9) < 0.6


def test_small_pictures_are_padded_with_black_and_masks_may_touch_the_border():
    m = np.zeros((20, 20), bool)
    m[:, :8] = True
    s = gather([raw(m)], 40, 1.0, "x")
    assert s.mask.sum() == 160 and not s.mask[0, :10].any() and (s.image[0, 0, :9] <= 0).all()


@pytest.mark.parametrize(
    "mask, match",
    [(np.zeros((50, 50), bool), "no foreground"), (np.ones((50, 50), bool), "whole image")],
)
def test_empty_and_full_masks(mask, match):
    with pytest.raises(ValueError, match=f"A: .*{match}"):
        gather([raw(mask)], 32, 1.0, "x")


def test_one_pixel_components_and_what_the_crop_loses():
    m = np.zeros((60, 60), bool)
    m[30, 30] = True
    assert gather([raw(m)], 60, 1.0, "x").mask.sum() == 1
    m[10:14, 10:14] = True
    assert gather([raw(m)], 60, 1.0, "x").mask.sum() == 17
    m[:] = False
    m[0, 0] = True
    with pytest.raises(ValueError, match="A: the mask lies outside"):
        gather([raw(m)], 32, 1.0, "x")


@pytest.mark.parametrize(
    "r, match",
    [
        (raw(disc(), image=np.full((100, 100), np.nan)), "10000 pixels are not finite"),
        (raw(disc(), (0.0, 1.0)), "spacing"),
        (raw(disc(), image=np.zeros((90, 100))), "one"),
    ],
)
def test_bad_slices_are_named(r, match):
    with pytest.raises(ValueError, match=f"^A: .*{match}"):
        gather([r], 32, 1.0, "x")


def test_scaling_bears_a_constant():
    assert (scaled(torch.full((1, 1, 9, 9), 7.0)) == 0).all()


# ---- polygons


def test_fill_holds_the_centres_inside():
    square = np.array([(-0.5, -0.5), (2.5, -0.5), (2.5, 2.5), (-0.5, 2.5)])
    assert fill_polygon(square, (5, 6))[:3, :3].all() and fill_polygon(square, (5, 6)).sum() == 9
    assert (
        fill_polygon(square[::-1].copy(), (5, 6)).sum() == 9
        and fill_polygon(square * 50, (5, 6)).all()
    )


def test_fill_agrees_with_matplotlib_on_random_stars():
    from matplotlib.path import Path as Outline

    rng, (i, j) = np.random.default_rng(0), np.indices((40, 50))
    for _ in range(30):
        p = rng.uniform(-5, 50, (rng.integers(3, 12), 2))
        a = np.sort(np.arctan2(*(p - p.mean(0)).T))
        r = rng.uniform(3, 30, len(p))
        p = np.stack(
            [24.3 + r * np.cos(a), 19.7 + r * np.sin(a)], 1
        )  # star-shaped: both rules agree
        want = (
            Outline(p, closed=False)
            .contains_points(np.stack([j.ravel(), i.ravel()], 1))
            .reshape(40, 50)
        )
        assert (fill_polygon(p, (40, 50)).numpy() != want).sum() == 0


# ---- Sunnybrook folders


def dicom(path, pixels, mm=(1.4, 1.4), number=48):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        "1.2.840.10008.5.1.4.1.1.4",
        "1.2.3",
    )
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    d.Rows, d.Columns, d.InstanceNumber = *pixels.shape, number
    if mm:
        d.PixelSpacing = [str(v) for v in mm]
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit = 15
    d.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)


def text_of(folder, patient="SCD0000001", kind="icontour", number=48):
    return folder / patient / "contours" / f"{patient}-IM-0001-{number:04d}-{kind}-manual.txt"


@pytest.fixture
def folder(tmp_path):
    for k, patient in enumerate(("SCD0000001", "SCD0000002")):
        ring = RING + 3 * k * (RING - RING.mean(0)) / 15
        pixels = 200 + 500 * fill_polygon(ring, (120, 128)).numpy()
        dicom(tmp_path / patient / "DICOM" / "IM-0003-0048.dcm", pixels)
        text_of(tmp_path, patient).parent.mkdir()
        np.savetxt(text_of(tmp_path, patient), ring, "%.2f")
    return tmp_path


def test_sunnybrook_folder(folder):
    s = sunnybrook(folder)
    assert (
        s.subject == ["SCD0000001", "SCD0000002"]
        and s.image.shape == (2, 1, 96, 96)
        and s.outer is None
    )
    area = fill_polygon(RING, (120, 128)).sum() * 1.4**2
    assert abs(float(s.mask[0].sum()) * 1.75**2 / area - 1) < 0.03
    assert ((s.image[0, 0] > 0.5) == s.mask[0]).float().mean() > 0.99
    for p in ("SCD0000001", "SCD0000002"):
        np.savetxt(text_of(folder, p, "ocontour"), (RING - 66) * 1.4 + 66, "%.2f")
    s = sunnybrook(folder)
    assert s.outer is not None and not (s.mask & ~s.outer).any()
    assert torch.equal(sunnybrook(folder, contour="ocontour").mask, s.outer)


def test_one_patient_alone_and_images_numbered_by_their_header(folder):
    moved = folder / "SCD0000001" / "DICOM"
    dicom(moved / "image_a.dcm", np.zeros((120, 128)) + RING.sum() % 7, number=49)
    np.savetxt(text_of(folder, number=49), RING, "%.2f")
    assert len(sunnybrook(folder / "SCD0000001")) == 2
    dicom(moved / "1.2.840.50.dcm", np.arange(120 * 128).reshape(120, 128) % 500, number=51)
    np.savetxt(text_of(folder, number=51), RING, "%.2f")
    assert len(sunnybrook(folder / "SCD0000001")) == 3, "the end of a UID is no number"
    (moved / "broken.dcm").write_text("x")
    with pytest.raises(ValueError, match="broken.dcm: not a readable"):
        sunnybrook(folder)


def test_contours_without_image_or_with_two(folder):
    np.savetxt(text_of(folder, number=50), RING)
    with pytest.raises(FileNotFoundError, match="0050-icontour.*0 DICOM images of SCD0000001"):
        sunnybrook(folder)
    text_of(folder, number=50).unlink()
    dicom(folder / "SCD0000001" / "other" / "IM-0009-0048.dcm", np.ones((120, 128)))
    with pytest.raises(FileNotFoundError, match="2 DICOM images"):
        sunnybrook(folder)
    dicom(
        folder / "SCD0000001" / "other" / "IM-0001-0048.dcm",
        200 + 500 * fill_polygon(RING, (120, 128)).numpy(),
    )
    assert len(sunnybrook(folder)) == 2, "the series of the contour's own name is taken"
    with pytest.raises(FileNotFoundError, match="no .*icontour"):
        sunnybrook(folder / "SCD0000001" / "DICOM")


@pytest.mark.parametrize(
    "content, match",
    [
        ("", "0 points"),
        ("1 2\n3 4", "2 points"),
        ("one two", "not lines of two numbers"),
        ("1 2 3\n" * 5, "3 numbers a line"),
        ("1 2\n3\n4 5", "not lines"),
        ("nan 1\n2 3\n4 5", "not finite"),
        ("\n".join(f"{x} {y}" for x, y in RING + 60), "outside"),
        ("\n".join(f"{x} {y}" for x, y in RING - 70), "outside"),
        ("\n".join(f"{x} {y}" for x, y in RING[:50]), "open"),
        ("5.1 5.1\n5.2 5.1\n5.2 5.2", "no pixel centre"),
        (b"\xff\xfe\x00\x01", "not lines"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_wrong_contour_files_are_named(folder, content, match):
    path = text_of(folder)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match) as e:
        sunnybrook(folder)
    assert path.name in str(e.value)


def test_wrong_dicom_files_are_named(folder):
    path = folder / "SCD0000001" / "DICOM" / "IM-0003-0048.dcm"
    dicom(path, np.ones((120, 128)), mm=None)
    with pytest.raises(ValueError, match="IM-0003-0048.dcm: no PixelSpacing"):
        sunnybrook(folder)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="IM-0003-0048.dcm: not a readable"):
        sunnybrook(folder)
    path.write_text("no DICOM")
    with pytest.raises(ValueError, match="IM-0003-0048.dcm: not a readable"):
        sunnybrook(folder)


def test_contours_counted_from_one(folder):
    np.savetxt(text_of(folder), RING + 1, "%.2f")
    a = sunnybrook(folder, origin=1.0).mask[0]
    np.savetxt(text_of(folder), RING, "%.2f")
    assert torch.equal(a, sunnybrook(folder).mask[0])
    with pytest.raises(ValueError, match="contour='x'"):
        sunnybrook(folder, contour="x")


@pytest.mark.parametrize("module", ["pydicom", "nibabel"])
def test_a_missing_package_says_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install deffi_lab\[heart\]"):
        heart.need(module, "heart")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, deffi_lab.data.heart.readers, deffi_lab.data.heart.phantom; "
        "print([m for m in ('pydicom', 'nibabel', 'monai', 'matplotlib', 'plotly', 'ipywidgets') "
        "if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# ---- NIfTI and PNG


def nifti(path, array, zooms, shift=0.0):
    nib = pytest.importorskip("nibabel", reason="nibabel is not installed")
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([*zooms, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(array, affine), path)


def volume(mm=(1.0, 2.0)):
    "[x y z] with a disc of 15 mm in slices 1 and 2 of 4; x is the finer axis"
    m = np.zeros((100, 50, 4), np.uint8)
    m[..., 1:3] = (disc((50, 100), 15.0, (mm[1], mm[0])).T * 3)[..., None]
    return (m * 60 + 10.0).astype(np.float32), m


def test_nifti_folder(tmp_path):
    x, m = volume()
    nifti(tmp_path / "i" / "ann_1.nii.gz", x, (1.0, 2.0, 8.0))
    nifti(tmp_path / "m" / "ann_1.nii.gz", m, (1.0, 2.0, 8.0))
    s = nifti_folder(tmp_path / "i", tmp_path / "m", size=64, spacing=1.5)
    assert len(s) == 2 and s.subject == ["ann", "ann"] and s.where[0].endswith("slice 1")
    assert abs(float(s.mask[0].sum()) * 1.5**2 / (np.pi * 15**2) - 1) < 0.05
    assert len(nifti_folder(tmp_path / "i", tmp_path / "m", labels=[3])) == 2
    with pytest.raises(ValueError, match="ann_1.nii.gz: no foreground"):
        nifti_folder(tmp_path / "i", tmp_path / "m", labels=[1])


def test_wrong_nifti_files_are_named(tmp_path):
    x, m = volume()
    i, k = tmp_path / "i", tmp_path / "m"
    nifti(i / "b.nii", x, (1.0, 2.0, 8.0))
    nifti(k / "b.nii", m[:-1], (1.0, 2.0, 8.0))
    with pytest.raises(ValueError, match=r"b.nii: image \(100, 50, 4\), mask \(99, 50, 4\)"):
        nifti_folder(i, k)
    nifti(k / "b.nii", m, (1.0, 2.0, 8.0), shift=5.0)
    with pytest.raises(ValueError, match="b.nii.*affines"):
        nifti_folder(i, k)
    nifti(k / "b.nii", m * 0, (1.0, 2.0, 8.0))
    with pytest.raises(ValueError, match="b.nii: no foreground"):
        nifti_folder(i, k)
    x[:, :, 2] = np.nan
    nifti(i / "b.nii", x, (1.0, 2.0, 8.0))
    nifti(k / "b.nii", m, (1.0, 2.0, 8.0))
    with pytest.raises(ValueError, match="b.nii slice 2: 5000 pixels are not finite"):
        nifti_folder(i, k)
    (i / "b.nii").write_text("x")
    with pytest.raises(ValueError, match="b.nii.*not readable"):
        nifti_folder(i, k)
    nifti(i / "c.nii", x, (1.0, 2.0, 8.0))
    with pytest.raises(FileNotFoundError, match="c.nii: no mask 'c'"):
        nifti_folder(i, k)
    with pytest.raises(FileNotFoundError, match="no .nii"):
        nifti_folder(tmp_path, k)


def test_png_folder(tmp_path):
    i, k = tmp_path / "i", tmp_path / "m"
    i.mkdir()
    k.mkdir()
    m = disc((60, 100), 20.0, (2.0, 1.0))
    Image.fromarray((m * 150 + 20).astype(np.uint8)).convert("RGB").save(i / "bo_2.png")
    Image.fromarray(m.astype(np.uint8) * 255).save(k / "bo_2.png")
    Image.fromarray((m * 40000 + 200).astype(np.uint16)).save(i / "cy_1.png")
    Image.fromarray(m.astype(np.uint8)).save(k / "cy_1.png")
    s = png_folder(i, k, pixel_mm=(2.0, 1.0), size=64, spacing=1.5)
    assert (
        s.subject == ["bo", "cy"]
        and torch.equal(s.mask[0], s.mask[1])
        and torch.allclose(s.image[0], s.image[1], atol=0.01)
    )
    assert abs(float(s.mask[0].sum()) * 1.5**2 / (np.pi * 20**2) - 1) < 0.05 and duplicated(s) == [
        (0, 1)
    ]
    Image.fromarray(m[:-1].astype(np.uint8)).save(k / "bo_2.png")
    with pytest.raises(ValueError, match=r"bo_2.png: image \[60, 100\], mask \[59, 100\]"):
        png_folder(i, k)
    Image.fromarray(m.astype(np.uint8) * 0).save(k / "bo_2.png")
    with pytest.raises(ValueError, match="bo_2.png: no foreground"):
        png_folder(i, k)
    (k / "bo_2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="bo_2.png.*not readable"):
        png_folder(i, k)
    (i / "bo_2.png").unlink()
    with pytest.raises(FileNotFoundError, match="bo_2.png: no image"):
        png_folder(i, k)


# ---- copies


def test_copies_are_found_wherever_they_lie_and_across_patients_only():
    s = phantom(400, seed=5, device="cpu")
    subject = [f"p{i // 10}" for i in range(400)]
    assert duplicated(s.mask, subject) == []
    big = [int(i) for i in s.mask.sum((1, 2)).argsort(descending=True)[:3]]
    m = torch.cat(
        [
            s.mask,
            torch.stack([s.mask[big[0]], s.mask[big[1]].roll((2, -3), (0, 1)), s.mask[big[2]]]),
        ]
    )
    twice = duplicated(m, [*subject, "new", "new", subject[big[2]]])
    assert twice == sorted([(big[0], 400), (big[1], 401)])


def test_a_copy_that_differs_by_a_pixel_is_found_and_a_redrawn_one_is_not():
    m = torch.from_numpy(np.stack([disc((120, 120), 45.0)] * 3))
    m[1, 60, 60] = False
    m[2] = torch.from_numpy(disc((120, 120), 45.6))
    assert duplicated(m, ["a", "b", "c"]) == [(0, 1)]
    assert duplicated(m, ["a", "b", "c"], overlap=1.0) == []
    small = torch.zeros(2, 20, 20, dtype=torch.bool)
    small[:, 3:6, 3:6] = True
    assert duplicated(small, ["a", "b"]) == [] and duplicated(small, ["a", "b"], least=9) == [
        (0, 1)
    ]
    assert duplicated(torch.zeros(2, 5, 5, dtype=torch.bool), ["a", "b"]) == []
    with pytest.raises(ValueError, match="one subject"):
        duplicated(m, ["a"])
    with pytest.raises(ValueError, match="overlap=0.5"):
        duplicated(m, ["a", "b", "c"], overlap=0.5)


def test_copied_files(folder):
    assert duplicated_files(folder) == []
    np.savetxt(text_of(folder, "SCD0000002"), np.roll(RING, 7, 0), "%.2f")
    np.savetxt(text_of(folder, number=60), RING, "%.2f")  # within a patient: no matter
    pairs = duplicated_files(folder)
    assert len(pairs) == 2 and all("SCD0000001" in a and "SCD0000002" in b for a, b in pairs)


# ---- the packed file


@real
def test_packed_file():
    s = sunnybrook_npz(data)
    assert (
        s.image.shape == (56, 1, 96, 96)
        and len(set(s.subject)) == 3
        and s.spacing == 1.75
        and duplicated(s) == []
    )
    with np.load(data) as d:
        area = (d["lv_endo"] > 0).sum((1, 2)) * d["spacing_mm"].prod(1)
    mine = s.mask.sum((1, 2)).numpy() * 1.75**2
    assert (
        np.abs(mine / area - 1)[area > 500].max() < 0.08 and abs(mine.sum() / area.sum() - 1) < 0.01
    )
    assert (s.image.flatten(1).median(1).values < 0.6).all() and float(s.image.max()) <= 1.5


def test_packed_file_missing_or_damaged(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="DEFFI_LAB_DATA"):
        sunnybrook_npz(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="x.npz: not a whole packed"):
        sunnybrook_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", image=np.zeros(3))
    with pytest.raises(ValueError, match="y.npz: not a whole packed"):
        sunnybrook_npz(tmp_path / "y.npz")
    monkeypatch.setenv("DEFFI_LAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="sunnybrook3.npz"):
        sunnybrook_npz()
