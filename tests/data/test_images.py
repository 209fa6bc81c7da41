"Readers of image sets: real files where they are at hand, damaged ones made here"

import gzip
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deffi_lab.data import images
from deffi_lab.data.heart.readers import png_folder
from deffi_lab.data.images import (
    ImageSet,
    cifar10,
    data_file,
    fashion_mnist,
    from_arrays,
    from_dataset,
    from_folder,
    mnist,
    unit,
)

root = Path(__file__).resolve().parents[2]
data = Path(os.environ.get("DEFFI_LAB_DATA") or root / ".." / "shared" / "data")
rng = np.random.default_rng(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist.u8"


def test_mnist_is_whole_and_lies_in_one_tensor(cache):
    d = mnist()
    assert (
        d.x.shape == (60000, 1, 28, 28)
        and d.x_test.shape == (10000, 1, 28, 28)
        and d.x.dtype == torch.uint8
    )
    assert d.y[:5].tolist() == [5, 0, 4, 1, 9] and d.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert d.x.untyped_storage().data_ptr() == d.x_test.untyped_storage().data_ptr()
    assert torch.bincount(d.y_test).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert d.title == "MNIST" and abs(float(unit(d.x[:20000]).mean()) - 0.13) < 0.005


def test_mnist_cache_is_used_and_a_damaged_one_is_replaced(cache, monkeypatch):
    x = mnist().x
    assert cache.stat().st_size == images.MNIST_BYTES and list(cache.parent.iterdir()) == [cache]
    monkeypatch.setattr(images.np, "load", None)  # the archive is not opened again
    assert torch.equal(mnist().x, x)
    monkeypatch.undo()
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(cache.parent))
    for damage in (
        lambda raw: raw[:-1],
        lambda raw: raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:],
    ):
        cache.write_bytes(damage(cache.read_bytes()))
        assert torch.equal(mnist().x, x)
    assert torch.equal(torch.from_numpy(np.fromfile(cache, np.uint8))[: 784 * 60000].view_as(x), x)


def test_mnist_without_a_place_for_a_cache(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below a file")
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(blocked / "cache"))
    assert len(mnist().x) == 60000


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("DEFFI_LAB_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert images.cache_folder() == Path("/a/b")
    monkeypatch.delenv("DEFFI_LAB_CACHE")
    assert images.cache_folder() == Path("/c/deffi_lab")


def test_pool_answers_and_counts():
    d = small_set()
    pool = d.pool(size=30, seed=3)
    labels = pool.label(torch.tensor([4, 7]))
    match = [int((d.x == pool.x[i]).flatten(1).all(1).nonzero()[0]) for i in (4, 7)]
    assert labels.tolist() == d.y[match].tolist() and pool.asked == 2
    assert torch.equal(pool.x, d.pool(size=30, seed=3).x) and not torch.equal(
        pool.x, d.pool(size=30, seed=4).x
    )
    with pytest.raises(ValueError, match=r"size=0: must be in 1\.\.40"):
        d.pool(size=0)


def small_set() -> ImageSet:
    x = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    return from_arrays(x, np.arange(50) % 5, test_share=0.2)


@pytest.mark.parametrize("shape", [(50, 8, 8), (50, 1, 8, 8), (50, 8, 8, 3), (50, 3, 8, 8)])
def test_arrays_of_all_layouts(shape):
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    d = from_arrays(x, np.arange(50) % 5, x[:5], np.arange(5))
    want = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2) if shape[-1] == 3 else x
    assert np.array_equal(d.x.numpy(), want) and d.n_classes == 5
    assert torch.equal(from_arrays(x / 255, np.arange(50) % 5, x[:5], np.arange(5)).x, d.x)


def test_split_keeps_every_image_once_and_every_class_in_both():
    x = np.arange(60, dtype=np.uint8).reshape(60, 1, 1)
    y = np.r_[np.zeros(50, int), np.full(10, 1)]
    d = from_arrays(x, y, test_share=0.3, seed=1)
    assert sorted(d.x.flatten().tolist() + d.x_test.flatten().tolist()) == list(range(60))
    assert torch.bincount(d.y_test).tolist() == [15, 3]


@pytest.mark.cuda
def test_moving_to_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    d = small_set()
    moved = d.to("cuda")
    assert (
        moved.x.is_cuda
        and moved.y_test.is_cuda
        and torch.equal(moved.x.cpu(), d.x)
        and moved.names == d.names
    )
    assert moved.pool(size=10, seed=1).label(torch.tensor([0, 1], device="cuda")).is_cuda


X, Y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
NAN = np.zeros((6, 4, 4), np.float32)
NAN[2, 1, 1] = np.nan


