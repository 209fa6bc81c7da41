"The wheel brings the package with its JavaScript, data and weights, outside the checkout"

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from deffi_lab import __version__

root = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("wheel")
    src = tmp / "src"
    shutil.copytree(
        root,
        src,
        ignore=shutil.ignore_patterns(
            ".venv",
            ".git",
            ".scratch",
            "build",
            "dist",
            "*.egg-info",
            "__pycache__",
            ".hypothesis",
            ".pytest_cache",
        ),
    )
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp / "dist", src],
        check=True,
        capture_output=True,
    )
    return next((tmp / "dist").glob("*.whl"))


def test_wheel_holds_code_scripts_data_and_weights(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for ending in (
        ".js",
        "mnist.npz",
        "MNIST.md",
        "deffi_lab/py.typed",
        "vae_mnist_2.safetensors",
        "vae_mnist_16.safetensors",
        "methods/selection/boosting.py",
        "labs/selection/boosting.py",
    ):
        assert any(n.endswith(ending) for n in names), ending
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "bench/", "tools/"))]


def test_installed_wheel_draws_a_map_outside_the_checkout(wheel, tmp_path):
    venv.create(
        tmp_path / "env", with_pip=True
    )  # a clean environment; the heavy wheels are borrowed by path
    py = tmp_path / "env" / "bin" / "python"
    subprocess.run([py, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    code = (
        "import deffi_lab, sys; from deffi_lab.data.images import mnist;"
        "from deffi_lab.nets.vae import reference_vae, latents; d = mnist();"
        "z = latents(reference_vae(2), d.x[:64]); print(deffi_lab.__file__, tuple(d.x.shape), "
        "tuple(z.shape));"
        "from importlib.resources import files;"
        "assert 'render' in (files('deffi_lab') / 'static' / 'canvas.js').read_text()"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run([py, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert str(site) in out.stdout and "(60000, 1, 28, 28) (64, 2)" in out.stdout
    out = subprocess.run(
        [tmp_path / "env" / "bin" / "deffi-lab", "doctor"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0 and f"deffi_lab {__version__}" in out.stdout, out.stdout + out.stderr
