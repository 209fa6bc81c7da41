"What lessons show of a study: sentences, tables and pictures are the ledger's, controls are grey"

import numpy as np
import pytest
from matplotlib.colors import to_hex

from deffi_lab.show.layers import GREY
from deffi_lab.show.lesson import (
    draw_against,
    draw_false_orders,
    draw_metrics,
    draw_results,
    draw_series,
    results,
    stopped,
    stopping_results,
    verdicts,
)
from deffi_lab.study.evidence import describe
from deffi_lab.study.shipped import gains, metric, runs


def test_verdicts_are_the_gains_of_the_ledger_and_the_control_is_grey():
    text = verdicts("boosting", target=0.95).data
    for g in gains("boosting", "mnist", target=0.95):
        for effect in (g.over_baseline, g.over_control, g.control_over_baseline):
            assert describe(effect) in text
        assert g.verdict[1:] in text
    assert text.count(GREY) == len(text.splitlines()) == 2


def test_verdicts_at_several_budgets():
    text = verdicts("blockwise", "phantom", budget=(5, 20)).data
    one = verdicts("blockwise", "phantom", budget=20).data
    assert "at 5 labels" in text and one in text
    with pytest.raises(ValueError, match="the ledger has"):
        verdicts("blockwise", "heart", budget=5)


def test_curves_are_means_and_a_method_that_was_not_measured_is_left_out():
    where = {"grown": "phantom", "real": "glioma"}
    fig = draw_results("blockwise", where, ("greedy", "U-Net 2x"), control="U-Net 2x", scale=1)
    a, b = fig.axes
    x, y = a.lines[0].get_data()
    here = runs("blockwise", "phantom")["greedy"].values()
    k = list(x).index(20)
    assert y[k] == pytest.approx(np.mean([v[list(n).index(20)] for n, v in here if 20 in n]))
    assert to_hex(a.lines[1].get_color()) == GREY.lower()
    assert len(a.lines) == 2 and len(b.lines) == 1


def test_bars_are_means_over_seeds():
    fig = draw_metrics("boosting", "mnist", {"d": "apart"}, ("boost", "random"), control="random")
    bars = fig.axes[0].patches
    assert bars[0].get_width() == pytest.approx(
        metric("boosting", "mnist", "apart")["boost"].mean()
    )
    assert to_hex(bars[1].get_facecolor()) == GREY.lower()
    with pytest.raises(KeyError, match="no metric 'apart2'"):
        draw_metrics("boosting", "mnist", {"d": "apart2"}, ("boost",))


def test_a_series_and_one_metric_against_another():
    where = {"hearts": "heart"}
    names = {"clicks, field": "field", "by hand": "by hand"}
    fig = draw_series("labelling", where, {k: f"c{k}" for k in range(5)}, names, 5, "by hand")
    field, hand = fig.axes[0].lines
    assert list(field.get_xdata()) == [0, 1, 2, 3, 4] and list(hand.get_xdata()) == [3, 4]
    assert field.get_ydata()[1] == pytest.approx(
        metric("labelling", "heart", "c1", 5)["clicks, field"].mean()
    )
    lines = {"greedy": ("greedy", "greedy, polished"), "control": ("end to end",)}
    fig = draw_against("blockwise", "phantom", "gflops", {"Dice": "value"}, lines, 20, "control")
    x, y = fig.axes[0].lines[0].get_data()
    assert x[1] > x[0] and y[1] > y[0]
    assert to_hex(fig.axes[0].lines[1].get_color()) == GREY.lower()


def test_few_seeds_mislead_more_often_than_many():
    ax = draw_false_orders(runs("study", "mnist"), (1, 3, 10), most=6)
    one, three, ten = (np.mean(line.get_xdata()) for line in ax.lines)
    assert one > three > ten >= 0


def test_advice_stops_where_networks_agree_over_a_window():
    assert stopped([0, 0.5, 0.9, 0.9, 0.9, 0.9], 0.9) == 4
    assert stopped([0, 0.5, 0.6, 0.7], 0.9) is None
    low, high = (stopping_results("study", "mnist", ("boost",), (v,)) for v in (0.92, 0.99))
    count = lambda t: int(t.table.rows[0][2].split()[0])
    assert count(low) > count(high)


def test_results_show_themselves_as_a_table():
    names = {"boost": "ours", "random": "random"}
    shown = results("boosting", names=names, target=0.95, centre="geometric")
    assert "<td>ours</td>" in shown._repr_html_() and "370" in str(shown)
