"""Drawing with the pointer, and the labs of labelling with dynamics, in a real browser."""

import math

import numpy as np
import pytest
from browser import LabView, notebook, open_lab, page, run_all, server, shot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]

DRAWING = """
import itertools, time
import numpy as np
from deffi_lab.core.step import Step
from deffi_lab.core.run import Run
from deffi_lab.show.lab import Lab
from deffi_lab.show.scene import Image, Line, Panel, Points, Scene

class Paper:
    def __init__(self): self.lines, self.clicks = [np.zeros((1, 2))], [(0., 0.)]
    def reset(self): self.__init__()
    def __iter__(self):
        for i in itertools.count(1):
            time.sleep(.005)
            yield Step(i, "wait")

def picture(m):
    paper = [Image(np.full((8, 8), 240, np.uint8)), Points(m.lines[-1], size=4)]
    return Scene([Panel("paper", paper, bare=True, draw=True),
                  Panel("axes", [Points(m.clicks, size=4)], xlim=(-1, 1), ylim=(-1, 1), draw=True)])

lab = Lab(Run(Paper(), name="paper"), picture, on_draw=lambda m, panel, xy: m.lines.append(xy),
          on_click=lambda m, panel, x, y: m.clicks.append((x, y)))
lab
"""
INKED = """([x, y]) => { const c = document.querySelector('.deffi-canvas canvas'), r = c.getBoundingClientRect(),
    d = c.width / r.width, at = [x - r.x, y - r.y].map((v) => Math.round(v * d)),
    p = c.getContext('2d').getImageData(...at, 1, 1).data;
    return [p[0], p[1], p[2]]; }"""  # noqa: E501


def circle(n=40, r=0.3, turns=1.0):
    return [
        (
            0.5 + r * math.cos(2 * math.pi * turns * i / n),
            0.5 + r * math.sin(2 * math.pi * turns * i / n),
        )
        for i in range(n + 1)
    ]


def test_a_line_drawn_freehand(tmp_path):
    notebook(tmp_path / "lab.ipynb", [DRAWING])
    with server(tmp_path) as at, page() as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        seq = v.wait_drawn()
        v.press("start")
        v.wait_status("running")
        v.wait_drawn(seq + 2)
        places = circle()
        p.mouse.move(*v.at("paper", *places[0]))
        p.mouse.down()
        for place in places[1:]:
            p.mouse.move(*v.at("paper", *place), steps=2)
        p.wait_for_timeout(120)
        red, green, blue = p.evaluate(INKED, list(v.at("paper", *places[20])))
        assert red > 180 and green < 60, "there is ink while the button is down, and frames go on"
        shot(p, "freehand_ink")
        seq = v.seq

        def xy(panel, i):
            return np.array(v.layer(panel, i)["xy"]).reshape(-1, 2)

        p.mouse.up()
        v.wait_drawn(seq + 1)
        v.until(lambda: 60 < len(xy("paper", 1)) <= 4000, "the line has come")
        assert abs(np.hypot(*(xy("paper", 1) - 4).T) - 2.4).max() < 0.06, "the line in data units"
        v.click("axes", 0.75, 0.25)
        v.until(
            lambda: len(xy("axes", 0)) and np.abs(xy("axes", 0)[-1] - 0.5).max() < 0.02,
            "a click stays a click",
        )
        v.press("stop")
        v.wait_status("stopped")
        v.draw("paper", circle(12, 0.1))
        v.until(
            lambda: np.hypot(*(xy("paper", 1) - 4).T).max() < 0.95,
            "it arrives where nothing runs, too",
        )
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []


LABELLING = """
from deffi_lab.labs.contours.labelling import labelling_lab
lab = labelling_lab(shape="disc", name="browser-labelling")
lab
"""
TITLE = """([panel, text]) => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find(
    (p) => p.name === panel)?.title?.includes(text)"""
HAS = """([panel, name]) => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find(
    (p) => p.name === panel)?.layers?.some((l) => l.name === name)"""


def named(v, panel, name):
    "A layer by its name"
    i = v.page.evaluate(
        """([panel, name]) => document.querySelector('.deffi-canvas').deffi.scene.panels.find(
        (p) => p.name === panel).layers.findIndex((l) => l.name === name)""",
        [panel, name],
    )
    assert i >= 0, f"no layer {name!r} in {panel}"
    return v.layer(panel, i)


def radii(v, name):
    "Distances of a layer's points from the middle of a 128 px picture"
    return np.hypot(*(np.array(named(v, "label", name)["xy"]).reshape(-1, 2) - 63.5).T)


