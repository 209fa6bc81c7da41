"""Every lab bears every setting: each knob is turned to both ends and to each choice while the lab
runs, and nothing fails. Inline, on small data, without a browser."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from deffi_lab.core.knobs import knob_specs
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.data.images import from_arrays, mnist
from deffi_lab.nets.vae import reference_vae
from deffi_lab.study.protocol import Recipe

LABS = Path(__file__).resolve().parents[2] / "deffi_lab" / "labs"
HEAVY = {"train_steps", "batch"}  # the upper end would take minutes: a tenth of it in logarithms


def digits(n=400):
    "A few digits of each set"
    d = mnist()
    return from_arrays(d.x[:n], d.y[:n], d.x_test[:60], d.y_test[:60], title="few digits")


def boosting(lab):
    quick = dict(train_steps=2, query=6, starts=40, steps=2, batch=8, budget=200)
    small = lab(digits(), vae=reference_vae(2))
    small.run.method.first.oracle.steps = 20  # of the labelling tool's training
    return small, quick, lambda m: m.first.round


def efficiency(lab):
    recipe = Recipe(pool=300, steps=3, width=3, batch=16)
    how = dict(methods=("random", "margin"), budgets=(10, 15, 20), seeds=(0,))
    return lab(digits(), **how, recipe=recipe, vae=reference_vae(16)), {}, None


SMALL = {
    "latent.training": lambda lab: (lab(digits()), {}, None),
    "selection.boosting": boosting,
    "selection.efficiency": efficiency,
    "contours.labelling": lambda lab: (lab(size=32, pace=None), {}, None),
    "contours.tracing": lambda lab: (lab(phantom(24, size=64), rival=False), {}, None),
    "blocks.training": lambda lab: (lab(labels=2, tests=2, rivals=("joint",)), {}, None),
    "blocks.growth": lambda lab: (lab(labels=2), {}, None),
}


def test_every_lab_is_opened_here():
    there = {".".join(p.with_suffix("").parts[-2:]) for p in LABS.glob("*/*.py")}
    assert {n for n in there if not n.endswith("__init__")} == set(SMALL)


def opened(name):
    module = import_module(f"deffi_lab.labs.{name}")
    (lab,) = (getattr(module, n) for n in module.__all__ if n.endswith("_lab"))
    return SMALL[name](lab)


def go_on(lab, steps, progress):
    "Runs a few steps, or to the next round where rounds are counted; begins anew at the end"
    if lab.run.status == "finished":
        lab.run.reset()
    goal = progress and progress(lab.run.method) + 1
    for _ in range(40 if progress else 1):
        lab.run.run(steps)
        if not progress or progress(lab.run.method) >= goal or lab.run.status == "finished":
            break
    assert lab.run.status != "failed" and lab.scene().panels


def settings(spec):
    "Both ends, or all choices"
    if spec.choices is not None:
        return spec.choices
    if spec.kind == "bool":
        return True, False
    high = spec.high if spec.name not in HEAVY else min(spec.high, 64)
    return spec.low, type(spec.low)(high)


@pytest.mark.parametrize("name", SMALL)
def test_no_setting_of_any_knob_ends_a_lab(name):
    lab, quick, progress = opened(name)
    for knob, value in quick.items():
        lab.run.set(knob, value).result()
    go_on(lab, 3, progress)
    for spec in knob_specs(lab.run.method.knobs):
        before = getattr(lab.run.method.knobs, spec.name)
        for value in settings(spec):
            lab.run.set(spec.name, value).result()
            go_on(lab, 3, progress)
        lab.run.set(spec.name, before).result()
    assert lab.run.error is None


def test_synthesised_samples_bear_every_start_and_length():
    """Deep boosting by synthesised images, with a labelling tool that is trained when asked"""
    from deffi_lab.labs.selection.boosting import boosting_lab

    lab = boosting_lab(digits(), vae=reference_vae(2), scheme="si", name="every-si")
    for knob, value in dict(train_steps=2, query=6, steps=2, batch=8, budget=300).items():
        lab.run.set(knob, value).result()
    m = lab.run.method.first
    m.oracle.steps, m.oracle.confidence = 20, 0.2
    ends = dict(start=("all", "prior", "hardest"), tolerance=(10.0, 0.1), eta=(0.0, 3.0))
    for name, values in (ends | dict(steps=(0, 20))).items():
        for value in values:
            lab.run.set(name, value).result()
            go_on(lab, 3, lambda race: race.first.round)
    assert lab.run.error is None and m.pool.asked > 60 and m.oracle.error is not None
    assert "labelling tool" in lab.scene().note and len(m.extra_x)


def test_the_lab_shows_what_was_accepted_and_what_was_rejected():
    from deffi_lab.labs.selection.boosting import boosting_lab

    lab = boosting_lab(digits(), vae=reference_vae(2), scheme="si", name="shown-si")
    for knob, value in dict(train_steps=2, query=6, start="prior", tolerance=10.0).items():
        lab.run.set(knob, value).result()
    m = lab.run.method.first
    m.oracle = lambda x: (torch.arange(len(x)) - 2).clamp(min=-1)  # two are rejected
    m.oracle.note = lambda: "labelling tool of this test"
    while m.synthesised is None:
        lab.run.run(1)
    assert m.synthesised[1].tolist() == [-1, -1, 0, 1, 2, 3]
    scene = lab.scene()
    names = [layer.name for layer in scene["map"].layers]
    assert "4 accepted" in names and "2 rejected" in names
    assert scene["bought"].title == "4 of 6 accepted"
    assert "labelling tool of this test" in scene.note
