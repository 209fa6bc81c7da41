"The doctor tells what is there, and what to do where something is not"

import importlib.metadata
import subprocess
import sys

import pytest

from deffi_lab import cli


def test_doctor_fits_one_screen_and_is_healthy_here():
    text, healthy = cli.doctor()
    assert healthy and len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 110
    for word in ("torch", "device", "memory", "canvas.js", "mnist.npz"):
        assert word in text


def test_missing_package_is_named_with_the_way_out(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "plotly":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(cli, "version", version)
    text, healthy = cli.doctor()
    assert not healthy and "missing: pip install plotly" in text
    assert cli.main(["doctor"]) == 1


def test_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(cli, "ASSETS", ("assets/no_such_file.npz",))
    text, healthy = cli.doctor()
    assert not healthy and "no_such_file.npz" in text and "install the package again" in text


def test_unknown_command_is_refused():
    with pytest.raises(SystemExit):
        cli.main(["cure"])


def test_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, "-m", "deffi_lab.cli", "version"], capture_output=True, text=True
    )
    assert out.stdout.strip() == importlib.metadata.version("deffi_lab")
