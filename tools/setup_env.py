"""Fills the environment that runs this file: the pinned
torch first, then everything else with its extras.

`CPU=1` in the environment takes torch's CPU build from its own index, `TORCH_CPU_INDEX` names
another one.
"""

import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

root = Path(__file__).resolve().parents[1]
pins = root / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = "dev,voila,active,dask,segment,heart,brain"
QUIET = ("-q", "--disable-pip-version-check")


def pinned(name: str) -> str:
    """The line of constraints.txt for a package, such as "torch==2.13.0" """
    return next(line for line in pins.read_text().split() if line.startswith(f"{name}=="))


def on(environ: Mapping[str, str]) -> bool:
    """Whether the CPU build is asked for"""
    return environ.get("CPU", "") not in ("", "0")


def torch_words(environ: Mapping[str, str]) -> list[str]:
    """What follows `pip install` for torch: the pin alone, or the pin from the CPU index"""
    if not on(environ):
        return [pinned("torch")]
    index = environ.get("TORCH_CPU_INDEX") or CPU_INDEX
    return ["--retries", "1", "--index-url", index, pinned("torch")]


def driver() -> bool:
    """Whether this machine has an NVIDIA driver"""
    return bool(
        shutil.which("nvidia-smi")
        or Path("/proc/driver/nvidia").exists()
        or ctypes.util.find_library("cuda")
    )


def advice(environ: Mapping[str, str], system: str, has_driver: bool, installed: bool) -> str:
    """One line for Linux without a driver, where torch from PyPI brings gigabytes of CUDA"""
    if on(environ) or has_driver or installed or not system.startswith("linux"):
        return ""
    return (
        "deffi_lab: no NVIDIA driver was found: CPU=1 (make lab CPU=1) installs torch without "
        "CUDA, which is smaller by gigabytes"
    )


def pip(*words: str, capture: bool = False) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "install", *QUIET, *words]
    return subprocess.run(command, cwd=root, capture_output=capture, text=True)


def install_torch(environ: Mapping[str, str]) -> None:
    """Installs torch; ends with one line when the CPU build cannot be had"""
    words = torch_words(environ)
    done = pip(*words, capture=on(environ))
    if done.returncode and on(environ):
        sys.exit(
            f"deffi_lab: {words[-1]} for the CPU could not be installed from {words[-2]}: name "
            f"another index (TORCH_CPU_INDEX=https://...), or leave CPU=1 out"
        )
    done.check_returncode()


def no_news() -> None:
    """JupyterLab asks nobody about news on its first screen"""
    settings = Path(sys.prefix) / "share/jupyter/lab/settings"
    settings.mkdir(parents=True, exist_ok=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    plugin = "@jupyterlab/apputils-extension:notification"
    (settings / "overrides.json").write_text(json.dumps({plugin: quiet}))


def main() -> None:
    print(f"deffi_lab: setting up {sys.prefix} (a few minutes the first time)", flush=True)
    installed = importlib.util.find_spec("torch") is not None
    if line := advice(os.environ, sys.platform, driver(), installed):
        print(line, flush=True)
    install_torch(os.environ)
    pip("-c", str(pins), "-e", f".[{EXTRAS}]").check_returncode()
    no_news()
    print("deffi_lab: ready", flush=True)


if __name__ == "__main__":
    main()
