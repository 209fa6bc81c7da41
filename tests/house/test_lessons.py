"A lesson holds ideas: little code, no measured number in its prose, and it runs anywhere"

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "nbs/lessons").glob("*.ipynb"))
CELL, LESSON = 10, 30  # lines of code: in a cell, in all without imports
named = {"ids": lambda p: p.stem}


def sources(path: Path, kind: str) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def code_lines(source: str) -> list[str]:
    return [ln for ln in source.splitlines() if ln.strip() and not ln.lstrip().startswith("#")]


@pytest.mark.parametrize("path", LESSONS, **named)
def test_a_lesson_has_little_code(path):
    cells = [code_lines(s) for s in sources(path, "code")]
    assert max(map(len, cells)) <= CELL
    own = [ln for c in cells for ln in c if not ln.startswith(("from ", "import "))]
    assert len(own) <= LESSON, f"{len(own)} lines"


def prose(source: str) -> str:
    "Markdown without formulas, code, links, references"
    text = re.sub(r"\$\$.*?\$\$|\$.*?\$|`.*?`|\]\(.*?\)", " ", source, flags=re.S)
    return re.sub(r"(arXiv|doi):\S+|arXiv:?\s*\d+\.\d+", " ", text)


@pytest.mark.parametrize("path", LESSONS, **named)
def test_no_measured_decimal_is_typed_in_prose(path):
    decimals = [d for s in sources(path, "markdown") for d in re.findall(r"\d*\.\d+", prose(s))]
    assert not decimals, "render it from the ledger: show.lesson.verdicts"


@pytest.mark.parametrize("path", LESSONS, **named)
def test_each_lesson_renders_its_verdicts_with_controls(path):
    """What verdicts printed stands in the notebook, with the control in grey"""
    outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
    shown = ["".join(o["data"].get("text/markdown", "")) for o in outputs if "data" in o]
    assert [s for s in shown if "Against its control" in s and "<span style=" in s]


@pytest.mark.parametrize("path", LESSONS, **named)
def test_no_lesson_reaches_out_of_the_package(path):
    assert not re.search(r"sys\.path|import bench|from bench", "\n".join(sources(path, "code")))


def test_the_first_lesson_runs_outside_a_checkout(tmp_path):
    """With nothing but the package as it is installed, in an empty folder"""
    site, work = tmp_path / "site", tmp_path / "work"
    shutil.copytree(ROOT / "deffi_lab", site / "deffi_lab")
    work.mkdir()
    program = (
        "\n".join(sources(LESSONS[0], "code")) + "\nimport deffi_lab; print(deffi_lab.__file__)"
    )
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=work, env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.strip().splitlines()[-1].startswith(str(site))
    assert not list(work.iterdir())
