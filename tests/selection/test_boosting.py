"""The walk against gradients by hand, the queries against
scikit-learn and numpy, the method on real digits"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import nn

from deffi_lab.core.pool import PersonOracle, Pool, Selection
from deffi_lab.core.run import Run
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.boosting import (
    BoostingKnobs,
    DeepBoosting,
    schemes,
)
from deffi_lab.methods.selection.latent_strategies import distinct
from deffi_lab.methods.selection.strategies import STRATEGIES, Strategy
from deffi_lab.methods.selection.teacher import teacher_oracle
from deffi_lab.methods.selection.walk import Space, Walks, walk
from deffi_lab.nets.vae import VAE, reference_vae
from deffi_lab.numeric.neighbours import herd, herding, nearest, spread


@pytest.fixture(scope="module")
def digits():
    return mnist()


@pytest.fixture(scope="module")
def space(digits):
    return Space(reference_vae(16), digits.x[:1500])


def method(digits, space, scheme="boost", seed=0, **how):
    pool = Pool(digits.x[:1500], lambda i: digits.y[i], 10)
    quick = dict(train_steps=20, query=15, first=30, budget=60, starts=60, steps=2) | how.pop(
        "knobs", {}
    )
    return DeepBoosting(
        pool,
        space.vae,
        digits.x_test[:500],
        digits.y_test[:500],
        BoostingKnobs(scheme=scheme, **quick),
        seed=seed,
        space=space,
        **how,
    )


def linear():
    "A decoder and a target, both linear, whose gradient is known by hand"
    g = make_generator(3)
    a, b = torch.randn(6, 3, generator=g), torch.randn(4, 6, generator=g)
    net = nn.Linear(6, 4, bias=False)
    net.weight.data = b
    return (lambda w: w @ a.T), net, a, b


def test_walk_follows_the_gradient_written_by_hand():
    decode, net, a, b = linear()
    w, y = torch.randn(9, 3, generator=make_generator(0)), torch.arange(9) % 4
    got = walk(w, y, decode, net, eta=0.3, steps=5, stop=False, chunk=4)
    for t in range(5):
        g = (F.softmax(w @ a.T @ b.T, 1) - F.one_hot(y, 4)) @ b @ a  # of the cross-entropy
        w = w + 0.3 * g / g.norm(dim=1, keepdim=True)
        assert torch.allclose(got.path[:, t + 1], w, atol=1e-5)
    assert torch.allclose(
        got.loss[:, -1], F.cross_entropy(w @ a.T @ b.T, y, reduction="none"), atol=1e-4
    )
    assert (got.loss[:, -1] > got.loss[:, 0]).all() and (got.taken == 5).all()


def test_walk_stops_where_the_class_flips():
    decode, net, _, _ = linear()
    w = torch.randn(40, 3, generator=make_generator(1))
    y = net(decode(w)).argmax(1)
    got = walk(w, y, decode, net, eta=0.2, steps=6)
    classes = torch.stack([net(decode(got.path[:, t])).argmax(1) for t in range(7)], 1)
    assert got.flipped.any() and torch.equal(got.flipped, classes[:, -1] != y)
    for i in range(40):
        t = int(got.taken[i])
        assert (classes[i, :t] == y[i]).all(), "it went on only where the class was still its own"
        assert (got.path[i, t:] == got.end[i]).all() and bool(classes[i, t] != y[i]) == bool(
            got.flipped[i]
        )
        assert t == 6 or got.flipped[i]


def test_controls_stay_or_go_as_far_at_random():
    decode, net, _, _ = linear()
    w, y = torch.randn(20, 3, generator=make_generator(2)), torch.zeros(20, dtype=torch.int64)
    still = walk(w, y, decode, net, eta=0.0, steps=3, stop=False)
    assert torch.equal(still.end, w)
    at_random = [
        walk(
            w,
            y,
            decode,
            net,
            eta=0.4,
            steps=3,
            stop=False,
            way="random",
            generator=make_generator(s),
        )
        for s in (5, 5, 6)
    ]
    assert torch.allclose(at_random[0].path.diff(dim=1).norm(dim=2), torch.tensor(0.4), atol=1e-5)
    assert torch.equal(at_random[0].path, at_random[1].path) and not torch.equal(
        at_random[0].path, at_random[2].path
    )
    up = walk(w, y, decode, net, eta=0.4, steps=3, stop=False)
    assert up.summary()["gain"] > at_random[0].summary()["gain"]


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_those_of_scikit_learn(k, space):
    free = torch.rand(1500, generator=make_generator(0)) < 0.3
    query = space.w[:300] + 0.5
    away, index = nearest(query, space.w, k, free)
    d, i = (
        NearestNeighbors(n_neighbors=k, algorithm="brute")
        .fit(space.w[free].double().numpy())
        .kneighbors(query.double().numpy())
    )
    assert np.array_equal(free.nonzero()[:, 0].numpy()[i], index.numpy()) and np.allclose(
        d, away.numpy(), atol=1e-4
    )


def test_herding_is_greedy_coverage():
    g = make_generator(0)
    z, weight = torch.randn(80, 3, generator=g), torch.rand(80, generator=g)
    kernel = (-0.5 * (torch.cdist(z, z) / 0.7) ** 2).exp()
    covered, picks = torch.zeros(80), []
    for _ in range(12):
        value = [float((weight * torch.maximum(covered, kernel[:, j])).sum()) for j in range(80)]
        picks.append(int(np.argmax(value)))
        covered = torch.maximum(covered, kernel[:, picks[-1]])
    assert herd(z, weight, 12, 0.7).tolist() == picks
    assert len(set(herding(z, weight, 0.7))) == 80


def test_first_choices_come_first():
    assert distinct(torch.tensor([[4, 1], [4, 2], [3, 9]]), 9).tolist() == [4, 3, 1, 2, 9]
    z = torch.cat([torch.zeros(30, 2), torch.ones(5, 2)]) + 0.01 * torch.rand(
        35, 2, generator=make_generator(0)
    )
    assert {
        bool(i >= 30) for i in spread(z, torch.arange(35.0).flip(0), 2, make_generator(0)).tolist()
    } == {True, False}


def sure_of_three(x):
    return torch.where(torch.arange(len(x)) % 3 == 0, -1, 3)


@pytest.mark.parametrize("scheme", schemes())
def test_every_scheme_runs_on_real_digits_and_counts_each_label(scheme, digits, space):
    asked = []
    m = method(digits, space, scheme, oracle=lambda x: (asked.append(len(x)), sure_of_three(x))[1])
    oracle = m.pool.oracle
    m.pool.oracle = lambda i: (asked.append(len(i)), oracle(i))[1]
    steps = list(m)
    assert m.finished and m.pool.asked == sum(asked) == m.curve[-1][0] >= 60
    assert len(m.order) == int(m.pool.labelled.sum()) and len(m.order.unique()) == len(m.order)
    assert [s.index for s in steps] == list(range(1, len(steps) + 1))
    if scheme == "si":
        accepted = sum(asked[1:]) - sum(len(range(0, n, 3)) for n in asked[1:])
        assert len(m.extra_x) == accepted and (m.extra_y == 3).all()
        assert sum(d["rejected"] for d in m.diagnosis) == sum(
            len(range(0, n, 3)) for n in asked[1:]
        )
    else:
        scores = m.selection.scores
        assert len(scores) == 1500
        chosen = m.selection.indices[: 15 - m.selection.filled]
        assert len(m.selection.indices) == 15 and not torch.isnan(scores[chosen]).any()
        assert torch.equal(m.pool.y[m.order], digits.y[m.order])
    if "walk" in {s.phase for s in steps}:
        assert m.trajectories.shape[0] == 6 and m.trajectories.shape[2] == space.z.shape[1]


def test_off_the_manifold_nobody_is_asked(digits, space):
    m = method(
        digits, space, "si", oracle=sure_of_three, knobs=dict(tolerance=0.1, eta=3.0, steps=8)
    )
    list(m)
    assert len(m.extra_x) == 0 and m.synthesised is None, "no image is on the manifold"
    assert m.selection.filled == 15 and m.pool.asked == 60, (
        "samples of the pool are asked for instead"
    )
    m = method(digits, space, "si", oracle=sure_of_three, knobs=dict(tolerance=1.2, start="prior"))
    list(m)
    assert sum(d["off_manifold"] for d in m.diagnosis) > 0


def test_a_run_taken_up_ends_with_the_same_bits(digits, space, tmp_path):
    for scheme, how in (("boost", {}), ("pool-walk", dict(retrain="warm")), ("margin-diverse", {})):
        whole = method(digits, space, scheme, knobs=how)
        list(whole)
        first = Run(method(digits, space, scheme, knobs=how))
        while first.method.round < 2 or not first.method.at_boundary:
            first.run(1)
        first.save(tmp_path / "s")
        rest = Run(method(digits, space, scheme, knobs=how))
        rest.load(tmp_path / "s")
        rest.run()
        m = rest.method
        assert [tuple(p) for p in m.curve] == whole.curve and torch.equal(m.order, whole.order)
        assert all(
            torch.equal(a, b)
            for a, b in zip(m.net.state_dict().values(), whole.net.state_dict().values())
        )


@pytest.mark.parametrize("at", [0, 1, 2, 3, 9, 10, 12, 17])
def test_a_round_begun_anew_draws_the_same(at, digits, space):
    m, n = method(digits, space, "random"), method(digits, space, "random")
    for i, s in enumerate(m):
        if i == at:
            break
    for s in n:
        pass
    for s in m:
        pass
    assert m.curve == n.curve
    m.reset()
    list(m)
    assert m.curve == n.curve


def test_live_knobs_act_on_the_next_step(digits, space):
    m = method(digits, space, "snn", knobs=dict(eta=0.5, steps=4))
    for s in m:
        if s.phase == "walk" and s.metrics["step"] == 1:
            m.knobs.eta = 0.0
        if m.round == 2:
            break
    moved = m.walks.path.diff(dim=1).norm(dim=2)
    assert torch.allclose(moved[:, :2], torch.tensor(0.5), atol=1e-4) and (moved[:, 2:] == 0).all()


def test_the_person_at_the_screen_is_the_oracle(digits, space):
    person = PersonOracle()
    m = method(digits, space, "margin", person=person, knobs=dict(first=6, query=4, budget=10))
    waiting = 0
    for s in m:
        if s.phase == "ask":
            waiting += 1
            i = person.pending[0]
            person.answer(i, -1 if waiting == 2 else int(digits.y[i]))
    assert (
        waiting >= 10
        and m.pool.asked == 10
        and int(m.pool.rejected.sum()) == 1
        and len(m.order) == 9
    )


def test_colour_images_of_ones_own(digits):
    g = make_generator(0)
    x = (torch.rand(120, 3, 16, 16, generator=g) * 255).to(torch.uint8)
    y = torch.arange(120) % 2
    x[y == 1, 0] //= 4
    vae = VAE(2, channels=3, size=16, width=16)
    for p in vae.parameters():
        p.data *= 3  # as if trained: latents that vary
    m = DeepBoosting(
        Pool(x, lambda i: y[i], 2),
        vae,
        x[:40],
        y[:40],
        BoostingKnobs(first=10, query=10, budget=30, train_steps=20),
    )
    list(m)
    assert m.curve[-1][0] == 30 and m.decode(m.z[:2]).shape == (2, 3, 16, 16)


def test_the_query_turned_down_acts_on_the_next_round(digits, space):
    m = method(digits, space, "margin", knobs=dict(budget=1000, query=200))
    for _ in m:
        if m.round == 2 and m.at_boundary:
            m.knobs.query = 7
        if m.round == 4:
            break
    assert [n for n, _ in m.curve] == [30, 230, 237, 244]


def test_si_without_a_labeller_is_refused_in_plain_words(digits, space):
    m = method(digits, space, "margin")
    with pytest.raises(ValueError, match="needs oracle="):
        for _ in m:
            m.knobs.scheme = "si"


def test_a_strategy_of_ones_own_is_a_scheme_by_its_name(digits, space, monkeypatch):
    ask = lambda pool, k, view, rng: Selection(pool.unlabelled_indices[-k:], -pool.y.float())
    with pytest.raises(ValueError, match="scheme='last'"):
        method(digits, space, "last")
    monkeypatch.setitem(STRATEGIES, "last", Strategy(ask))
    m = method(digits, space, "last")
    list(m)
    assert "last" in schemes() and sorted(m.order[30:].tolist()) != list(range(1470, 1500))
    assert set(m.order[30:].tolist()) <= set(range(1440, 1500))
    assert "poisson" not in schemes(), "what a graph learns is no scheme of a network"


def test_what_a_lab_looks_at(digits, space):
    m = method(digits, space, "snn")
    assert m.trajectories is None and m.at_boundary
    list(m)
    p, y = m.classify(m.decode(m.z[:7]))
    assert torch.equal(m.regions(m.z[:7]), y) and ((p > 0) & (p <= 1)).all()
    own = m.walk_from(m.z[:1], int(y[0]))
    on = space.whitener.alive
    assert own.shape == (1, 3, 16) and torch.allclose(own[:, 0, on], m.z[:1, on], atol=1e-4)
    assert f"{len(m.walks.y)} walks" in m.note()


def test_a_teacher_rejects_what_it_is_unsure_of():
    ask = teacher_oracle(nn.Flatten(), confidence=0.9)
    assert ask(torch.tensor([[[[5.0, 0.0]]], [[[0.1, 0.0]]]])).tolist() == [0, -1]


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(schedule=[40, 40]), "must rise"),
        (dict(schedule=[0, 5]), "at least 1"),
        (dict(schedule=[4000]), "1500"),
        (dict(knobs=dict(first=2000)), "1500"),
        (dict(scheme="si"), "oracle="),
        (dict(knobs=dict(budget=0)), "budget=0"),
        (dict(knobs=dict(query=0)), "query=0"),
        (dict(scheme="best"), "best"),
    ],
)
def test_bad_input_has_one_clear_error(how, words, digits, space):
    with pytest.raises(ValueError, match=words):
        method(digits, space, **how)


def test_bad_walks_and_states_are_refused(digits, space):
    decode, net, _, _ = linear()
    for bad in (dict(eta=-1), dict(eta=float("nan")), dict(steps=-1), dict(way="up")):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Walks(torch.zeros(2, 3), torch.zeros(2).long(), decode, net, **bad)
    with pytest.raises(ValueError, match="one for each"):
        walk(torch.zeros(2, 3), torch.zeros(3).long(), decode, net)
    for k in (0, 4):
        with pytest.raises(ValueError, match="3 points"):
            nearest(torch.zeros(1, 2), torch.zeros(3, 2), k)
    m = method(digits, space, "random")
    with pytest.raises(ValueError, match="seed=0"):
        method(digits, space, seed=1).load_state_dict(m.state_dict())


def test_a_pool_that_ends_early_ends_the_run(digits, space):
    pool = Pool(digits.x[:50], lambda i: digits.y[i], 10)
    m = DeepBoosting(
        pool,
        space.vae,
        digits.x_test[:100],
        digits.y_test[:100],
        BoostingKnobs(scheme="snn", first=20, query=20, budget=1000, train_steps=5),
    )
    list(m)
    assert [n for n, _ in m.curve] == [20, 40, 50]
