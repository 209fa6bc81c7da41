"""Fails when the exported modules differ from the
notebooks, or a notebook is not fit to be committed."""

import filecmp
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def exported(into: Path) -> Path:
    "The library as the notebooks export it, in a folder of its own"
    shutil.copytree(root / "nbs", into / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(root / name, into / name)
    (into / "deffi_lab").mkdir()
    shutil.copy(root / "deffi_lab" / "__init__.py", into / "deffi_lab" / "__init__.py")
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=into, check=True)
    return into / "deffi_lab"


def differences() -> list[str]:
    "Modules that are not what their notebook exports, or have none"
    with tempfile.TemporaryDirectory() as tmp:
        fresh = exported(Path(tmp))
        names = {
            p.relative_to(d)
            for d in (fresh, root / "deffi_lab")
            for p in d.rglob("*.py")
            if p.name not in ("__init__.py", "_modidx.py")
        }
        return [
            f"deffi_lab/{n} differs from its notebook: run nbdev_export (or nbdev_update, if the "
            f"module is right)"
            for n in sorted(names)
            if not (
                (fresh / n).exists()
                and (root / "deffi_lab" / n).exists()
                and filecmp.cmp(fresh / n, root / "deffi_lab" / n, shallow=False)
            )
        ]


def unclean() -> list[str]:
    "Notebooks that carry widget state, an error or an unrun code cell"
    out = []
    for p in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in p.parts:
            continue
        nb = json.loads(p.read_text(encoding="utf-8"))
        if "widgets" in nb["metadata"]:
            out.append(f"{p.relative_to(root)}: carries widget state: run make nb")
        kinds = {
            o["output_type"] for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]
        }
        if "error" in kinds:
            out.append(f"{p.relative_to(root)}: an output is an error: run make nb")
    return out


if __name__ == "__main__":
    problems = differences() + unclean()
    print("\n".join(problems) or "notebooks and modules agree")
    sys.exit(bool(problems))
