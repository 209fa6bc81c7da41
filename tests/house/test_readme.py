"README: its two programs run as they stand, its figures are the ledgers', its links lead somewhere"

import re
from pathlib import Path

import numpy as np
import pytest

from deffi_lab.data.images import from_arrays
from deffi_lab.labs.selection.efficiency import efficiency_lab
from deffi_lab.methods.selection.strategies import STRATEGIES
from deffi_lab.study.evidence import ahead, describe
from deffi_lab.study.protocol import Recipe
from deffi_lab.study.shipped import gains

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


def stripes(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    "Images of three kinds of stripes"
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.integers(0, 60, (n, 16, 16), np.uint8)
    for k in range(3):
        x[y == k, 5 * k : 5 * k + 5] += 150
    return x, y


def test_own_data_runs(tmp_path, monkeypatch, capsys):
    x, y = stripes()
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    exec(PROGRAMS[0].replace(".run(2000)", ".run(40)"), {})
    out = capsys.readouterr().out
    curve = eval(out.strip().splitlines()[-1], {})
    assert [n for n, _ in curve][:2] == [40, 70] and curve[-1][1] > 0.9, curve


def test_own_method_races_on_the_screen(monkeypatch):
    """The lab of README with a small set of images: the new strategy is asked, and is drawn"""
    small = dict(
        data=from_arrays(*stripes()),
        budgets=(10, 20, 30),
        seeds=range(2),
        recipe=Recipe(pool=150, steps=30, latent_epochs=1),
    )
    monkeypatch.setattr(
        "deffi_lab.labs.selection.efficiency.efficiency_lab",
        lambda **more: efficiency_lab(**small, **more),
    )
    before = dict(STRATEGIES)
    try:
        names = {}
        exec(PROGRAMS[1], names)
        lab = names["lab"]
        lab.run.run()
        assert not lab.run.method.failures
        curves = lab.run.method.runs()["least sure"]
        assert [list(c[0]) for c in curves.values()] == [[10, 20, 30]] * 2
        shown = [la.name for p in lab.scene().panels for la in p.layers if hasattr(la, "low")]
        assert "least sure" in shown
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(before)


def test_each_program_is_ten_lines_or_little_more():
    for code in PROGRAMS:
        assert len([ln for ln in code.splitlines() if ln.strip()]) <= 12


FIGURES = [
    ("boosting", "mnist", "boost", "random", dict(target=0.95), True),
    ("fewest", "mnist", "fewest", "random", dict(target=0.97), False),
    ("labelling", "phantom", "field U-Net, orbits", "U-Net, largest", dict(budget=5), True),
    ("blockwise", "phantom", "greedy, polished", "U-Net", dict(budget=5), True),
]


@pytest.mark.parametrize("study, data, ours, baseline, at, hollow", FIGURES)
def test_each_figure_is_the_ledgers_and_says_what_its_control_does(
    study, data, ours, baseline, at, hollow
):
    """Where README says that the control does as well, the ledger says so too"""
    here = [g for g in gains(study, data, **at) if g.claim.baseline == baseline]
    g = next(g for g in here if g.claim.ours == ours)
    assert describe(g.over_baseline).replace(" pairs)", "") in " ".join(README.split())
    if study == "fewest":  # a gain is stated beside its control
        assert describe(g.over_control).replace(" pairs)", "") in " ".join(README.split())
    assert ahead(g.over_baseline) == (study != "labelling")
    assert g.hollow == hollow


def test_no_other_figure_stands_in_readme():
    """A decimal in README is part of one of the figures above, a target, or a version"""
    held = " ".join(
        describe(g.over_baseline) + describe(g.over_control)
        for study, data, _, _, at, _ in FIGURES
        for g in gains(study, data, **at)
    )
    prose = re.sub(r"```.*?```|\(http[^)]*\)", "", README, flags=re.S)
    for number in re.findall(r"[-+]?\d+\.\d+", prose):
        assert number in held or number in ("3.11", "2.0", "-2.0", "3.0"), number


def test_links_and_pictures_are_there_and_small():
    paths = [p for p in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README) if "://" not in p]
    assert len(paths) > 12
    for p in paths:
        assert (ROOT / p).exists(), p
    assert (ROOT / "docs/film.gif").stat().st_size < 2_000_000
    assert len(README.splitlines()) <= 125


def test_the_loss_on_photographs_is_the_ledgers():
    """README: the recipe loses on photographs"""
    from deffi_lab.study.shipped import runs

    there = runs("fewest", "cifar")
    final = lambda m: np.mean([y[list(x).index(100)] for x, y in there[m].values()])
    assert final("fewest") < final("random")
