"""Round trip of one notebook edited as text: `.scratch/x.py` -> `nbs/x.ipynb`, run, cleaned,
exported.

    python tools/nb.py nbs/0_core/00_core.ipynb           # build (from .scratch if a text is there)
    and run
    python tools/nb.py --text nbs/0_core/00_core.ipynb    # write the notebook's text into .scratch
    python tools/nb.py --refresh nbs/0_core/00_core.ipynb # run it again as it is and keep the fresh
    outputs

The text is never the source: it is a way of editing, and the notebook is what is committed.
"""

import argparse
import base64
import fcntl
import io
import re
import sys
from pathlib import Path

import nbformat
from execnb.nbio import read_nb, write_nb
from jupytext import read as read_text
from jupytext import write as write_text
from nbclient import NotebookClient
from nbdev.clean import clean_nb
from nbdev.export import nb_export
from PIL import Image

root = Path(__file__).resolve().parents[1]


def text_of(nb: Path) -> Path:
    "Where the text of a notebook lies while it is being edited"
    return root / ".scratch" / nb.resolve().relative_to(root / "nbs").with_suffix(".py")


def build(nb: Path, from_text: bool = True, timeout: int = 600) -> None:
    "Text to notebook, then run it, scrub machine paths and times, clean it and export its module"
    src = text_of(nb)
    if from_text and src.exists():
        book = read_text(src, fmt="py:percent")
    else:
        book = nbformat.read(nb, as_version=4)
    book.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    )
    for cell in book.cells:
        if re.search(r"^#\|\s*eval:\s*false", cell.source, re.M):
            cell.metadata["tags"] = ["skip-execution"]
    export(book, nb)  # the notebook may import what it has just defined
    NotebookClient(
        book,
        timeout=timeout,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(nb.parent)}},
    ).execute()
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("tags", None)
        for o in cell.get("outputs", []):
            if "image/png" in o.get("data", {}):
                o["data"]["image/png"] = smaller(o["data"]["image/png"])
    nb.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, nb)
    cleaned = read_nb(nb)
    clean_nb(cleaned)
    write_nb(cleaned, nb)
    kb = nb.stat().st_size / 1024
    print(f"{nb.relative_to(root)}: {len(book.cells)} cells, {kb:.0f} KB")


def smaller(png: str) -> str:
    """The same picture in 256 colours (base64), where
    that is smaller: a committed notebook has 300 KB"""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(
        small, "PNG", optimize=True
    )
    return min(png, base64.b64encode(small.getvalue()).decode(), key=len)


def export(book, nb: Path) -> None:
    "Write the notebook unrun and export it under a lock, since several may be built at once"
    nb.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, nb)
    if not any(re.search(r"^#\|\s*default_exp", c.source, re.M) for c in book.cells):
        return
    (root / ".scratch").mkdir(exist_ok=True)
    with open(root / ".scratch" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        nb_export(nb, lib_path=root / "deffi_lab")
        for folder in (root / "deffi_lab").rglob("*.py"):
            init = folder.parent / "__init__.py"
            if not init.exists():
                init.write_text("")


def main() -> int:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("notebook", type=Path, nargs="+")
    p.add_argument("--text", action="store_true", help="notebook to text, nothing is run")
    p.add_argument("--refresh", action="store_true", help="run the notebook as it is")
    a = p.parse_args()
    for nb in a.notebook:
        nb = nb.resolve()
        if a.text:
            text_of(nb).parent.mkdir(parents=True, exist_ok=True)
            write_text(nbformat.read(nb, as_version=4), text_of(nb), fmt="py:percent")
            print(text_of(nb).relative_to(root))
        else:
            build(nb, from_text=not a.refresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
