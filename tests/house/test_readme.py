"The ten lines of README run as they stand, on a user's own arrays"

import json
import re
from pathlib import Path

import numpy as np
import pytest

from deffi_lab.study.curves import band, from_ledger, labels_to_target, median_labels
from deffi_lab.study.protocol import shipped

ROOT = Path(__file__).resolve().parents[2]
OUTLINES = {
    "U-Net on masks": "U-Net, largest",
    "U-Net on the field, agents": "field U-Net, orbits",
    "U-Net on the field, threshold": "field U-Net, threshold",
    "patch tracer, agents": "tracer, orbits",
    "patch tracer, threshold": "tracer, threshold",
}
METHODS = ("boost", "badge", "margin", "maxherding", "random", "typiclust")


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = rng.integers(0, 60, (240, 16, 16), np.uint8)
    for k in range(3):
        x[y == k, 5 * k : 5 * k + 5] += 150  # three kinds of stripes
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    exec(code.replace(".run(2000)", ".run(40)"), {})
    out = capsys.readouterr().out
    curve = eval(out.strip().splitlines()[-1], {})
    assert [n for n, _ in curve][:2] == [40, 70] and curve[-1][1] > 0.9, curve


def bench_cells(text, name):
    "The numbers `mean ± half width` of a row of the table of labels, None where empty"
    row = next(
        ln
        for ln in text.splitlines()
        if ln.startswith("|") and ln.split("|")[1].strip(" *") == name
    )
    cells = [c.strip() for c in row.split("|")[2:-1]]
    return [
        tuple(map(float, re.findall(r"[\d.]+", c))) if "±" in c else None for c in cells[:7]
    ], cells[7]


@pytest.mark.parametrize(
    "name, method",
    [("fewest", "fewest"), *((m, m) for m in METHODS), ("Poisson learning, VAE latent", "poisson")],
)
def test_the_table_of_labels_is_what_the_shipped_ledger_holds(name, method):
    said, _ = bench_cells((ROOT / "README.md").read_text(), name)
    runs = from_ledger(shipped("fewest") if method == "fewest" else shipped(), "mnist", 0)[method]
    assert len(runs) == 20
    labels, mean, low, high = band(runs)
    there = {
        int(n): (round(100 * m, 1), round(50 * (h - lo), 1))
        for n, m, lo, h in zip(labels, mean, low, high)
    }
    there[70] = there.get(70, there.get(75))
    got = dict(zip((20, 30, 50, 70, 100, 300, 1000), said))
    assert sum(v is not None for v in got.values()) >= 5
    for n, v in got.items():
        if v is not None:
            assert v == pytest.approx(there[n], abs=0.051), n


@pytest.mark.parametrize("method", METHODS)
def test_the_labels_to_97_are_medians_of_the_shipped_ledger(method):
    _, said = bench_cells((ROOT / "README.md").read_text(), method)
    runs = from_ledger(shipped(), "mnist", 0)[method]
    reach = [labels_to_target(*c, 0.97) for c in runs.values()]
    never = sum(r.censored for r in reach)
    first, *more = [int(v.replace(",", "")) for v in re.findall(r"\d[\d,]*", said)]
    assert (more[0] if more else 0) == never
    assert (
        first == pytest.approx(median_labels(reach).labels, abs=1)
        if not said.startswith(">")
        else never > len(reach) / 2
    )


@pytest.mark.parametrize("data, title", [("phantom", "phantoms"), ("heart", "Sunnybrook")])
def test_the_table_of_outlines_is_what_the_shipped_ledger_holds(data, title):
    text = (ROOT / "README.md").read_text()
    lines = text[text.index(f"| {title}, Dice |") :].splitlines()
    budgets = [int(v) for v in re.findall(r"(\d+) labels?", lines[0])]
    runs, checked = from_ledger(shipped("labelling"), data, 0), 0
    for line in lines[2 : 2 + len(OUTLINES)]:
        name, *cells = [c.strip() for c in line.split("|")[1:-1]]
        for k, cell in zip(budgets, cells, strict=True):
            found = [y[list(x).index(k)] for x, y in runs[OUTLINES[name]].values() if k in x]
            said = [float(v) for v in re.findall(r"[\d.]+", cell)]
            assert bool(said) == bool(found), (name, k)
            if not said:
                continue
            assert said == pytest.approx(
                [np.mean(found), min(found), max(found), len(found)], abs=6e-4
            ), (name, k)
            checked += 1
    assert checked >= 12


