"""Labels to a target, areas, intervals, ratios: by
hand, against scipy, and by what must not change them"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deffi_lab.labs.selection.efficiency import EfficiencyView, to_csv
from deffi_lab.methods.selection.stopping import Advice
from deffi_lab.study.curves import (
    Reach,
    at,
    band,
    curve,
    from_ledger,
    kaplan_meier,
    labels_to_target,
    log_auc,
    median_labels,
    reaches,
)
from deffi_lab.study.intervals import bca
from deffi_lab.study.statistics import (
    dominance,
    false_order,
    holm,
    paired_difference,
    ratio,
    report,
    wilcoxon,
)


# ---- one run, by hand ----
def test_a_crossing_is_interpolated_over_log_labels():
    assert labels_to_target([10, 1000], [0.8, 1.0], 0.9) == Reach(pytest.approx(100.0))
    assert labels_to_target([20, 40, 80], [0.5, 0.7, 0.9], 0.7).labels == pytest.approx(40)
    assert labels_to_target([20, 40, 80], [0.5, 0.7, 0.9], 0.75).labels == pytest.approx(
        40 * 2**0.25
    )


def test_censoring_on_both_sides():
    assert labels_to_target([20, 40], [0.5, 0.7], 0.8) == Reach(40.0, censored=True)
    assert labels_to_target([20, 40], [0.5, 0.7], 0.5) == Reach(20.0, already=True)
    assert [str(r) for r in (Reach(40, True), Reach(20, already=True), Reach(1234.4))] == [
        "> 40",
        "≤ 20",
        "1,234",
    ]


def test_stay_means_never_below_again():
    x, y = [10, 20, 40, 80], [0.5, 0.9, 0.7, 0.9]
    assert labels_to_target(x, y, 0.8).labels == pytest.approx(10 * 2**0.75)
    assert labels_to_target(x, y, 0.8, stay=True).labels == pytest.approx(40 * 2**0.5)
    assert labels_to_target(x, [0.5, 0.9, 0.9, 0.7], 0.8, stay=True) == Reach(80.0, censored=True)
    assert labels_to_target(x, [0.9] * 4, 0.8, stay=True) == Reach(10.0, already=True)


def test_area_by_hand():
    assert log_auc([10, 100, 1000], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert log_auc([10, 100, 1000], [0.0, 1.0, 1.0], 100) == pytest.approx(1.0)
    assert log_auc([10, 100, 1000], [0.0, 1.0, 0.0], 10**1.5, 10**2.5) == pytest.approx(0.75)
    assert log_auc([50], [0.3]) == pytest.approx(0.3)
    assert at([10, 1000], [0.2, 0.6], 100) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "bad, what",
    [
        (lambda: labels_to_target([10, 20], [0.5, 0.9], 97), "write 0.97"),
        (lambda: labels_to_target([10, 20], [0.5, 0.9], -0.1), "lie in 0..1"),
        (lambda: labels_to_target([10, 20], [0.5, 0.9], np.nan), "finite number"),
        (lambda: labels_to_target([10, 20], [0.5, np.nan], 0.9), "1 of 2 values are not finite"),
        (lambda: labels_to_target([10, 20, 20], [0.5, 0.6, 0.7], 0.9), "20, 20: budgets must rise"),
        (lambda: labels_to_target([0, 20], [0.5, 0.6], 0.9), "at least 1 label"),
        (lambda: curve([], []), "at least 1"),
        (lambda: curve([1, 2], [1.0]), "2 labels, 1 values"),
        (lambda: log_auc([10, 20], [0.5, 0.9], 5), "measured at 10..20"),
        (lambda: at([10, 20], [0.5, 0.9], 30), "measured at 10..20"),
        (lambda: holm([0.5, 1.2]), "0..1"),
        (lambda: bca([1.0, 2.0], level=1.0), "level=1"),
        (lambda: kaplan_meier([]), "no runs"),
        (lambda: report({}, 0.9), "no runs"),
        (lambda: band({}), "no runs"),
        (
            lambda: ratio({0: ([10, 20], [0.5, 0.9])}, {0: ([10, 20], [0.5, 0.9])}, 0.7),
            "1 common seeds",
        ),
        (
            lambda: paired_difference({0: ([10], [0.5]), 1: ([10], [0.5])}, {2: ([10], [0.5])}),
            "0 common seeds",
        ),
        (
            lambda: paired_difference(
                {i: ([10], [0.5]) for i in (0, 1)}, {i: ([20], [0.5]) for i in (0, 1)}
            ),
            "overlap",
        ),
        (lambda: dominance({"a": {}}), "1 methods"),
        (lambda: false_order({0: ([1], [1])}, {0: ([1], [1])}, 3), "k=3: 1..1"),
    ],
)
def test_bad_input_is_named(bad, what):
    with pytest.raises(ValueError, match=what):
        bad()


def test_a_target_outside_0_1_is_for_other_measures():
    assert labels_to_target([10, 1000], [50.0, 98.0], 97).labels == pytest.approx(
        10 * 100 ** (47 / 48)
    )
    assert labels_to_target([10, 1000], [-3.0, -1.0], -2).labels == pytest.approx(100)


# ---- several seeds ----
def test_kaplan_meier_by_hand():
    """6 runs; at 20: 5 of 6 stay; 25 leaves unseen; at 30:
    2 of 4 go; at 50: the last two, one of them censored"""
    runs = [Reach(20), Reach(25, True), Reach(30), Reach(30), Reach(50), Reach(50, True)]
    x, s = kaplan_meier(runs)
    assert x.tolist() == [20, 30, 50]
    assert s == pytest.approx([5 / 6, 5 / 6 * 2 / 4, 5 / 6 * 2 / 4 / 2])
    assert median_labels(runs) == Reach(30.0)
    assert median_labels([Reach(20), Reach(50, True), Reach(40, True)]) == Reach(50, True)
    assert median_labels([Reach(20, already=True), Reach(20), Reach(90)]) == Reach(
        20.0, already=True
    )


def test_kaplan_meier_without_censoring_is_the_empirical_distribution():
    labels = np.random.default_rng(0).integers(10, 30, 40)
    x, s = kaplan_meier([Reach(float(v)) for v in labels])
    assert s == pytest.approx([(labels > v).mean() for v in x])


def test_kaplan_meier_agrees_with_scipy():
    rng = np.random.default_rng(1)
    t, c = rng.integers(10, 60, 50).astype(float), rng.random(50) < 0.4
    x, s = kaplan_meier([Reach(a, bool(b)) for a, b in zip(t, c)])
    want = stats.ecdf(stats.CensoredData.right_censored(t, c)).sf
    assert s == pytest.approx(want.evaluate(x))


def test_band_is_students_interval():
    runs = {s: ([10, 20], [y, 0.9]) for s, y in enumerate((0.5, 0.6, 0.7))} | {
        3: ([10, 20, 40], [0.4, 0.9, 0.95])
    }
    x, mean, low, high = band(runs)
    want = stats.t.interval(0.95, 3, 0.55, stats.sem([0.5, 0.6, 0.7, 0.4]))
    assert x.tolist() == [10, 20, 40] and mean == pytest.approx([0.55, 0.9, 0.95])
    assert (low[0], high[0]) == pytest.approx(want) and low[2] == high[2] == mean[2]


# ---- pairs ----
@pytest.mark.parametrize("n", [5, 8, 20])
def test_wilcoxon_is_scipys(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    assert wilcoxon(d) == pytest.approx(stats.wilcoxon(d).pvalue)


def test_wilcoxon_by_hand():
    assert wilcoxon([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert wilcoxon([1, 1, 1, 1, 1]) == pytest.approx(2 / 32), "ties are counted exactly"
    assert wilcoxon([1, 1, -1, 0]) == pytest.approx(1.0)
    assert wilcoxon([0, 0, 0]) == 1.0
    d = np.round(np.random.default_rng(0).normal(0.5, 1, 9), 0)
    want = stats.wilcoxon(d[d != 0], method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
    assert wilcoxon(d) == pytest.approx(want)


def test_the_bootstrap_agrees_with_scipys_bootstrap():
    d = np.random.default_rng(3).exponential(size=25)
    ours = bca(d, resamples=40000)
    ci = stats.bootstrap(
        (d,), np.mean, method="BCa", n_resamples=40000, rng=np.random.default_rng(1)
    )
    assert ours == pytest.approx(
        (ci.confidence_interval.low, ci.confidence_interval.high), abs=0.02
    )
    assert ours[1] - d.mean() > d.mean() - ours[0], "a skewed sample has a skewed interval"
    assert bca([0.2] * 5) == (pytest.approx(0.2),) * 2


def test_the_bootstraps_coverage_at_twenty_values():
    rng, hit, n = np.random.default_rng(0), 0, 400
    for i in range(n):
        low, high = bca(rng.normal(1.0, 2.0, 20), resamples=600, seed=i)
        hit += low <= 1.0 <= high
    assert 0.88 <= hit / n <= 0.97, (
        hit / n
    )  # about 93 % at 20 seeds: the bootstrap is a little narrow


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04]) and holm([0.9, 0.8]) == pytest.approx(
        [1, 1]
    )
    assert len(holm([])) == 0


def test_paired_difference_uses_common_seeds_and_budgets():
    a = {s: ([10, 100, 1000], [0.5, 0.7, 0.9]) for s in (0, 1, 5)}
    b = {s: ([10, 100], [0.4, 0.6]) for s in (0, 1, 9)}
    d = paired_difference(a, b)
    assert (
        (d.n, d.wins) == (2, 2)
        and d.mean == pytest.approx(0.1)
        and (d.low, d.high) == pytest.approx((0.1, 0.1))
    )


def step(s):
    return [10, 10 * s**2], [0.0, 1.0]  # target .5 is reached at 10 s


def test_ratio_by_hand():
    ours, peer = {0: step(2), 1: step(3)}, {0: step(4), 1: step(27)}
    r = ratio(ours, peer, 0.5)
    assert r.ratio == pytest.approx(18**0.5) and (r.bound, r.n) == ("", 2)  # pairs: 2 and 9
    assert "fewer labels" in str(r) and "more labels" in str(ratio(peer, ours, 0.5))


def test_ratio_with_censored_runs_is_a_bound():
    low = lambda top: ([10, top], [0.0, 0.4])
    r = ratio({0: step(2), 1: step(2)}, {0: step(4), 1: low(160)}, 0.5)
    assert r.bound == "≥" and r.ratio == pytest.approx((2 * 8) ** 0.5)
    assert not r.telling and str(r).startswith("at most"), "two pairs this far apart say little"
    r = ratio({s: step(2) for s in range(3)}, {s: low(150 + 5 * s) for s in range(3)}, 0.5)
    assert r.bound == "≥" and r.telling and str(r).startswith("at least 7.3× fewer labels (one-")
    r = ratio({s: low(150 + 5 * s) for s in range(3)}, {s: step(2) for s in range(3)}, 0.5)
    assert r.bound == "≤" and r.telling and str(r).startswith("at least 7.3× more labels (one-")
    r = ratio({0: step(2), 1: low(160)}, {0: low(160), 1: step(2)}, 0.5)
    assert r.bound == "?" and not r.telling
    r = ratio({0: step(2), 1: low(100)}, {0: step(4), 1: low(160)}, 0.5)
    assert (
        (r.n, r.neither, r.bound) == (1, 1, "")
        and r.ratio == pytest.approx(2)
        and "neither reached the target in 1 pair" in str(r)
    )
    assert r.high == np.inf, "one pair has no interval"
    r = ratio({s: low(100) for s in (0, 1)}, {s: low(100) for s in (0, 1)}, 0.5)
    assert r.n == 0 and "neither reached" in str(r)
    r = ratio({s: low(30) for s in (0, 1)}, {s: step(9) for s in (0, 1)}, 0.5)
    assert (r.bound, r.ratio) == ("≤", pytest.approx(3)) and not r.telling, (
        "ours was broken off: 'at most 3x' is no win"
    )
    there = {s: ([10, 20], [0.6, 0.9]) for s in (0, 1)}
    assert ratio(there, {s: step(4) for s in (0, 1)}, 0.5).bound == "≥", (
        "ours was there already: at least"
    )


def constructed(n=8):
    "a beats b by .1 everywhere, c equals b but wins at 40; noise far below"
    e = lambda: np.random.default_rng(e.i).normal(0, 1e-3, 3)
    e.i = 0

    def noisy(y):
        e.i += 1
        return [10, 20, 40], np.array(y) + e()

    return {
        "a": {s: noisy([0.6, 0.7, 0.8]) for s in range(n)},
        "b": {s: noisy([0.5, 0.6, 0.7]) for s in range(n)},
        "c": {s: noisy([0.5, 0.6, 0.75]) for s in range(n)},
    }


def test_dominance_on_constructed_runs():
    d = dominance(constructed())
    assert d.methods == ["a", "b", "c"] and d.budgets == [10, 20, 40] and d.note == ""
    assert d.share.round(3).tolist() == [
        [0, 1, 1],
        [0, 0, 0],
        [0, pytest.approx(1 / 3, abs=0.001), 0],
    ]
    assert d.wins[2, 2, 1] and not d.wins[:2, 2, 1].any()
    assert d.p[0, 0, 1] == pytest.approx(3 * 2 / 2**8), "Holm over the three pairs of a budget"


def test_few_seeds_cannot_win_and_it_is_said():
    d = dominance(constructed(3))
    assert not d.wins.any() and "3 seeds" in d.note and "nobody can win" in d.note


def test_dominance_holds_its_level_under_the_null():
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        runs = {m: {s: ([10], [rng.normal()]) for s in range(10)} for m in "abc"}
        false += dominance(runs).wins.any()
    assert false / 200 <= 0.09, false


def test_report():
    rows = {
        r.method: r
        for r in report(constructed() | {"random": constructed()["b"], "lone": {99: step(3)}}, 0.65)
    }
    assert rows["random"].ratio is None and rows["lone"].ratio is None and rows["lone"].seeds == 1
    assert rows["a"].difference.mean == pytest.approx(0.1, abs=0.003) and rows["b"].p == 1
    assert (
        rows["a"].median.labels == pytest.approx(10 * 2**0.5, rel=0.02) and rows["a"].arrived == 8
    )
    assert rows["a"].ratio.ratio == pytest.approx(2, rel=0.03)
    with pytest.raises(KeyError, match="no method 'x'"):
        report(constructed(), 0.65, "x")
    assert [r.arrived for r in report(constructed(), 0.99)] == [0, 0, 0]


def test_false_order():
    a, b = {s: ([10], [float(s)]) for s in range(4)}, {s: ([10], [s + 0.5]) for s in range(4)}
    assert false_order(a, b, 4) == 0 and false_order(b, a, 1, draws=40000) == pytest.approx(
        6 / 16, abs=0.01
    )  # by counting


def test_from_ledger_and_what_it_refuses():
    rows = [
        ("d", "a", 0, 1, 20, 0.6),
        ("d", "a", 0, 1, 10, 0.5),
        ("d", "b", 0, 1, 10, 0.4),
        ("e", "a", 5, 1, 10, 0.3),
    ]
    columns = dict(
        zip(("data", "method", "query", "seed", "labels", "value"), map(np.array, zip(*rows)))
    )
    runs = from_ledger(columns, "d", 0)
    assert (
        list(runs) == ["a", "b"]
        and runs["a"][1][0].tolist() == [10, 20]
        and runs["a"][1][1].tolist() == [0.5, 0.6]
    )
    with pytest.raises(ValueError, match=r"data=None: choose one of \['d', 'e'\]"):
        from_ledger(columns)
    with pytest.raises(ValueError, match="query=3"):
        from_ledger(columns, "d", 3)
    columns["labels"][1] = 20
    with pytest.raises(ValueError, match="must rise"):
        from_ledger(columns, "d", 0)


# ---- what must not change ----
values = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def grid(n):
    return 10.0 * 2 ** np.arange(n)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(0, 1), st.floats(1, 50), st.booleans())
def test_scaled_labels_scale_the_answer(y, target, c, stay):
    x = grid(len(y))
    a, b = labels_to_target(x, y, target, stay), labels_to_target(c * x, y, target, stay)
    assert b.labels == pytest.approx(c * a.labels) and (a.censored, a.already) == (
        b.censored,
        b.already,
    )
    assert log_auc(c * x, y) == pytest.approx(log_auc(x, y), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_needs_fewer_labels(y, t1, t2):
    a, b = (labels_to_target(grid(len(y)), y, t) for t in sorted((t1, t2)))
    assert a.labels <= b.labels + 1e-9 or a.censored


@settings(max_examples=60, deadline=None)
@given(values, st.floats(0, 1))
def test_to_stay_needs_no_fewer_labels(y, target):
    first, stay = (labels_to_target(grid(len(y)), y, target, s) for s in (False, True))
    assert first.labels <= stay.labels and (not first.censored or stay.censored)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(2, 9), st.floats(2, 9)), min_size=3, max_size=8))
def test_swapping_the_methods_inverts_the_ratio(pairs):
    a, b = ({s: step(p[i]) for s, p in enumerate(pairs)} for i in (0, 1))
    r, q = ratio(a, b, 0.5, resamples=300), ratio(b, a, 0.5, resamples=300)
    assert [r.ratio, r.low, r.high] == pytest.approx([1 / q.ratio, 1 / q.high, 1 / q.low], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_never_smaller_and_keeps_the_order(p):
    q = holm(p)
    assert (
        (q >= np.array(p) - 1e-12).all()
        and (np.diff(q[np.argsort(p)]) >= -1e-12).all()
        and (q <= 1).all()
    )


def test_reaches_keeps_the_seeds():
    assert list(reaches({4: step(2), 7: step(3)}, 0.5)) == [4, 7]


# ---- the lab's picture, without a browser ----
class Study:
    def __init__(self, runs, target=0.5, active=(), failures=(), advice=()):
        self.runs, self.target, self.active = lambda: runs, target, dict(active)
        self.failures, self.advice = list(failures), dict(advice)


def title(runs, **more):
    return EfficiencyView(["random", "x"]).scene(Study(runs, **more))["efficiency"].title


def test_the_headline_claims_no_more_than_its_interval():
    slow, fast = {s: step(4 + s / 9) for s in range(6)}, {s: step(2 + s / 9) for s in range(6)}
    mixed = {s: step(4.2 if s % 2 else 3.8) for s in range(6)}
    assert (
        title({"random": slow, "x": fast}) == "x: 1.9× fewer labels than random for 50 % (6 seeds)"
    )
    assert (
        title({"random": {s: step(4) for s in range(6)}, "x": mixed}) == "no clear winner at 50 %"
    )
    few = lambda r: {s: r[s] for s in range(3)}
    assert title({"random": few(slow), "x": few(fast)}) == "fewer than 5 seeds: no verdict at 50 %"
    assert title({"random": fast, "x": slow}) == "no clear winner at 50 %", "x is worse"
    assert title({"random": {0: step(4)}, "x": {0: step(2)}}) == "no clear winner at 50 %", (
        "one seed proves nothing"
    )
    assert title({}) == title({"x": {0: ([], [])}}) == "nobody has reached 50 % yet"


def test_failures_switches_and_advice_are_written():
    class Key:
        method = "x"

    study = Study(
        {"random": {0: step(4)}},
        active={"x": False},
        failures=[(Key(), 20, "boom")],
        advice={"x": Advice(True, 0.99, "stop: kappa 0.991 ≥ 0.99 over 3 rounds")},
    )
    scene = EfficiencyView(["random", "x"]).scene(study)
    assert [la[0] for la in scene["efficiency"].legend()] == ["random", "x (off, 1 failed)"]
    texts = [t.text for t in scene["table"].layers]
    assert "off, 1 failed · stop: kappa 0.991 ≥ 0.99" in texts and "no run yet" in texts


def test_runs_as_csv(tmp_path):
    path = to_csv({"x": {3: ([20, 40], [0.5, 0.25])}}, tmp_path / "a.csv")
    assert path.read_text().split() == ["method,seed,labels,value", "x,3,20,0.5", "x,3,40,0.25"]