@pytest.mark.parametrize(
    "x, y, more, words",
    [
        (NAN, Y, {}, "1 training images have NaN"),
        (X + 2.0, Y, {}, "floats must be in 0..1"),
        (X.astype(int) - 1, Y, {}, "must be in 0..255"),
        (X[0], Y, {}, "shape"),
        (X, Y[:5], {}, "6 images, 5 labels"),
        (X, Y * 2, {}, "class '1' has 0 images"),
        (X, Y - 1, {}, "labels -1..0"),
        (X, Y + 0.5, {}, "not whole numbers"),
        (X, Y, dict(names=["a"]), r"must be in 0..0"),
        (X, Y, dict(test_share=1.0), "test_share=1.0"),
        (X[:0], Y[:0], {}, "0 images"),
        (X, Y, dict(x_test=X), "x_test without y_test"),
        (X, Y, dict(x_test=X[:, :3], y_test=Y), "one size"),
        (X, Y * 2, dict(x_test=X, y_test=Y), "class '1' has no"),
        (X, Y, dict(x_test=X, y_test=Y + 5), "test labels 5..6"),
        (np.zeros((6, 4, 4, 5), np.uint8), Y, {}, "1 or 3"),
    ],
)
def test_arrays_that_do_not_fit(x, y, more, words):
    with pytest.raises(ValueError, match=words):
        from_arrays(x, y, **more)


def test_folder(tmp_path):
    for part, n in (("train", 4), ("test", 2)):
        for k in "ba":
            (tmp_path / part / k).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (10, 10), (i, ord(k), 0)).save(tmp_path / part / k / f"{i}.png")
    d = from_folder(tmp_path)
    assert d.names == ["a", "b"] and d.x.shape == (8, 3, 10, 10) and len(d.x_test) == 4
    assert d.x[0, 1, 0, 0] == ord("a") and d.y.tolist() == [0] * 4 + [1] * 4
    assert from_folder(tmp_path, size=8, grey=True).x.shape == (8, 1, 8, 8)
    Image.new("RGB", (9, 10)).save(tmp_path / "train" / "a" / "odd.png")
    with pytest.raises(ValueError, match="odd.png.*pass size="):
        from_folder(tmp_path)
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "train" / "a" / "odd.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="odd.png: not a whole image"):
        from_folder(tmp_path)
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "a" / "odd.png").unlink()
    with pytest.raises(ValueError, match="c: no image"):
        from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="0 sub-folders"):
        from_folder(tmp_path / "train" / "c")


def test_dataset():
    x, y = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8), torch.arange(30) % 3
    tensors = torch.utils.data.TensorDataset(x / 255, y)
    d = from_dataset(tensors, tensors)
    assert torch.equal(d.x, x) and torch.equal(d.y, y) and d.title == "TensorDataset"
    pil = [(Image.fromarray(a[0].numpy()), int(b)) for a, b in zip(x, y)]
    assert torch.equal(from_dataset(pil, pil).x, x)
    with pytest.raises(ValueError, match="sample 0: not"):
        from_dataset([1, 2])
    with pytest.raises(ValueError, match="empty"):
        from_dataset([])
    with pytest.raises(ValueError, match="sample 1.*resize"):
        from_dataset([(x[0], 0), (x[0, :, :3], 1)])


def idx(array: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def fashion_files(folder: Path, n: int = 20) -> dict[str, np.ndarray]:
    parts = {
        f"{half}-{kind}-ubyte": a
        for half in ("train", "t10k")
        for kind, a in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(n) % 10).astype(np.uint8)),
        )
    }
    for name, a in parts.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(a)))
    return parts


def test_fashion_files(tmp_path):
    parts = fashion_files(tmp_path)
    d = fashion_mnist(tmp_path)
    assert (
        np.array_equal(d.x[:, 0].numpy(), parts["train-images-idx3-ubyte"])
        and d.names[9] == "ankle boot"
    )
    name = tmp_path / "train-images-idx3-ubyte.gz"
    whole = name.read_bytes()
    name.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        fashion_mnist(tmp_path)
    name.write_bytes(gzip.compress(idx(parts["train-images-idx3-ubyte"])[:-7]))
    with pytest.raises(ValueError, match="announced"):
        fashion_mnist(tmp_path)
    name.write_bytes(gzip.compress(b"nonsense"))
    with pytest.raises(ValueError, match="not an idx file"):
        fashion_mnist(tmp_path)
    name.unlink()
    with pytest.raises(FileNotFoundError, match="train-images.*missing"):
        fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="apt install"):
        fashion_mnist(tmp_path / "absent")


def test_real_fashion_mnist():
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is missing")
    d = fashion_mnist()
    assert d.x.shape == (60000, 1, 28, 28) and torch.bincount(d.y).tolist() == [6000] * 10
    assert d.y[:5].tolist() == [9, 0, 0, 3, 0] and d.y_test[:5].tolist() == [9, 2, 1, 1, 6]


