"CONTRIBUTING: its method of a few lines runs end to end, its picture names what is there"

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from deffi_lab.core.run import Run
from deffi_lab.core.step import Step
from deffi_lab.show.lab import Lab
from deffi_lab.show.layers import Curves
from deffi_lab.show.render.canvas import decode, encode
from deffi_lab.show.render.plotly import to_plotly

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)


@pytest.fixture
def lab():
    names = {}
    exec(next(code for kind, code in BLOCKS if kind == "python"), names)
    yield names["lab"]
    names["lab"].run.close()


def curve(scene) -> Curves:
    return scene.panels[0].layers[0]


def test_a_method_of_a_few_lines_runs_to_its_end(lab):
    assert lab.run.run().status == "finished"
    assert lab.run.last.index == 199 and lab.run.last.phase == "descend"
    np.testing.assert_allclose(lab.run.method.path[:3], [4.0, 3.2, 2.56])
    assert len(lab.run.history.series("x")) > 100


def test_its_picture_is_drawn_by_all_three_renderers(lab):
    lab.run.run(5)
    scene = lab.scene()
    np.testing.assert_allclose(curve(scene).y, lab.run.method.path)
    head, buffers = encode(scene)
    layers = [la for panel in decode(head, buffers).values() for la in panel]
    np.testing.assert_allclose(layers[0]["y"], lab.run.method.path)
    np.testing.assert_allclose(to_plotly(scene).data[0].y, lab.run.method.path)
    drawn = lab.figure().axes[0].lines[0]
    np.testing.assert_allclose(drawn.get_ydata(), lab.run.method.path)


def test_its_knob_is_on_the_screen_and_turns_while_it_runs(lab):
    assert list(lab.knobs) == ["rate"]
    lab.run.run(3)
    before = lab.run.method.path[-1]
    lab.knobs["rate"].value = 0.5  # goes straight to the minimum
    lab.run.run(1)
    assert before != 0 and lab.run.method.path[-1] == 0
    with pytest.raises(ValueError, match=r"rate=2: must be in 0.01..1.2"):
        lab.run.set("rate", 2).result(5)


def test_it_is_reset(lab):
    lab.run.run(3)
    lab.run.reset()
    assert lab.run.method.path == [4.0] and lab.run.status == "idle"
    assert lab.run.run(2).last.index == 2


def test_the_class_has_no_more_than_ten_lines():
    code = next(code for kind, code in BLOCKS if kind == "python")
    body = code.split("class Descent:\n")[1].split("\n\n\n")[0].splitlines()
    assert len(body) <= 6, "knobs, reset and four lines of a loop"


def names() -> set[str]:
    "Modules and folders of the library"
    paths = (ROOT / "deffi_lab").rglob("*.py")
    return {p.stem for p in paths} | {p.parent.name for p in (ROOT / "deffi_lab").rglob("*.py")}


def test_the_picture_of_the_architecture_fits_a_screen_and_names_what_is_there():
    picture = next(code for kind, code in BLOCKS if not kind)
    lines = picture.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 110
    words = set(re.findall(r"[a-z]+", re.sub(r"\(.*?\)", "", picture))) - {"door"}
    assert words <= names(), words - names()
    chapters = {p.name for p in (ROOT / "deffi_lab/methods").iterdir() if p.is_dir()}
    assert chapters - {"__pycache__"} <= words


def test_the_words_are_about_forty_with_a_line_each():
    table = TEXT[TEXT.index("## Words") : TEXT.index("## Edit a notebook")]
    rows = re.findall(r"^\| (\w[^|]*) \| ([^|]+) \|$", table, re.M)
    assert 35 <= len(rows) <= 55
    assert [w for w, _ in rows] == sorted((w for w, _ in rows), key=str.lower)
    assert max(len(meaning) for _, meaning in rows) <= 100
    for word in "prediction metrics rng run lane probe pool oracle strategy view control".split():
        assert word in {w for w, _ in rows}, word


def test_a_step_is_its_number_its_phase_and_its_metrics_and_a_lab_draws(lab):
    """The picture is the lab's; without draw= it runs, and refuses where a picture is asked for"""
    assert [f.name for f in fields(Step)] == ["index", "phase", "metrics"]
    blind = Lab(Run(type(lab.run.method)(), name="blind"))
    assert blind.run.run(3).last.index == 3 and blind.error.value == ""
    with pytest.raises(ValueError, match="draw=None: the lab has no picture"):
        blind.scene()


def test_the_commands_and_files_that_it_names_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    spans = re.findall(r"`([^`\n]+)`", TEXT)
    called = {m for span in spans for m in re.findall(r"^make ([a-z]+)", span)}
    assert {"lint", "hooks", "test", "results", "film"} <= called <= targets, called - targets
    words = {word for span in spans for word in span.split()}
    examples = re.compile(r"[…<*=]|^deffi_lab/x\.py$|^\.(scratch|venv)/")
    files = {w for w in words if re.search(r"\.(py|md|ini|txt|yml)$", w) and not examples.search(w)}
    assert not {f for f in files if not (ROOT / f).exists()}
    assert {"tools/wheels.py", "tests/typed.py", "bench/run.py", "bench/study.py"} <= files