def test_a_label_drawn_becomes_a_dynamical_system(tmp_path):
    notebook(tmp_path / "lab.ipynb", [LABELLING])
    with server(tmp_path) as at, page(height=1250) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        shot(p, "labelling_idle")
        assert abs(radii(v, "boundary") - 32).max() < 1
        v.press("start")
        v.wait_status("running")
        p.wait_for_timeout(2500)
        shot(p, "labelling_walking")
        p.locator(".deffi-speed select").first.select_option("full speed")
        p.wait_for_function(HAS, arg=["label", "closed orbit"], timeout=90_000)
        shot(p, "labelling_closed")
        assert (
            abs(radii(v, "closed orbit") - 32).max() < 3
            and len(named(v, "cobweb", "the agent")["xy"]) >= 4
        )

        v.draw("label", [(x, 0.5 + 0.8 * (y - 0.5)) for x, y in circle(r=0.35)])
        v.until(lambda: abs(radii(v, "boundary").max() - 44.8) < 2, "the ellipse that was drawn")
        assert abs(radii(v, "boundary").min() - 35.8) < 2
        p.locator(".deffi-draw-mode button").nth(2).click()
        v.draw("label", circle(r=0.12))
        v.until(lambda: radii(v, "boundary").min() < 17, "a hole is cut out")
        shot(p, "labelling_drawn")
        v.draw("label", circle(12, 0.01))
        v.until(
            lambda: "draw around at least 30" in p.locator(".deffi-status").first.inner_text(),
            "too small is said",
        )

        p.locator(".deffi-shape select").first.select_option("disc")
        p.locator(".deffi-knob-scheme select").first.select_option("euler")
        p.wait_for_function(
            "() => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find((p) => "
            "p.name === 'distance')?.layers?.some((l) => l.text?.startsWith('Euler ends'))",
            timeout=30_000,
        )
        p.wait_for_function(HAS, arg=["label", "closed orbit"], timeout=90_000)
        p.wait_for_timeout(6000)
        v.until(
            lambda: 1.5 < np.median(radii(v, "closed orbit")) - 32 < 8,
            "Euler's orbit lies outside",
            60,
        )
        shot(p, "labelling_euler")
        v.press("pause")
        v.wait_status("paused")
        v.click("label", 0.1, 0.2)
        v.until(
            lambda: (
                np.abs(np.array(named(v, "label", "watched agent")["xy"][:2]) - (12.3, 101.9)).max()
                < 1
            ),
            "the watched agent went to the click",
        )
        p.locator(".deffi-shape select").first.select_option("heart (another each time)")
        p.wait_for_timeout(1500)
        v.press("start") if p.locator("button.deffi-start").first.is_enabled() else v.press("pause")
        v.wait_status("running")
        p.wait_for_timeout(2500)
        shot(p, "labelling_heart")
        p.locator("button.deffi-keep").first.click()
        p.wait_for_function(
            "() => document.querySelector('.deffi-status')?.innerText?.includes('saved as')"
        )
        saved = (tmp_path / "browser-labelling.html").read_text()
        assert "return map" in saved and "<script src" not in saved
        v.press("stop")
        v.wait_status("stopped")
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []


TRACER = """
from deffi_lab.labs.contours.tracing import tracer_lab
lab = tracer_lab(labels=5, rival=False, name="browser-tracer")
lab
"""
SCORED = """least => {
    const panels = document.querySelector('.deffi-canvas')?.deffi?.scene?.panels ?? [],
        dice = panels.find((p) => p.name === 'dice')?.layers ?? [],
        score = dice.find((l) => l.name === 'control: its threshold')?.y ?? [];
    return Math.max(0, ...score) > least; }"""


def test_a_tracer_learns_and_traces_from_a_click(tmp_path):
    notebook(tmp_path / "lab.ipynb", [TRACER])
    with server(tmp_path) as at, page(height=1250) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        p.wait_for_function(TITLE, arg=["unseen", "click on the edge"])
        before = v.layer("learnt", 0)["pixels"]
        v.press("start")
        v.wait_status("running")
        p.wait_for_function(SCORED, arg=0.2, timeout=200_000)  # it has learnt something
        assert v.layer("learnt", 0)["pixels"] != before
        expert = np.array(named(v, "unseen", "expert")["xy"]).reshape(-1, 2)
        x, y = expert[expert[:, 0].argmax()]  # the rightmost point of the true edge
        v.click("unseen", (x + 0.5) / 96, 1 - (y + 0.5) / 96)
        p.wait_for_function(
            "() => /1 click: Dice/.test(document.querySelector('.deffi-canvas')?.deffi"
            "?.scene?.panels?.[0]?.title)",
            timeout=20_000,
        )
        shot(p, "tracer_clicked")
        v.press("pause")
        v.wait_status("paused")
        v.until(
            lambda: (
                np.abs(np.array(named(v, "unseen", "your clicks")["xy"][:2]) - (x, y)).max() < 1.5
            ),
            "the click is there",
        )
        x, y = expert[expert[:, 0].argmin()]
        v.click("unseen", (x + 0.5) / 96, 1 - (y + 0.5) / 96)
        p.wait_for_function(
            "() => /2 clicks: Dice/.test(document.querySelector('.deffi-canvas')?.deffi"
            "?.scene?.panels?.[0]?.title)",
            timeout=20_000,
        )
        shot(p, "tracer_two_clicks")
        p.locator(".deffi-slice .noUi-handle").first.focus()
        p.keyboard.press("ArrowRight")
        v.until(
            lambda: named(v, "unseen", "expert")["xy"] != expert.flatten().tolist(), "another slice"
        )
        shot(p, "tracer_other")
        v.press("stop")
        v.wait_status("stopped")
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []
