"""Runs the benches and writes bench/results/<machine>.json: versions, machine and one row a
measurement.

python bench/run.py                  # all of them
python bench/run.py neighbours       # some of them, by name; the other rows of the file are kept
"""

import importlib
import json
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

here = Path(__file__).resolve().parent
sys.path[:0] = [str(p) for p in (here, *sorted(here.glob("*/"))) if str(p) not in sys.path]

from common import RESULTS, Row, machine  # noqa: E402

PACKAGES = ("deffi_lab", "torch", "numpy", "scikit-learn", "jupyterlab", "anywidget")
LAST = ("test_seconds",)  # takes minutes and wants the machine for itself


def places() -> dict[str, Path]:
    "Every bench and study by its short name, chapter after chapter"
    return {p.stem: p for p in sorted(here.glob("*/*.py"))}


def load(name: str) -> ModuleType:
    "A bench by its short name; its folder is on the path, so that worker processes find it too"
    return importlib.import_module(name)


def slug(text: str) -> str:
    "A file name"
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def keep(measured: list[Row]) -> None:
    "Writes rows into the file of this machine, where its other rows stay"
    about = machine()
    path = RESULTS / f"{slug(about['name'])}.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {r["name"]: Row(**r) for r in old} | {r.name: r.stamped() for r in measured}
    versions = {p: version(p) for p in PACKAGES}
    doc = {"machine": about, "versions": versions, "rows": [asdict(r) for r in rows.values()]}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(doc, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def main(names: list[str]) -> int:
    "Measures, and writes after each bench"
    there = {n: p for n, p in places().items() if "def rows(" in p.read_text()}
    if unknown := sorted(set(names) - set(there)):
        print(f"no bench {unknown}: choose from {sorted(there)}")
        return 2
    for name in names or sorted(there, key=lambda n: n in LAST):
        t = time.time()
        measured = [r if isinstance(r, Row) else Row(**r) for r in load(name).rows()]
        for row in measured:
            short = lambda v: f"{v:.4g}" if isinstance(v, float) else v
            fields = asdict(row.stamped()).items()
            print(*(f"{k}={short(v)}" for k, v in fields if v not in (None, "")))
        print(f"# {name}: {time.time() - t:.0f} s", flush=True)
        keep(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
