"""Fills the environment that runs this file: the pinned
torch first, then everything else with its extras."""

import json
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
pins = root / "constraints.txt"
torch = next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))


def pip(*args: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *args],
        check=True,
        cwd=root,
    )


print(f"deffi_lab: setting up {sys.prefix} (a few minutes the first time)", flush=True)
pip(torch)
pip("-c", str(pins), "-e", ".[dev,voila,active,dask,segment,heart,brain]")
settings = (
    Path(sys.prefix) / "share/jupyter/lab/settings"
)  # no question about news on the first screen
settings.mkdir(parents=True, exist_ok=True)
(settings / "overrides.json").write_text(
    json.dumps(
        {
            "@jupyterlab/apputils-extension:notification": {
                "fetchNews": "false",
                "checkForUpdates": False,
            }
        }
    )
)
print("deffi_lab: ready", flush=True)