def test_differences_and_clicks_are_what_the_bench_and_the_ledger_hold():
    text = " ".join((ROOT / "README.md").read_text().split())
    short = lambda v: f"{abs(v):.3f}"[1:]
    sign = lambda v: ("-" if v < 0 else "+") + short(v)
    bench = {
        r["name"]: r
        for p in (ROOT / "bench/results").glob("*core*.json")
        for r in json.loads(p.read_text())["rows"]
    }
    a, b = bench["dynamics_vs_mask_5_phantom"], bench["dynamics_vs_mask_5_heart"]
    assert (
        f"lie {short(a['ratio'])} behind" in text
        and f"{sign(a['low'])} to {sign(a['high'])}" in text
        and a["n"] == 4
    )
    assert (
        f"({sign(b['ratio'])}, {sign(b['low'])} to {sign(b['high'])}, three patients)" in text
        and b["n"] == 3
    )
    c = shipped("labelling")

    def mean(data, method, key):
        return short(
            np.nanmean(c[key][(c["data"] == data) & (c["method"] == method) & (c["labels"] == 5)])
        )

    for k, words in ((1, "after one click"), (2, "after two"), (4, "after four")):
        ph, he = (mean(d, "clicks, field", f"c{k}") for d in ("phantom", "heart"))
        assert (
            f"{ph} on phantoms and {he} on hearts {words}" in text
            or f"{ph} and {he} {words}" in text
        )
    masks = [
        f"{mean('phantom', 'clicks, mask', f'c{k}')}/{mean('heart', 'clicks, mask', f'c{k}')}"
        for k in (1, 2, 4)
    ]
    assert ", ".join(masks) in text
    hand = [
        f"{mean('phantom', 'by hand', f'c{k}')}/{mean('heart', 'by hand', f'c{k}')}" for k in (3, 4)
    ]
    assert f"three clicks {hand[0]}, through four {hand[1]}" in text


BLOCKS = {
    "U-Net, 1,000 steps": "U-Net",
    "U-Net, 2,000 steps": "U-Net 2x",
    "greedy": "greedy",
    "greedy, polished": "greedy, polished",
    "the same blocks end to end": "end to end",
}


@pytest.mark.parametrize(
    "data, title, least", [("phantom", "grown tumours", 20), ("glioma", "real slices", 8)]
)
def test_the_table_of_blocks_is_what_the_shipped_ledger_holds(data, title, least):
    text, c, checked = (ROOT / "README.md").read_text(), shipped("blockwise"), 0
    lines = text[text.index(f"| {title}, labels |") :].split("\n\n")[0].splitlines()
    rows = [[v.strip() for v in line.split("|")[1:-1]] for line in lines]
    measured = (c["data"] == data) & (c["method"] == "greedy")
    assert [int(r[0]) for r in rows[2:]] == sorted(set(c["labels"][measured].tolist()))
    for k, *cells in rows[2:]:
        for name, cell in zip(rows[0][1:], cells, strict=True):
            at = (c["data"] == data) & (c["method"] == BLOCKS[name]) & (c["labels"] == int(k))
            said = [float(v) for v in re.findall(r"[\d.]+", cell)]
            assert bool(said) == bool(at.any()), (name, k)
            if not said:
                continue
            assert said == pytest.approx(
                [*(np.mean(c[r][at]) for r in ("value", "TC", "ET")), at.sum()], abs=6e-4
            ), (name, k)
            checked += 1
    assert checked >= least


def test_what_is_said_of_blocks_is_what_was_measured():
    text = " ".join((ROOT / "README.md").read_text().split())
    sign = lambda v: f"{v:+.3f}".replace("0.", ".")
    bench = {
        r["name"]: r
        for p in (ROOT / "bench/results").glob("*core*.json")
        for r in json.loads(p.read_text())["rows"]
    }
    for k, words in ((5, "{} 95 % interval {} to {}, ten seeds"), (20, "{} {} to {}")):
        r = bench[f"greedy_vs_unet_{k}"]
        assert (
            words.format(*(f"{sign(r['ratio'])},", sign(r["low"]), sign(r["high"])))
            in text.replace("(", "")
            and r["n"] == 10
        )
    long = [bench[f"greedy_vs_unet_{k}_long"] for k in (5, 20)]
    said = [f"{sign(r['ratio'])} ({sign(r['low'])} to {sign(r['high'])}) at" for r in long]
    assert "with 2.2 times the operations, it is {} five and {} twenty.".format(*said) in text and {
        r["n"] for r in long
    } == {10}
    r = bench["greedy_vs_joint_20"]
    assert (
        f"{sign(r['ratio'])} ({sign(r['low'])} to {sign(r['high'])}) at twenty" in text
        and r["n"] == 10
    )
    c = shipped("blockwise")

    def mean(m, region):
        return f"{c[region][(c['data'] == 'phantom') & (c['labels'] == 20) & (c['method'] == m)].mean():.2f}"[  # noqa: E501
            1:
        ]

    said = [
        f"{mean(m, 'TC')} and {mean(m, 'ET')}"
        for m in ("greedy early", "end to end early", "U-Net early")
    ]
    assert "with Dice {} where end to end has {} and the U-Net {}.".format(*said) in text
    part, whole = bench["block_memory"]["ratio"], bench["block_memory_full"]["ratio"]
    assert (
        f"keeps {part:.2f}"[0:6] + f"{part:.2f}"[1:] in text
        and f"and {whole:.2f}".replace("0.", ".") in text
    )
