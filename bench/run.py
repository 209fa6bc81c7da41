"""Runs the benches and writes bench/results/<machine>.json: versions, machine and one row a
measurement.

python bench/run.py                  # all of them
python bench/run.py neighbours       # some of them; the other rows of the file are kept
"""

import importlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

here = Path(__file__).resolve().parent
BENCHES = [
    "first_map",
    "vae_throughput",
    "neighbours",
    "live_overhead",
    "pause",
    "boosting",
    "query",
    "ledger",
    "workers",
    "study_speed",
    "stopping",
    "labels",
    "agents",
    "signed_distance",
    "pairs",
    "dense_vs_patch",
    "labelling",
    "growth",
    "block_memory",
    "blockwise",
    "tests",
]
KEYS = ("name", "ours", "peer", "unit", "ratio", "low", "high", "n", "note")


def machine() -> dict:
    "What the figures were measured on"
    import torch

    model = (
        next(
            (
                ln.split(":")[1].strip()
                for ln in Path("/proc/cpuinfo").read_text().splitlines()
                if ln.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else ""
    )
    name = (
        torch.cuda.get_device_name(0)
        if torch.cuda.is_available()
        else f"{os.cpu_count()}-core {model or 'cpu'}"
    )
    return {
        "name": name,
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def main(names: list[str]) -> int:
    sys.path.insert(0, str(here))
    unknown = set(names) - set(BENCHES)
    if unknown:
        print(f"no bench {sorted(unknown)}: choose from {BENCHES}")
        return 2
    about = machine()
    path = here / "results" / f"{slug(about['name'])}.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {r["name"]: r for r in old}
    for name in names or BENCHES:
        t = time.time()
        for row in importlib.import_module(name).rows():
            rows[row["name"]] = {k: row.get(k) for k in KEYS}
            show = "  ".join(
                f"{k}={row.get(k):.4g}" if isinstance(row.get(k), float) else f"{k}={row.get(k)}"
                for k in KEYS
                if row.get(k) is not None
            )
            print(show, flush=True)
        print(f"# {name}: {time.time() - t:.0f} s", flush=True)
        versions = {
            p: version(p)
            for p in ("deffi_lab", "torch", "numpy", "scikit-learn", "jupyterlab", "anywidget")
        }
        doc = {"machine": about, "versions": versions, "rows": list(rows.values())}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(doc, indent=1) + "\n")
        part.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
