"""How long the whole of `make test` takes where the environment is ready: `test_seconds`.

Run it on a machine that does nothing else. A test that fails ends the bench without a row.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

root = Path(__file__).resolve().parents[2]


def rows() -> Iterator[dict]:
    """One row: seconds of style, notebooks and tests together"""
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTEST", "JOBS")
    env = {k: v for k, v in os.environ.items() if k not in inherited}
    subprocess.run(["make", "setup"], cwd=root, env=env, check=True)
    began = time.perf_counter()
    subprocess.run(["make", "test"], cwd=root, env=env, check=True)
    seconds = time.perf_counter() - began
    jobs = f"{os.cpu_count()} cores, two processes"
    yield dict(name="test_seconds", ours=seconds, unit="s", n=1, note=f"make test, {jobs}")
