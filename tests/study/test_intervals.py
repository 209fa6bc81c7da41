"""Intervals keep their promise: coverage by simulation, nested intervals against a mixed model by
hand, bounds that are not above the truth"""

import numpy as np
import pytest
from scipy import stats

from deffi_lab.study.curves import Seeds, band, clusters_of, from_ledger, labels_to_target
from deffi_lab.study.evidence import describe, gain, ratio_cell, table
from deffi_lab.study.intervals import FEW, bca, cluster_means, counts, estimate, student
from deffi_lab.study.shipped import columns, runs
from deffi_lab.study.statistics import (
    difference_at,
    dominance,
    paired_difference,
    ratio,
    wilcoxon,
)


# ---- one function that chooses ----
def test_students_interval_is_scipys():
    d = np.array([0.02, 0.05, 0.03, 0.01])
    low, high = stats.t.interval(0.95, 3, d.mean(), stats.sem(d))
    assert student(d) == pytest.approx((low, high))
    assert student(d[:1]) == (-np.inf, np.inf)
    for bad, what in ((([],), "no values"), ((d, 95), "level=95")):
        for way in (student, bca):
            with pytest.raises(ValueError, match=what):
                way(*bad)


def test_up_to_twenty_values_get_students_interval_and_more_the_bootstraps():
    d = np.random.default_rng(0).normal(size=FEW + 1)
    assert FEW == 20
    few, many = estimate(d[:-1]), estimate(d)
    assert (few.low, few.high, few.how) == (*student(d[:-1]), "t")
    assert (many.low, many.high, many.how) == (*bca(d), "BCa") and bca(d) != student(d)


def test_a_one_sided_bound_is_one_end_of_a_wider_level():
    d = np.random.default_rng(0).normal(size=9)
    want = stats.t.ppf(0.95, 8) * stats.sem(d)
    low, high = estimate(d, side="low"), estimate(d, side="high")
    assert (low.low, low.high) == (pytest.approx(d.mean() - want), np.inf)
    assert (high.low, high.high) == (-np.inf, pytest.approx(d.mean() + want))
    for bad, what in (
        (dict(side="left"), "choose from both"),
        (dict(side="low", level=0.5), "0.5"),
    ):
        with pytest.raises(ValueError, match=what):
            estimate(d, **bad)


# ---- coverage by simulation ----
def covered(x, clusters=None, level=0.95):
    "Share of rows of `x` [studies, n] whose Student's interval holds 0, all rows at once"
    v = x if clusters is None else np.stack([x[:, clusters == c].mean(1) for c in set(clusters)], 1)
    half = stats.t.ppf(0.5 + level / 2, v.shape[1] - 1) * v.std(1, ddof=1) / v.shape[1] ** 0.5
    ends = np.array([student(row, level, clusters) for row in x[:20]])
    assert ends == pytest.approx(np.stack([v.mean(1) - half, v.mean(1) + half], 1)[:20])
    return np.mean(np.abs(v.mean(1)) <= half)


@pytest.mark.parametrize("n", [2, 4, 10, 20])
def test_students_interval_covers_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    assert covered(rng.normal(size=(20_000, n))) == pytest.approx(0.95, abs=0.006)
    skewed = rng.gamma(4, size=(20_000, n)) - 4
    assert covered(skewed) >= 0.92


@pytest.mark.parametrize("n, most", [(2, 0.65), (4, 0.87), (10, 0.935)])
def test_the_bootstrap_does_not_where_values_are_few(n, most):
    """Why `FEW` is not smaller"""
    x = np.random.default_rng(n).normal(size=(800, n))
    ends = np.array([bca(v, resamples=300) for v in x])
    share = np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
    assert share < most < covered(x)


