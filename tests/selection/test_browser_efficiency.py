"""The efficiency lab in a real browser, fed with made-up
curves: what a person reads, ticks, moves and saves"""

import csv

import pytest
from browser import LabView, notebook, open_lab, page, run_all, server, shot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

MADE = """
import time
import numpy as np
from deffi_lab.core.step import Step
from deffi_lab.labs.selection.efficiency import efficiency_lab
from deffi_lab.methods.selection.stopping import Advice

BUDGETS = (20, 40, 60, 100, 150, 200, 300, 500)
SPEED = {"random": 1., "margin": 2.2, "badge": 2.6, "typiclust": 1.4}

class Made:
    "Curves of five seeds that saturate at 1; typiclust's seed 3 has failed; works on for as long as it is asked to"
    def __init__(self): self.target = .95; self.reset()
    def reset(self):
        self.done, self.active, self.index = {m: 0 for m in SPEED}, {m: True for m in SPEED}, 0
        self.failures, self.advice = [("typiclust", 3, 100, "ValueError: made up")], {}
    def value(self, m, s, n):
        e = np.random.default_rng([s, n, len(m)]).normal(0, .012)
        return float(1 - .5 * (n * SPEED[m] / 20) ** -.75 * np.exp(4 * e) - .012)
    def runs(self):
        return {m: {s: (BUDGETS[:k], [self.value(m, s, n) for n in BUDGETS[:k]]) for s in range(5)}
                for m, k in self.done.items() if k}
    def __iter__(self):
        while True:
            for m in self.done:
                if self.active[m] and self.done[m] < len(BUDGETS):
                    self.done[m] += 1
                    self.advice[m] = Advice(self.done[m] > 6, .99, "go on: kappa 0.980 < 0.99 over 3 rounds")
                self.index += 1
                time.sleep({wait})
                yield Step(self.index, m, {})
"""  # noqa: E501
LAB = """
from made import *
lab = efficiency_lab(study=Made(), methods=tuple(SPEED), name="browser-efficiency")
lab
"""
DONE = """n => (document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.[0]?.layers ?? [])
    .filter((l) => l.kind === 'curves' && (l.x?.length ?? 0) >= n).length"""


def made(folder, wait):
    "A notebook with the lab, and the module with the made-up study beside it"
    (folder / "made.py").write_text(MADE.replace("{wait}", str(wait)))
    notebook(folder / "lab.ipynb", [LAB])


def title(p, panel=0):
    return p.evaluate(
        "i => document.querySelector('.deffi-canvas').deffi.scene.panels[i].title", panel
    )


def texts(p, panel):
    return p.evaluate(
        """i => document.querySelector('.deffi-canvas').deffi.scene.panels[i].layers
        .filter((l) => l.kind === 'text').map((l) => l.text)""",
        panel,
    )


def names(p):
    return p.evaluate(
        "() => document.querySelector('.deffi-canvas').deffi.scene.panels[0].legend.map((l) => "
        "l[0])"
    )


def wait_curves(p, count, points):
    p.wait_for_function(f"n => ({DONE})(n) >= {count}", arg=points, timeout=60_000)


def test_the_chart_tells_who_needs_fewer_labels(tmp_path):
    made(tmp_path, 0.05)
    with server(tmp_path) as at, page(width=1400, height=900) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        assert title(p) == "nobody has reached 95 % yet" and "no run yet" in texts(p, 1)
        assert names(p) == ["random", "margin", "badge", "typiclust (1 failed)"]
        v.press("start")
        wait_curves(p, 4, 3)
        p.locator(".deffi-method-typiclust input").first.uncheck()
        p.wait_for_function(
            "() => document.querySelector('.deffi-canvas').deffi.scene.panels[0].legend"
            ".some((l) => l[0] === 'typiclust (off, 1 failed)')"
        )
        wait_curves(p, 3, 8)
        p.wait_for_timeout(600)
        assert p.evaluate(f"n => ({DONE})(n)", 8) == 3, (
            "the method switched off was not trained further"
        )
        v.press("pause")
        v.wait_status("paused")
        v.until(lambda: title(p).startswith("badge: ≥"), "a bound is said")
        assert "fewer labels than random for 95 %" in title(p)
        assert any(t.startswith("badge 2") for t in texts(p, 0)), (
            "labels to target are written beside the dot"
        )
        v.canvas.scroll_into_view_if_needed()
        shot(p, "efficiency")

        hover(p, v)
        seq = v.seq
        p.locator(".deffi-target .noUi-handle").first.focus()
        for _ in range(10):
            p.keyboard.press("ArrowLeft")
        v.wait_drawn(seq)
        p.wait_for_function(
            "() => "
            "document.querySelector('.deffi-canvas').deffi.scene.panels[0].title.includes('for "
            "90 %')"
        )
        assert title(p).startswith("badge: 2"), "all that went on arrive at 90 %: no bound any more"
        assert "open" in texts(p, 1), (
            "a method switched off before the target has not won, whatever the bound"
        )
        shot(p, "efficiency_90")

        p.locator("button.deffi-csv").first.click()
        p.wait_for_function(
            "() => document.querySelector('.deffi-status')?.innerText?.includes('saved as')"
        )
        rows = list(csv.DictReader(open(tmp_path / "browser-efficiency.csv")))
        assert {r["method"] for r in rows} == {"random", "margin", "badge", "typiclust"}
        assert (
            sum(r["method"] == "badge" for r in rows) == 5 * 8 and 0 < float(rows[0]["value"]) < 1
        )
        p.locator("button.deffi-keep").first.click()
        p.wait_for_function(
            "() => document.querySelector('.deffi-status')?.innerText?.includes('.html')"
        )
        saved = (tmp_path / "browser-efficiency.html").read_text()
        assert "fewer labels than random" in saved and "<script src" not in saved
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []


