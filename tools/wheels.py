"""Checks that each version in constraints.txt has a wheel for each Python that settings.ini names.

python tools/wheels.py               # asks pip's index; nothing is installed (about a minute)
python tools/wheels.py 3.13          # one Python only
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / "tools"))
from python import named  # noqa: E402

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def command(pins: list[str], python: str, report: Path) -> list[str]:
    """The dry run of pip that looks for a wheel of each pin on Linux"""
    platforms = [word for p in PLATFORMS for word in ("--platform", p)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    dry = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"]
    to = ["--target", str(report.parent / "nowhere"), "--report", str(report)]
    return [*pip, *dry, *to, "--python-version", python, *platforms, *pins]


def have(pins: list[str], python: str) -> set[str]:
    """The pins that have a wheel for this Python: all in one question, else one by one"""
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp) / "report.json"
        done = subprocess.run(command(pins, python, report), capture_output=True, text=True)
        if done.returncode == 0:
            wheels = json.loads(report.read_text())["install"]
            assert len(wheels) == len(pins)
            return set(pins)
    return {p for pin in pins for p in have([pin], python)} if len(pins) > 1 else set()


def main(pythons: list[str]) -> int:
    pins = (root / "constraints.txt").read_text().split()
    missing = 0
    for python in pythons or [".".join(map(str, v)) for v in named(root / "settings.ini")]:
        without = sorted(set(pins) - have(pins, python))
        missing += len(without)
        print(f"Python {python}: {len(pins) - len(without)} of {len(pins)} pins have a wheel")
        print("".join(f"  no wheel: {pin}\n" for pin in without), end="", flush=True)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