@pytest.mark.parametrize("groups, each", [(2, 10), (5, 4), (10, 2)])
def test_nested_intervals_cover_and_those_that_ignore_the_clusters_do_not(groups, each):
    rng, clusters = np.random.default_rng(groups), np.arange(groups).repeat(each)
    shared = rng.normal(size=(20_000, groups)).repeat(each, 1)
    x = shared + rng.normal(size=(20_000, groups * each))
    assert covered(x, clusters) == pytest.approx(0.95, abs=0.006)
    assert covered(x) < 0.9


def test_nested_intervals_stay_on_the_safe_side_of_unequal_groups():
    """Ibragimov & Müller: at 95 % Student's t over means of unequal variance covers no less"""
    rng, sizes = np.random.default_rng(0), (1, 2, 3, 12)
    clusters = np.arange(4).repeat(sizes)
    x = 0.1 * rng.normal(size=(20_000, 4)).repeat(sizes, 1) + rng.normal(size=(20_000, 18))
    assert covered(x, clusters) >= 0.945


# ---- nested intervals by hand ----
def test_the_nested_interval_is_the_balanced_mixed_models():
    """y = m + cluster + noise: the variance of the mean is (cluster's + noise's / seeds) / groups,
    estimated by the mean square between clusters over all values, with groups - 1 degrees"""
    rng, groups, each = np.random.default_rng(3), 4, 5
    y = rng.normal(size=(groups, 1)) + 0.5 * rng.normal(size=(groups, each))
    between = each * np.sum((y.mean(1) - y.mean()) ** 2) / (groups - 1)
    within = np.sum((y - y.mean(1, keepdims=True)) ** 2) / (groups * (each - 1))
    of_clusters = (between - within) / each
    assert of_clusters > 0
    variance = (of_clusters + within / each) / groups
    half = stats.t.ppf(0.975, groups - 1) * variance**0.5
    e = estimate(y.ravel(), np.arange(groups).repeat(each))
    assert (e.mean, e.low, e.high) == pytest.approx((y.mean(), y.mean() - half, y.mean() + half))
    assert (e.n, e.clusters, e.how) == (20, 4, "t")


def test_clusters_by_hand():
    assert cluster_means([1, 3, 10], ["a", "a", "b"]).tolist() == [2, 10]
    e = estimate([1, 3, 10], ["a", "a", "b"])
    assert (e.mean, e.high) == (6, pytest.approx(6 + stats.t.ppf(0.975, 1) * 4))
    one = estimate([1.0, 3.0, 10.0], [5, 5, 5])
    assert (one.low, one.high) == student([1, 3, 10]) and one.clusters == 1
    with pytest.raises(ValueError, match="2 clusters for 3 values"):
        estimate([1, 3, 10], [0, 1])
    assert counts(20, 2, "encoder") == "20 pairs, 2 encoders"
    assert counts(1, unit="seed") == "1 seed"


# ---- runs that know what they share ----
def columns_of(encoder):
    seeds = np.arange(4)
    return dict(
        data=np.array(["d"] * 4), method=np.array(["m"] * 4), query=np.zeros(4, int), seed=seeds,
        labels=np.full(4, 20), value=np.array([0.1, 0.2, 0.5, 0.6]), encoder=np.array(encoder),
    )  # fmt: skip


def test_a_ledgers_runs_carry_their_cluster():
    r = from_ledger(columns_of([0.0, 0, 1, 1]), cluster="encoder")["m"]
    assert isinstance(r, Seeds) and (r.cluster, r.shared) == ({0: 0, 1: 0, 2: 1, 3: 1}, "encoder")
    _, mean, low, high = band(r)
    assert (low[0], high[0]) == pytest.approx(student([0.15, 0.55]))
    assert mean[0] == pytest.approx(0.35)
    t = table({"m": r}, [20], scale=1, digits=2)
    assert t.rows == [["m", f"0.35 ± {high[0] - 0.35:.2f}"]]
    assert t.note == "m: 4 seeds, 2 encoders (± over encoders)"
    assert not isinstance(from_ledger(columns_of([0, 0, 1, 1]))["m"], Seeds)
    assert not isinstance(from_ledger(columns_of([0, 0, 1, np.nan]), cluster="encoder")["m"], Seeds)
    with pytest.raises(ValueError, match="seed 1: no encoder"):
        Seeds({0: 0, 1: 0}, {0: 0}, "encoder")