def cifar_files(folder: Path, ending: str, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    x, y = rng.integers(0, 256, (6, n, 3072), dtype=np.uint8), np.arange(n) % 10
    folder.mkdir()
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        if ending:
            raw = np.concatenate([y[:, None].astype(np.uint8), x[i]], 1).tobytes()
        else:
            raw = pickle.dumps(
                {b"data": x[i], b"labels": y.tolist(), b"batch_label": b"one"}, protocol=2
            )
        (folder / (name + ending)).write_bytes(raw)
    return x, y


@pytest.mark.parametrize("ending", ["", ".bin"])
def test_official_cifar(tmp_path, ending):
    folder = tmp_path / ("cifar-10-batches-bin" if ending else "cifar-10-batches-py")
    x, y = cifar_files(folder, ending)
    d = cifar10(tmp_path)
    assert np.array_equal(d.x.numpy(), x[:5].reshape(-1, 3, 32, 32)) and d.title == "CIFAR-10"
    assert np.array_equal(d.x_test.numpy(), x[5].reshape(-1, 3, 32, 32)) and d.y[:12].tolist() == [
        *range(10),
        0,
        1,
    ]
    third = folder / f"data_batch_3{ending}"
    third.write_bytes(third.read_bytes()[:-100])
    with pytest.raises(ValueError, match="data_batch_3"):
        cifar10(folder)
    third.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3.*missing"):
        cifar10(folder)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("should-not-exist",)


def test_a_pickle_that_wants_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar_files(tmp_path / "cifar", "")
    (tmp_path / "cifar" / "data_batch_1").write_bytes(
        pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2)
    )
    with pytest.raises(ValueError, match="data_batch_1.*mkdir"):
        cifar10(tmp_path / "cifar")
    assert not (tmp_path / "should-not-exist").exists()


def test_python_two_pickles_are_read():
    "As the official files were written: Python 2, protocol 2, strings for bytes"
    arrays = images._ArraysOnly(
        io.BytesIO(
            b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
            b"\x87Rq\x04(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89U\x03\x01\x02\x03tbu."
        ),
        encoding="bytes",
    ).load()
    assert arrays[b"data"].tolist() == [[1, 2, 3]]


def test_cifar_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFFI_LAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="cs.toronto.edu"):
        cifar10()
    (tmp_path / "x.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(ValueError, match="x.npz: not a whole packed"):
        cifar10(tmp_path / "x.npz")


def test_packed_cifar():
    path = data / "cifar10_jpeg_15k_4k.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing (set DEFFI_LAB_DATA)")
    d = cifar10(path)
    assert d.x.shape == (15000, 3, 32, 32) and torch.bincount(d.y_test).tolist() == [400] * 10
    assert (
        "re-encoded" in d.title
        and d.names[0] == "airplane"
        and 100 < float(d.x[:500].float().mean()) < 140
    )


# ---- faults of a set


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first, refuses the second
def test_an_image_of_too_many_pixels_is_named(tmp_path, side):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "b" / "1.pgm").write_bytes(f"P5 {side} {side} 255\n".encode())
    words = rf"b.1\.pgm: {side**2:,} pixels, at most [\d,]+ are read: .*MAX_IMAGE_PIXELS"
    with pytest.raises(ValueError, match=words):
        from_folder(tmp_path)


def test_heart_slices_of_too_many_pixels_are_named_too(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p_1.png").write_bytes(b"P5 20000 20000 255\n")
    with pytest.raises(ValueError, match="p_1.png: 400,000,000 pixels"):
        png_folder(tmp_path / "images", tmp_path / "masks")


def test_one_class_is_refused_at_once():
    x, y = np.zeros((6, 8, 8), np.uint8), np.zeros(6, int)
    with pytest.raises(ValueError, match=r"1 class \['0'\]: at least 2 are needed"):
        from_arrays(x, y)
    with pytest.raises(ValueError, match=r"1 class \['cat'\]"):
        from_arrays(x, y, x, y, names=["cat"])
    assert from_arrays(x, y + [0, 1, 0, 1, 0, 1]).n_classes == 2


def test_data_files_are_looked_for_where_users_put_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEFFI_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEFFI_LAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="x.npz or .*cache.*set DEFFI_LAB_DATA.*or use y"):
        data_file(None, "x.npz", "y")
    for folder in ("cache", "data", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.npz").write_bytes(b"")
        if folder == "mine":
            monkeypatch.setenv("DEFFI_LAB_DATA", str(tmp_path / folder))
        assert data_file(None, "x.npz", "y").resolve() == tmp_path / folder / "x.npz"
    with pytest.raises(FileNotFoundError, match="^no.npz: missing; name the file"):
        data_file("no.npz", "x.npz", "y")
