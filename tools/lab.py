"""Opens a notebook of nbs/ in JupyterLab, or as a page
without code by Voila; loopback only, with a token."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def command(notebook: str, port: int, voila: bool, browser: bool) -> list[str]:
    "The server's command line"
    quiet = [] if browser else ["--no-browser"]
    if voila:
        return [
            sys.executable,
            "-m",
            "voila",
            f"--port={port}",
            "--Voila.ip=127.0.0.1",
            "--token",
            "--VoilaConfiguration.file_allowlist=.*\\.(png|svg)",
            *quiet,
            str(root / "nbs" / notebook),
        ]
    return [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--ServerApp.root_dir={root / 'nbs'}",
        "--LabApp.news_url=None",
        *quiet,
        f"--LabApp.default_url=/lab/tree/{notebook}",
    ] + (["--allow-root"] if os.geteuid() == 0 else [])


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("notebook", help="path below nbs/")
    p.add_argument("--port", type=int, default=8888)
    p.add_argument("--voila", action="store_true")
    p.add_argument("--no-browser", action="store_true", help="only print the address")
    a = p.parse_args()
    if not (root / "nbs" / a.notebook).exists():
        print(
            f"no notebook {a.notebook!r} below nbs/: name one as in "
            f"lessons/01_selection_boosting.ipynb"
        )
        return 2
    try:
        return subprocess.call(command(a.notebook, a.port, a.voila, not a.no_browser), cwd=root)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