def test_pairs_are_over_the_clusters_of_the_method_that_has_them():
    ours = from_ledger(columns_of([0, 0, 1, 1]), cluster="encoder")["m"]
    peer = {s: ([20], [0.1]) for s in range(4)}
    for d in (difference_at(ours, peer, 20), paired_difference(ours, peer)):
        assert (d.low, d.high) == pytest.approx(student([0.05, 0.45]))
        assert (d.n, d.clusters, d.shared, d.p) == (4, 2, "encoder", wilcoxon([0.05, 0.45]))
        assert describe(d).endswith("4 pairs, 2 encoders)")
    assert dominance({"a": ours, "b": peer}).note.startswith("2 seeds"), (
        "two clusters prove nothing"
    )
    other = Seeds(peer, {0: 0, 1: 1, 2: 1, 3: 1}, "encoder")
    with pytest.raises(ValueError, match="seed 1: encoder 0 in one method and 1 in the other"):
        clusters_of(range(4), ours, other)


@pytest.mark.parametrize("labels, half", [(20, 0.74), (30, 0.89), (100, 0.32)])
def test_the_recipes_interval_holds_the_spread_over_its_two_encoders(labels, half):
    _, mean, low, high = band(runs("fewest", "mnist")["fewest"])
    x = list(band(runs("fewest", "mnist")["fewest"])[0])
    c, i = columns("fewest"), x.index(labels)
    here = (c["data"] == "mnist") & (c["method"] == "fewest") & (c["labels"] == labels)
    a, b = (c["value"][here & (c["encoder"] == k)].mean() for k in (0, 1))
    assert 100 * (high - low)[i] / 2 == pytest.approx(half, abs=0.005)
    assert mean[i] == pytest.approx((a + b) / 2)
    assert high[i] - mean[i] == pytest.approx(stats.t.ppf(0.975, 1) * abs(a - b) / 2)


# ---- ratios and their bounds ----
def line(labels, first=10.0, last=1000.0):
    "A run that reaches .5 at `labels`, seen from `first` to `last` budget only"
    x = np.unique([first, np.clip(labels, first, last), last])
    return x, 0.5 + 0.1 * (np.log(x) - np.log(labels))


def test_the_line_reaches_its_target_where_it_should():
    assert labels_to_target(*line(70.0), 0.5).labels == pytest.approx(70)
    assert labels_to_target(*line(7.0), 0.5).already and labels_to_target(*line(2e3), 0.5).censored


def test_a_ratio_without_censoring_has_students_interval_of_its_logarithms():
    peer = np.array([100, 300, 250.0])
    r = ratio({s: line(50) for s in range(3)}, {s: line(v) for s, v in enumerate(peer)}, 0.5)
    assert (r.low, r.high) == pytest.approx(np.exp(student(np.log(peer / 50))))
    assert r.how == "t" and str(r) == f"{r.claim} labels ({r.low:.1f}..{r.high:.0f}, 3 pairs)"


@pytest.mark.parametrize("n", [4, 10, 20])
@pytest.mark.parametrize("ends", [(10.0, 400.0), (30.0, 1e9), (28.0, 420.0), (20.0, 600.0)])
def test_a_bound_misses_the_truth_no_more_often_than_its_level(n, ends):
    """Runs of which some are there at their first budget, or never arrive: the one-sided bound is
    above the true ratio (8) in at most 5 of 100 studies"""
    rng, studies = np.random.default_rng(n), 400
    ours = np.exp(np.log(40) + 0.3 * rng.normal(size=(studies, n)))
    peer = np.exp(np.log(320) + 0.3 * rng.normal(size=(studies, n)))
    missed, bounds = 0, 0
    for a, b in zip(ours, peer):
        r = ratio(*({s: line(v, *ends) for s, v in enumerate(m)} for m in (a, b)), 0.5)
        assert r.bound in ("", "≥")
        bounds += r.bound == "≥"
        missed += r.bound == "≥" and r.low > 8
        assert r.bound == "" or r.high == np.inf, "no two-sided interval of a bound"
    assert bounds > 0.05 * studies and missed <= 0.06 * studies