def hover(p, v):
    "Pointing at a point of a curve reads it; away from curves nothing is shown"
    i = [n.split(" ")[0] for n in names(p)].index("margin")
    la = v.layer("efficiency", i)
    at_ = p.evaluate(
        """([i, j]) => { const el = document.querySelector('.deffi-canvas'), s = el.deffi.scene.panels[0];
        const b = el.deffi.boxes[0], r = el.getBoundingClientRect(), la = s.layers[i], f = Math.log10;
        return [r.x + b.x + (f(la.x[j]) - f(s.xlim[0])) / (f(s.xlim[1]) - f(s.xlim[0])) * b.w,
                r.y + b.y + b.h - (la.y[j] - s.ylim[0]) / (s.ylim[1] - s.ylim[0]) * b.h]; }""",  # noqa: E501
        [i, 1],
    )
    p.mouse.move(at_[0] + 3, at_[1] + 2)
    read = p.locator(".deffi-read").first
    assert read.is_visible()
    name, x, y = read.inner_text().split("\n")
    assert name == "margin" and x == "labels asked for: 40"
    assert y.startswith(f"accuracy on new images: {la['y'][1]:.4g} (") and ".." in y
    shot(p, "efficiency_hover")
    p.mouse.move(*v.at("efficiency", 0.9, 0.7))
    assert not read.is_visible()


def test_it_fits_a_narrow_page(tmp_path):
    made(tmp_path, 0.002)
    with server(tmp_path, voila="lab.ipynb") as at, page(width=600, height=1400) as p:
        open_lab(p, at, "lab.ipynb")
        v = LabView(p)
        v.wait_drawn(timeout=120_000)
        v.press("start")
        wait_curves(p, 4, 8)
        v.press("pause")
        v.wait_status("paused")
        p.wait_for_timeout(300)
        shot(p, "efficiency_narrow")
        assert p.evaluate("() => document.documentElement.scrollWidth <= innerWidth + 1"), (
            "no sideways scrolling"
        )
        assert p.complaints == []


def test_real_digits_live(tmp_path):
    "The study itself: it trains, the curves rise, a method is switched off, pause is prompt"
    notebook(
        tmp_path / "lab.ipynb",
        [
            """
from deffi_lab.labs.selection.efficiency import efficiency_lab
lab = efficiency_lab(methods=("random", "margin"), budgets=(20, 60, 150, 300), seeds=range(2), target=.8,
                     name="browser-real")
lab
"""  # noqa: E501
        ],
    )
    with server(tmp_path) as at, page(width=1400, height=900) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        v.press("start")
        wait_curves(p, 2, 2)
        v.press("pause")
        v.wait_status("paused", timeout=5_000)
        assert all(
            v.layer("efficiency", i)["y"][1] > v.layer("efficiency", i)["y"][0] for i in range(2)
        )
        v.press("pause")
        v.wait_status("running")
        p.locator(".deffi-method-random input").first.uncheck()
        v.wait_status("finished", timeout=120_000)
        v.until(lambda: len(v.layer("efficiency", 1)["x"]) == 4, "the last points are drawn")
        assert len(v.layer("efficiency", 0)["x"]) < 4
        shot(p, "efficiency_real")
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []
