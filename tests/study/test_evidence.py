"Intervals for few seeds, claims with their controls, tables, and the pictures drawn of them"

import numpy as np
import pytest
from matplotlib.colors import to_hex

from deffi_lab.core.ledger import Ledger
from deffi_lab.show.layers import GREY
from deffi_lab.show.study import ShownTable, draw_curves, draw_gains, draw_matrix
from deffi_lab.study.curves import (
    Reach,
    by_budget,
    extremes,
    from_ledger,
    geometric_labels,
    reaches,
)
from deffi_lab.study.evidence import Claim, ControlMissing, describe, gain, labels_cell, table
from deffi_lab.study.intervals import student
from deffi_lab.study.shipped import (
    CLAIMS,
    FILES,
    claims,
    columns,
    gains,
    machines,
    metric,
    runs,
    settings,
)
from deffi_lab.study.statistics import difference_at, dominance, ratio

X = 20 * 2 ** np.arange(6)


def made(speed, tag, seeds=8):
    "Curves that saturate at 1, `speed` times as fast, with noise of their own"
    noise = lambda s: np.random.default_rng([tag, s]).normal(size=6) * 0.004
    return {s: (X, 1 - 0.8 * (X * speed / 20) ** -0.6 + noise(s)) for s in range(seeds)}


RUNS = {"random": made(1, 0), "ours": made(3, 1), "without": made(3, 2), "half": made(2, 3)}


# ---- curves and pairs ----
def test_difference_at_a_budget_takes_seeds_that_were_measured_there():
    a = {0: ([10, 20], [0.5, 0.7]), 1: ([10, 20], [0.6, 0.7]), 2: ([10, 40], [0.6, 0.9])}
    b = {0: ([10, 20], [0.4, 0.6]), 1: ([10, 20], [0.3, 0.6]), 2: ([20, 40], [0.6, 0.8])}
    as_arrays = lambda r: {s: tuple(np.asarray(v, float) for v in c) for s, c in r.items()}
    d = difference_at(as_arrays(a), as_arrays(b), 10)
    assert (d.n, d.wins) == (2, 2) and d.mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="1 common seeds at 40"):
        difference_at(as_arrays(a), as_arrays(b), 40)


def test_geometric_mean_and_extremes_by_hand():
    assert geometric_labels([Reach(10), Reach(1000)]) == Reach(pytest.approx(100))
    assert geometric_labels([Reach(10), Reach(1000, True)]).censored
    assert geometric_labels([Reach(10, already=True), Reach(10)]).already
    x, mean, low, high = extremes({0: ([1, 2], [0.2, 0.4]), 1: ([1], [0.4])})
    assert (x.tolist(), low.tolist(), high.tolist()) == ([1, 2], [0.2, 0.4], [0.4, 0.4])
    assert mean.tolist() == pytest.approx([0.3, 0.4])
    for empty in (lambda: geometric_labels([]), lambda: extremes({})):
        with pytest.raises(ValueError, match="no runs"):
            empty()


# ---- a gain has its control ----
@pytest.mark.parametrize(
    "names, what",
    [
        (("ours",), "name baseline="),
        (("ours", "random"), "name control="),
        (("ours", "random", ""), "name control="),
        (("ours", "random", "random"), "three methods"),
        (("ours", "random", "ours"), "three methods"),
    ],
)
def test_no_gain_without_baseline_and_control(names, what):
    with pytest.raises(ControlMissing, match=what):
        Claim(*names)
    with pytest.raises(ControlMissing, match=what):
        gain(RUNS, *names, target=0.85)


def test_no_times_fewer_in_a_table_without_a_control():
    with pytest.raises(ControlMissing, match="name control="):
        table(RUNS, [20], target=0.85, baseline="random")
    with pytest.raises(ControlMissing, match="three methods"):
        table(RUNS, [20], target=0.85, baseline="random", control="random")


def test_a_gain_that_its_control_shares_is_called_hollow():
    g = gain(RUNS, "ours", "random", "without", target=0.85, hollow="the idea adds nothing")
    assert g.hollow and g.verdict.endswith("but not of without: the idea adds nothing")
    assert g.over_baseline.low > 2 and g.over_control.low < 1 < g.over_control.high
    text = str(g)
    assert "control: without against random: " + describe(g.control_over_baseline) in text
    assert describe(g.over_baseline) in text and text.startswith("labels to 0.85")


def test_a_gain_that_its_control_lacks_is_not():
    g = gain(RUNS, "ours", "random", "half", target=0.85)
    assert not g.hollow and "of its control half" in g.verdict
    g = gain(RUNS, "random", "ours", "half", budget=80)
    assert g.verdict == "random is not shown to be ahead of ours"
    assert g.over_baseline == difference_at(RUNS["random"], RUNS["ours"], 80)


def test_a_gain_asks_for_one_measure_and_for_methods_that_ran():
    for how in ({}, dict(target=0.85, budget=80)):
        with pytest.raises(ValueError, match="give one of the two"):
            gain(RUNS, "ours", "random", "without", **how)
    with pytest.raises(KeyError, match="no method 'other'"):
        gain(RUNS, "ours", "random", "other", budget=80)


# ---- tables ----
def test_a_table_has_intervals_and_marks_its_control():
    t = table(RUNS, [20, 80], target=0.85, baseline="random", control="without")
    assert t.header == ["", "20", "80", "labels to 0.85", "times fewer than random"]
    low, high = student(100 * np.array([y[2] for _, y in RUNS["ours"].values()]))
    ours = next(r for r in t.rows if r[0] == "ours")
    assert ours[2] == f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"
    r = ratio(RUNS["ours"], RUNS["random"], 0.85)
    assert ours[4] == f"{r.ratio:.2f} ({r.low:.2f}–{r.high:.2f})"
    assert t.rows[t.control][0] == "without (control)"
    assert t.rows[0][0] == "random" and t.rows[0][4] == ""
    assert t.markdown().splitlines()[1].count("---") == 5 and "without (control)" in str(t)


def test_a_control_that_has_no_row_gets_one():
    names = {"random": "at random", "ours": "Ours"}
    t = table(RUNS, [20], names=names, target=0.85, baseline="random", control="without")
    assert [r[0] for r in t.rows] == ["at random", "Ours", "without (control)"]
    assert t.header[-1] == "times fewer than at random" and t.control == 2
    assert [r[0] for r in table(RUNS, [20], names=names).rows] == ["at random", "Ours"]


def test_a_table_of_few_seeds_shows_the_range_and_holes_stay_empty():
    few = {
        "a": {0: (X[:1], np.array([0.5])), 1: (X[:1], np.array([0.7]))},
        "b": {0: (X[1:2], X[:1])},
    }
    t = table(few, interval="range", scale=1, digits=2)
    assert t.rows == [["a", "0.60 (0.50–0.70, 2)", ""], ["b", "", "20.00 (20.00–20.00, 1)"]]


@pytest.mark.parametrize(
    "how, error, what",
    [
        (dict(interval="sd"), ValueError, "choose from ci95, range"),
        (dict(names={"x": "x"}), KeyError, "no method 'x'"),
        (dict(baseline="random", control="without"), ValueError, "give target="),
        (dict(target=0.85, centre="mode"), ValueError, "choose from median, geometric"),
    ],
)
def test_a_table_names_what_is_wrong(how, error, what):
    with pytest.raises(error, match=what):
        table(RUNS, [20], **how)


def test_labels_that_were_never_enough():
    ends = [Reach(100), Reach(50, censored=True), Reach(80)]
    assert labels_cell(ends) == "80 (1 of 3 never)"  # Kaplan-Meier: two are still watched at 80
    assert labels_cell([Reach(50, censored=True)] * 2) == "never"
    assert labels_cell([Reach(20, already=True)]) == "≤ 20"


# ---- what ships ----
@pytest.mark.parametrize("study", FILES)
def test_each_point_that_ships_counts_for_one_machine(study):
    counts = machines(study)
    assert sum(n for _, n in counts) == len(columns(study)["labels"])
    assert all(
        not record or {"processor", "threads", "bf16"} <= set(record) for record, _ in counts
    )


@pytest.mark.parametrize("study", FILES)
def test_shipped_columns_are_read_only_and_settings_are_there(study):
    c = columns(study)
    assert len(c["value"]) >= (10 if study == "phantom" else 100) and settings(study)
    with pytest.raises(ValueError, match="read-only"):
        c["value"][0] = 1
    c["value"] = None  # the caller's own dictionary
    assert columns(study)["value"] is not None


def test_a_metric_is_read_as_a_curve():
    wt, tc = (runs("blockwise", "phantom", value=v)["greedy"][0][1] for v in ("value", "TC"))
    assert len(wt) == len(tc) and (wt > tc).all()
    assert set(runs("labelling", "phantom", value="c1")) == {"clicks, field", "clicks, mask"}
    with pytest.raises(ValueError, match="value='XX'"):
        runs("blockwise", "phantom", value="XX")
    with pytest.raises(ValueError, match="shipped are"):
        runs("nothing")


@pytest.mark.parametrize("study, data", CLAIMS)
def test_every_claim_of_a_shipped_study_has_runs_for_its_control(study, data):
    measured = runs(study, data)
    for c in claims(study, data):
        c.check(measured)
        assert set(measured[c.ours]) & set(measured[c.control]), "no seed in common"


def test_gains_of_a_shipped_study_are_paired_differences():
    g = gains("blockwise", "phantom", budget=5)[0]
    assert (g.claim.ours, g.claim.control, g.over_baseline.n) == (
        "greedy, polished",
        "end to end long",
        10,
    )
    assert f"{g.over_baseline.mean:+.3f}" == "+0.040" and g.over_baseline.low > 0
    with pytest.raises(ValueError, match="claims are named for"):
        claims("study", "moon")


def test_a_ledger_gives_its_settings(tmp_path):
    with Ledger(tmp_path / "l", "a", {"steps": 3}) as ledger:
        assert ledger.settings() == {"steps": 3}
    with Ledger(tmp_path / "l", "b") as ledger:
        assert ledger.settings() == {}


# ---- pictures ----
def test_curves_are_drawn_with_bands_and_the_control_in_grey():
    ax = draw_curves(RUNS, {"ours": "Ours", "without": "w/o"}, control="without", target=0.85)
    ours, without, target = ax.lines
    assert ours.get_xdata().tolist() == X.tolist()
    assert ours.get_ydata()[0] == pytest.approx(
        100 * np.mean([y[0] for _, y in RUNS["ours"].values()])
    )
    assert to_hex(without.get_color()) == to_hex(GREY) != to_hex(ours.get_color())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Ours", "w/o (control)"]
    assert len(ax.collections) == 2 and target.get_ydata()[0] == 85
    assert not draw_curves(RUNS, interval="none").collections
    with pytest.raises(KeyError, match="no method 'x'"):
        draw_curves(RUNS, ["x"])
    with pytest.raises(ValueError, match="choose from ci95, range, none"):
        draw_curves(RUNS, interval="sd")


def test_gains_are_drawn_with_their_control():
    g = gain(RUNS, "ours", "random", "without", target=0.85)
    ax = draw_gains([g])
    lines = [
        line for line in ax.lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert [to_hex(line.get_color()) == to_hex(GREY) for line in lines] == [False, False, True]
    assert lines[0].get_xdata() == pytest.approx([g.over_baseline.low, g.over_baseline.high])
    assert ax.get_yticklabels()[2].get_text().startswith("control:")
    short = {m: {s: (x[:4], y[:4]) for s, (x, y) in RUNS[m].items()} for m in RUNS}
    bounded = gain(RUNS | {"random": short["random"]}, "ours", "random", "without", target=0.85)
    arrow = draw_gains([bounded]).lines[0]
    assert bounded.over_baseline.bound == "≥" and arrow.get_marker() == ">"
    assert arrow.get_xdata() == pytest.approx([bounded.over_baseline.low])
    with pytest.raises(ValueError, match="draw them apart"):
        draw_gains([g, gain(RUNS, "ours", "random", "without", budget=80)])
    with pytest.raises(ValueError, match="no gains"):
        draw_gains([])


def test_the_matrix_and_the_table_show_their_control():
    d = dominance(RUNS)
    ax = draw_matrix(d, control="without")
    grey = [t.get_text() for t in ax.get_yticklabels() if to_hex(t.get_color()) == to_hex(GREY)]
    assert grey == ["without"] and len(ax.texts) == 12
    t = table(RUNS, [20], names={"ours": "<ours>"}, target=0.85, baseline="random", control="half")
    html = ShownTable(t)._repr_html_()
    assert html.count(GREY) == 1 and "&lt;ours&gt;" in html and str(ShownTable(t)) == str(t)


# ---- the ledgers hold what was measured before they were ledgers ----
BOOSTING = {  # labels to 95 % (geometric mean), runs that never arrived, accuracy at 200 labels
    "boost": (149, 0, 96.1),
    "boost, eta 0": (141, 0, 96.0),
    "pool-walk": (176, 0, 95.4),
    "margin-diverse": (173, 0, 95.6),
    "margin": (176, 0, 95.6),
    "random": (370, 0, 92.9),
    "snn-hardest-2d": (467, 0, 91.5),
    "snn-hardest-16d": (757, 2, 89.9),
}


@pytest.mark.parametrize("method", BOOSTING)
def test_the_ledger_of_boosting_holds_the_figures_of_its_former_file(method):
    labels, never, at_200 = BOOSTING[method]
    r = runs("boosting", "mnist")[method]
    ends = list(reaches(r, 0.95).values())
    assert len(r) == 10 and sum(e.censored for e in ends) == never
    assert round(geometric_labels(ends).labels) == labels
    assert round(100 * np.mean(by_budget(r)[200]), 1) == at_200
    assert (
        f"{ratio(runs('boosting')['boost'], runs('boosting')['random'], 0.95).ratio:.2f}" == "2.49"
    )


@pytest.mark.parametrize(
    "data, labels, mean, seeds",
    [
        ("mnist", 20, 97.5, 20),
        ("mnist", 100, 98.8, 20),
        ("fashion", 100, 66.6, 5),
        ("cifar", 100, 23.4, 5),
    ],
)
def test_the_ledger_of_the_recipe_holds_the_figures_of_its_former_files(data, labels, mean, seeds):
    values = by_budget(runs("fewest", data)["fewest"])[labels]
    assert len(values) == seeds and round(100 * np.mean(values), 1) == mean
    graph = metric("fewest", data, "graph", labels)["fewest"]
    whole = from_ledger(columns("fewest_graph"), data, 0)["fewest"]
    assert graph == pytest.approx(
        [by_budget({s: c})[labels][0] for s, c in whole.items()], abs=1e-5
    )
    assert {len(x) for x, _ in whole.values()} == {8}


def test_a_metric_of_each_method():
    near = metric("boosting", "mnist", "near_flip")
    assert list(near) == ["pool-walk"] and near["pool-walk"].shape == (10,)
    assert set(metric("blockwise", "phantom", "TC", 20)) > {"greedy early", "U-Net early"}
    with pytest.raises(KeyError, match="no metric 'XX'"):
        metric("boosting", "mnist", "XX")