def test_the_words_of_a_bound():
    there, far = (
        {s: line(5) for s in range(4)},
        {s: line(v) for s, v in enumerate((90, 70, 60, 80))},
    )
    r = ratio(there, far, 0.5)
    limit = np.exp(estimate(np.log([9, 7, 6, 8]), side="low").low)
    assert (r.bound, r.low, r.high) == ("≥", pytest.approx(limit), np.inf) and r.telling
    shown = np.floor(10 * limit) / 10  # a lower bound is rounded down
    assert str(r) == f"at least {shown}× fewer labels (one-sided 95 %, 4 pairs)"
    assert ratio_cell(r) == f"at least {np.floor(100 * limit) / 100:.2f}"
    r = ratio(far, there, 0.5)
    assert r.bound == "≤" and r.telling and r.low == 0
    assert str(r) == f"at least {shown}× more labels (one-sided 95 %, 4 pairs)"
    slow = {s: line(2000, last=v) for s, v in enumerate((100, 110, 100, 120))}
    r = ratio(slow, {s: line(500) for s in range(4)}, 0.5)
    assert not r.telling and str(r).startswith("at most 5.2× fewer labels (one-sided")
    assert ratio_cell(r).startswith("at most 5.1")


def test_bounds_of_both_kinds_have_no_number():
    a = {0: line(5), 1: line(2000), 2: line(50)}
    b = {0: line(90), 1: line(100), 2: line(60)}
    r = ratio(a, b, 0.5)
    assert r.bound == "?" and np.isnan([r.ratio, r.low, r.high]).all() and not r.telling
    assert str(r) == "open: bounds of both kinds (3 pairs)" and ratio_cell(r) == "open"
    one = ratio({0: line(5), 1: line(2000)}, {0: line(90), 1: line(2000)}, 0.5)
    assert one.n == 1 and one.limit is None and not one.telling
    assert str(one).startswith("open: ≥9.0 without an interval (1 pair; neither reached")


def test_both_there_at_the_first_budget_is_not_neither():
    """Two methods that begin above the target were reported as two that never reached it"""
    early, late = {s: line(5) for s in range(3)}, {s: line(2000) for s in range(3)}
    r = ratio(early, early, 0.5)
    assert (r.n, r.neither, r.at_once) == (0, 0, 3)
    assert str(r) == "both were there at the first budget in 3 pairs" == ratio_cell(r)
    r = ratio(late, late, 0.5)
    assert (r.neither, r.at_once, str(r)) == (3, 0, "neither reached the target in 3 pairs")
    assert ratio_cell(r) == "neither arrives"
    mixed = ratio({0: line(5), 1: line(2000)}, {0: line(5), 1: line(2000)}, 0.5)
    assert (mixed.neither, mixed.at_once) == (1, 1)
    assert str(mixed) == (
        "neither reached the target in 1 pair; both were there at the first budget in 1 pair"
    )


def test_a_verdict_on_one_encoder_says_so():
    def of(v, encoders):
        return Seeds({s: line(v * (1 + s / 50)) for s in range(6)}, encoders, "encoder")

    one, two = {s: 0 for s in range(6)}, {s: s % 2 for s in range(6)}
    peer = {s: line(400 + s) for s in range(6)}
    for encoders, end in ((one, "control on the one encoder tried"), (two, "control")):
        both = {"ours": of(50, encoders), "control": of(200, encoders), "peer": peer}
        g = gain(both, "ours", "peer", "control", target=0.5)
        assert g.verdict.endswith(f"of its control {end}"), g.verdict
        assert f"6 pairs, {len(set(encoders.values()))} encoder" in str(g)
