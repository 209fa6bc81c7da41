"""The labs on real MNIST in a real browser: what a person does with them, from Start to Stop."""

import numpy as np
import pytest
from browser import LabView, notebook, open_lab, page, run_all, server, shot

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]

BOOSTING = """
from deffi_lab.labs.selection.boosting import boosting_lab
lab = boosting_lab(name="browser")
lab
"""
PERSON = """
from deffi_lab.labs.selection.boosting import boosting_lab
lab = boosting_lab(person=True, name="browser-person")
lab
"""
LATENT = """
from deffi_lab.labs.latent.training import latent_lab
lab = latent_lab(latent={latent}, name="browser-latent")
lab
"""
RAISED = """n => { const c = document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find(
    (p) => p.name === 'accuracy')?.layers?.filter((l) => l.kind === 'curves') ?? [];
    return c.length === 2 && c.every((l) => (l.y?.length ?? 0) >= n); }"""


def curves(v):
    return {la["name"]: la["y"] for la in (v.layer("accuracy", i) for i in range(2))}


def test_boosting_from_start_to_stop(tmp_path):
    notebook(tmp_path / "lab.ipynb", [BOOSTING])
    with server(tmp_path) as at, page(height=1200) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        first = v.wait_drawn()
        assert len(v.layer("map", 1)["xy"]) == 10_000 and set(v.layer("map", 1)["label"]) == set(
            range(10)
        )
        before = v.layer("map", 0)["pixels"]
        shot(p, "boosting_idle")
        v.press("start")
        v.wait_status("running")
        v.wait_drawn(first + 2)
        p.wait_for_function(RAISED, arg=3, timeout=150_000)
        rise = curves(v)
        assert set(rise) == {"boosting", "control: at random"}
        assert all(y[0] == rise["boosting"][0] for y in rise.values()), "both have the same start"
        assert all(y[-1] > y[0] + 0.03 for y in rise.values()), rise
        assert v.layer("map", 0)["pixels"] != before, "the regions have moved with the network"
        v.press("pause")
        v.wait_status("paused")
        p.wait_for_timeout(300)
        shot(p, "boosting_paused")
        still = v.index
        v.press("step")
        v.until(lambda: v.index == still + 1, "one step")
        p.wait_for_timeout(500)
        assert v.index == still + 1, "and no more"

        def pixels():
            return np.array(v.layer("one", 0)["pixels"])

        seq = v.seq
        v.click("map", 0.3, 0.3)
        v.wait_drawn(seq)
        v.until(lambda: pixels().size == 28 * 28, "a click decodes")
        p.wait_for_timeout(300)
        digit = pixels()
        assert digit.size == 28 * 28 and digit.max() > 120 and digit.min() < 30
        v.click("map", 0.5, 0.85)
        v.until(lambda: (pixels() != digit).any(), "another place decodes to another digit")
        v.drag("map", (0.35, 0.35), (0.45, 0.45))
        v.until(
            lambda: (
                "your walk"
                in p.evaluate(
                    "() => "
                    "document.querySelector('.deffi-canvas').deffi.scene.panels[0].layers.map((l) => l.name)"  # noqa: E501
                )
            ),
            "my own walk",
        )
        shot(p, "boosting_own_walk")

        p.locator("button.deffi-keep").first.click()
        p.wait_for_function(
            "() => document.querySelector('.deffi-status')?.innerText?.includes('saved as')"
        )
        page_kept = (tmp_path / "browser.html").read_text()
        assert "test accuracy" in page_kept and "<script src" not in page_kept

        knob = p.locator(".deffi-knob-scheme select").first
        knob.select_option("margin")
        v.press("pause") if not p.locator("button.deffi-start").first.is_enabled() else v.press(
            "start"
        )
        v.wait_status("running")
        more = len(curves(v)["boosting"])
        p.wait_for_function(RAISED, arg=more + 1, timeout=120_000)
        v.press("stop")
        v.wait_status("stopped")
        assert p.locator(".deffi-error").first.inner_text().strip() == ""
        assert p.complaints == []
        shot(p, "boosting_stopped")


def test_the_person_is_the_oracle(tmp_path):
    notebook(tmp_path / "lab.ipynb", [PERSON])
    with server(tmp_path) as at, page(height=1200) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        v.press("start")
        v.wait_status("running")
        asked = (
            "() => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find((p) => "
            "p.name === 'one')?.title?.startsWith('which class')"
        )
        p.wait_for_function(asked, timeout=60_000)
        shot(p, "boosting_person")
        seen = []
        for answer in (3, 7, -1):
            pixels = v.layer("one", 0)["pixels"]
            assert max(pixels) > 100 and pixels not in seen
            seen.append(pixels)
            seq = v.seq
            p.locator(f"button.deffi-answer-{answer}").first.click()
            v.wait_drawn(seq + 1)
            p.wait_for_function(
                "old => "
                "JSON.stringify(Array.from(document.querySelector('.deffi-canvas').deffi.scene"
                ".panels.find((p) => p.name === 'one')?.layers[0]?.pixels ?? [])) !== old",
                arg=str(pixels).replace(" ", ""),
                timeout=20_000,
            )
        field = p.locator(".deffi-answer input").first
        field.fill("5")
        field.press("Enter")
        v.until(
            lambda: v.layer("one", 0)["pixels"] not in seen and field.input_value() == "",
            "the next question",
        )
        v.press("stop")
        v.wait_status("stopped")
        assert p.complaints == []


@pytest.mark.parametrize("latent", [2, 16])
def test_a_latent_space_forms(tmp_path, latent):
    notebook(tmp_path / "lab.ipynb", [LATENT.format(latent=latent)])
    with server(tmp_path) as at, page() as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        seq = v.wait_drawn()
        start = v.layer("map", 0)["xy"]
        v.press("start")
        v.wait_status("running")
        v.wait_drawn(seq + 25)
        v.press("pause")
        v.wait_status("paused")
        p.wait_for_timeout(400)
        moved = np.abs(np.array(v.layer("map", 0)["xy"]) - start).mean()
        assert moved > 0.05, "the map has moved"
        loss = v.layer("loss", 0)["y"]
        assert loss[-1] < 0.7 * loss[0]
        shot(p, f"latent_{latent}")
        assert p.complaints == []


def test_the_boosting_lab_under_voila(tmp_path):
    notebook(tmp_path / "lab.ipynb", [BOOSTING])
    with server(tmp_path, voila="lab.ipynb") as at, page(height=1300) as p:
        open_lab(p, at, "lab.ipynb")
        v = LabView(p)
        seq = v.wait_drawn(timeout=120_000)
        v.press("start")
        v.wait_drawn(seq + 3)
        v.press("pause")
        v.wait_status("paused")
        seq = v.seq
        v.click("map", 0.4, 0.4)
        v.wait_drawn(seq)
        shot(p, "voila_boosting")
        assert p.complaints == []
