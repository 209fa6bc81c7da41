"docs/RESULTS.md is what the ledgers hold: made again it is the same, and its cells are right"

import importlib.util
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/RESULTS.md").read_text(encoding="utf-8")


def tool():
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(study, data, method, labels, column="value"):
    "Straight from the SQLite file, past the functions that made the page"
    name = "fewest" if study == "fewest" else study
    db = sqlite3.connect(
        f"file:{ROOT}/deffi_lab/assets/{name}.sqlite?mode=ro&immutable=1", uri=True
    )
    what = column if column == "value" else f"json_extract(metrics, '$.{column}')"
    rows = db.execute(
        f"SELECT {what} FROM points WHERE study=? AND data=? AND method=? AND labels=? AND query=0",
        (study, data, method, labels),
    ).fetchall()
    db.close()
    return [r[0] for r in rows]


def cell(first, row, column):
    "A cell of the first table whose header begins with `first` and contains `column`"
    for block in PAGE.split("\n\n"):
        lines = [[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()]
        if lines and lines[0] and lines[0][0] == first and column in lines[0]:
            for line in lines[2:]:
                if line[0].strip("*") == row:
                    return line[lines[0].index(column)]
    raise KeyError((first, row, column))


def test_the_page_is_what_the_tool_makes_and_the_same_twice():
    made = tool()
    assert made.page() == PAGE, "docs/RESULTS.md is old: make results"
    assert made.page() == PAGE


def test_each_ledger_has_a_line_that_says_where_it_was_measured():
    lines = [ln for ln in PAGE.splitlines() if re.match(r"\* `\w+\.sqlite`: measured on ", ln)]
    assert len(lines) == len(list((ROOT / "deffi_lab/assets").glob("*.sqlite")))
    for line in lines:
        name = line.split("`")[1]
        path = f"file:{ROOT}/deffi_lab/assets/{name}?mode=ro&immutable=1"
        ((points,),) = sqlite3.connect(path, uri=True).execute("SELECT count(*) FROM points")
        counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) points", line)]
        assert sum(counts) == points, line


@pytest.mark.parametrize(
    "study, method, row",
    [
        ("fewest", "fewest", "fewest"),
        *(("study", m, m) for m in ("boost", "badge", "maxherding", "random", "typiclust")),
        ("study", "poisson", "Poisson learning, VAE latent"),
    ],
)
@pytest.mark.parametrize("labels", [20, 100])
def test_accuracies_on_mnist(study, method, row, labels):
    v = 100 * np.array(measured(study, "mnist", method, labels))
    of = v
    if study == "fewest":  # the interval is over the encoders that the seeds share
        encoder = np.array(measured(study, "mnist", method, labels, "encoder"))
        of = np.array([v[encoder == k].mean() for k in (0, 1)])
    half = stats.t.ppf(0.975, len(of) - 1) * stats.sem(of)
    mean, width = map(float, re.findall(r"[\d.]+", cell("", row, str(labels))))
    assert len(v) == 20 and (mean, width) == pytest.approx((v.mean(), half), abs=0.0501)


@pytest.mark.parametrize(
    "data, title, budgets",
    [("phantom", "phantoms, Dice", (1, 5, 20)), ("heart", "Sunnybrook, Dice", (5,))],
)
def test_dice_of_outlines(data, title, budgets):
    names = {"U-Net, largest": "U-Net on masks", "tracer, orbits": "patch tracer, agents"}
    for method, row in names.items():
        for k in budgets:
            v = measured("labelling", data, method, k)
            shown = [
                float(x)
                for x in re.findall(r"[\d.]+", cell(title, row, f"{k} label{'s' * (k > 1)}"))
            ]
            assert shown == pytest.approx([np.mean(v), min(v), max(v), len(v)], abs=6e-4)


@pytest.mark.parametrize(
    "data, title, k", [("phantom", "grown tumours", 20), ("glioma", "real slices", 5)]
)
def test_dice_of_tumours(data, title, k):
    for method, column in (("greedy", "greedy"), ("U-Net", "U-Net, 1,000 steps")):
        v = [np.mean(measured("blockwise", data, method, k, c)) for c in ("value", "TC", "ET")]
        shown = [float(x) for x in re.findall(r"[\d.]+", cell(f"{title}, labels", str(k), column))]
        assert shown[:3] == pytest.approx(v, abs=6e-4)
        assert shown[3] == len(measured("blockwise", data, method, k))


def test_differences_are_paired_over_seeds():
    a, b = (np.array(measured("blockwise", "phantom", m, 5)) for m in ("greedy, polished", "U-Net"))
    low, high = stats.t.interval(0.95, len(a) - 1, (a - b).mean(), stats.sem(a - b))
    text = f"{(a - b).mean():+.3f} ({low:+.3f}..{high:+.3f}, {len(a)} pairs)"
    assert cell("", "greedy, polished, at 5 labels", "against it") == text


def test_labels_to_a_target_of_boosting():
    "By hand: the first crossing of 95 %, over log labels"
    db = sqlite3.connect(
        f"file:{ROOT}/deffi_lab/assets/boosting.sqlite?mode=ro&immutable=1", uri=True
    )
    logs = []
    for seed in range(10):
        x, y = np.array(
            db.execute(
                "SELECT labels, value FROM points WHERE method='boost' AND seed=? ORDER BY labels",
                (seed,),
            ).fetchall()
        ).T
        i = int(np.argmax(y >= 0.95))
        logs.append(np.interp(0.95, y[i - 1 : i + 1], np.log(x[i - 1 : i + 1])))
    db.close()
    assert cell("", "boost", "labels to 0.95") == f"{np.exp(np.mean(logs)):.0f}"


def test_a_bound_has_no_two_sided_interval():
    for block in PAGE.split("\n\n"):
        for line in block.splitlines():
            for c in line.split("|"):
                assert not re.search(r"[≥?]\d|at (least|most) [\d.,]+ \(.*[–]", c), c
    assert "at least 51, 20 pairs, 2 encoders" in PAGE and "open, 6 pairs" in PAGE


def test_every_gain_names_its_control():
    for block in PAGE.split("\n\n"):
        lines = [[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()]
        if lines and "baseline" in lines[0]:
            at = lines[0].index("control")
            assert all(line[at] for line in lines[2:]), block
        if lines and any(c.startswith("times fewer") for c in lines[0]):
            assert any("(control)" in line[0] for line in lines[2:]), block
