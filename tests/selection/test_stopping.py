"""When to stop: agreement against scikit-learn,
criteria on made sequences, regret by hand, one real run"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.stopping import (
    CRITERIA,
    Regret,
    Stopper,
    StoppingKnobs,
    cohen_kappa,
    f_change,
    regret,
    uncertainty,
)
from deffi_lab.nets.vae import latents, reference_vae


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_kappa_is_scikit_learns(pairs):
    a, b = torch.tensor(pairs).T
    want = cohen_kappa_score(a.numpy(), b.numpy())
    assert cohen_kappa(a, b) == pytest.approx(1.0 if np.isnan(want) else want, abs=1e-9)
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa(b, a), abs=1e-12)


def test_kappa_by_hand():
    assert cohen_kappa(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0])) == pytest.approx(0.5)
    assert cohen_kappa(torch.zeros(5).long(), torch.zeros(5).long()) == 1.0
    with pytest.raises(ValueError, match="2 and 3 predictions"):
        cohen_kappa(torch.zeros(2).long(), torch.zeros(3).long())


def test_f_change_by_hand():
    "class 0: 2 common of 2 + 3 named, F 4/5; class 1: 1 common of 2 + 1, F 2/3"
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0])
    assert f_change(a, b) == pytest.approx(1 - (4 / 5 + 2 / 3) / 2)
    assert f_change(a, a) == 0 and f_change(torch.tensor([0, 0]), torch.tensor([5, 5])) == 1


def test_uncertainty_by_hand():
    assert uncertainty(torch.zeros(4, 10)) == pytest.approx(1.0)
    assert uncertainty(torch.tensor([[0.0, 100.0]])) == pytest.approx(0.0, abs=1e-6)
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    want = (-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / np.log(2) + 1) / 2
    assert uncertainty(p.log()) == pytest.approx(want)


def feed(shares, n=1000, **knobs):
    "Predictions of which a given share changes each round; what was advised"
    classes, stopper, out = torch.arange(n) % 10, Stopper(StoppingKnobs(**knobs)), []
    out.append(stopper.update(classes))
    for share in shares:
        classes = classes.clone()
        classes[: round(share * n)] = (classes[: round(share * n)] + 1) % 10
        out.append(stopper.update(classes))
    return out


def test_kappa_stops_where_the_mean_of_three_rounds_is_calm():
    advice = feed([0.2, 0.004, 0.004, 0.004, 0.3])
    assert [a.stop for a in advice] == [False, False, False, False, True, False]
    assert (
        advice[4].value == pytest.approx(1 - 0.004 / 0.9, abs=1e-3)
        and "≥ 0.99 over 3 rounds" in advice[4].reason
    )
    assert (
        np.isnan(advice[0].value)
        and "first round" in advice[0].reason
        and "2 of 3" in advice[2].reason
    )


@pytest.mark.parametrize("criterion", ["change", "f-score"])
def test_change_must_be_small_in_each_round(criterion):
    advice = feed([0.005, 0.02, 0.005, 0.005, 0.005], criterion=criterion)
    assert [a.stop for a in advice] == [False] * 5 + [True]
    assert [a.stop for a in feed([0.02, 0.02], criterion=criterion, window=1, change=0.03)] == [
        False,
        True,
        True,
    ]


def test_sure_networks_stop_on_uncertainty_and_confidence():
    for criterion in ("uncertainty", "confidence"):
        s = Stopper(StoppingKnobs(criterion=criterion, window=2))
        advice = [s.update(torch.eye(10) * scale) for scale in (1.0, 5.0, 12.0, 12.0)]
        assert [a.stop for a in advice] == [False, False, False, True], criterion


def test_a_window_of_one_and_a_threshold_of_one():
    assert feed([0.0], window=1, agreement=1.0)[1].stop
    assert not feed([0.001], window=1, agreement=1.0)[1].stop


def test_saved_and_taken_up():
    g = torch.Generator().manual_seed(0)
    rounds = [torch.randn(50, 3, generator=g) for _ in range(6)]
    whole, half, other = (Stopper() for _ in range(3))
    want = [whole.update(r) for r in rounds]
    for r in rounds[:3]:
        half.update(r)
    other.load_state_dict(half.state_dict())
    assert [other.update(r) for r in rounds[3:]] == want[3:]
    whole.reset()
    assert not whole.values and whole.last is None


@pytest.mark.parametrize(
    "out, what",
    [
        (torch.full((5, 3), float("nan")), "15 logits are not finite"),
        (torch.zeros(0, 3), "n >= 1"),
        (torch.zeros(2, 3, 4), r"shape \[2, 3, 4\]"),
        (torch.zeros(7, 3), "7 predictions after 5"),
        (torch.zeros(5), "whole numbers"),
    ],
)
def test_bad_predictions_are_named(out, what):
    s = Stopper()
    s.update(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=what):
        s.update(out)


def test_bad_knobs_and_missing_logits_are_named():
    with pytest.raises(ValueError, match="criterion='x'"):
        Stopper(StoppingKnobs(criterion="x"))
    with pytest.raises(ValueError, match="window=0"):
        Stopper(StoppingKnobs(window=0))
    with pytest.raises(ValueError, match="needs logits"):
        Stopper(StoppingKnobs(criterion="confidence")).update(torch.zeros(4).long())


# ---- regret ----
x, y = [20, 40, 80, 160, 320], [0.6, 0.8, 0.896, 0.899, 0.9]


def test_regret_by_hand():
    assert regret(x, y, 160) == Regret(80, 160, 80, 0.0, 160, True)
    late = regret(x, y, None)
    assert late == Regret(80, 320, 240, 0.0, 0, False)
    early = regret(x, y, 40)
    assert (early.labels, early.saved) == (-40, 280) and early.accuracy == pytest.approx(0.096)
    assert regret(x, y, 160, slack=0).best == 320 and regret(x, y, 160, slack=1).best == 20
    assert regret(x, y, 80).labels == 0


@pytest.mark.parametrize(
    "bad, what",
    [
        (lambda: regret(x, y, 50), "stop_at=50"),
        (lambda: regret(x, y[:2], 20), "5 labels, 2 values"),
        (lambda: regret([], [], None), "at least 1"),
        (lambda: regret(x, y, 20, slack=-1), "slack=-1"),
    ],
)
def test_bad_regret_is_named(bad, what):
    with pytest.raises(ValueError, match=what):
        bad()


@pytest.fixture(scope="module")
def digits():
    """Logits on a stop set and test accuracy, round after
    round, of a linear classifier on latents of MNIST"""
    data, vae = mnist(), reference_vae(16)
    z, z_test = (latents(vae, v) for v in (data.x, data.x_test))
    order = torch.randperm(len(z), generator=make_generator(0))
    watched, order = order[:1000], order[1000:]
    budgets, outs, acc = list(range(50, 2001, 50)), [], []
    for n in budgets:
        net = LogisticRegression(max_iter=500).fit(z[order[:n]], data.y[order[:n]])
        outs.append(torch.tensor(net.decision_function(z[watched])))
        acc.append(float(net.score(z_test, data.y_test)))
    return budgets, outs, acc


def stop_of(digits, **knobs):
    s = Stopper(StoppingKnobs(**knobs))
    return next((n for n, o in zip(digits[0], digits[1]) if s.update(o).stop), None)


def test_on_digits_it_stops_late_enough_and_saves_labels(digits):
    stop = stop_of(digits)
    assert stop is not None
    r = regret(digits[0], digits[2], stop)
    assert r.saved >= 300 and r.accuracy <= 0.005, r
    early = stop_of(digits, agreement=0.95)
    assert early < stop, "a milder threshold stops earlier"
    assert set(CRITERIA) >= {"kappa", "change"} and stop_of(digits, criterion="change") is not None
