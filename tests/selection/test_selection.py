"Baselines of selection against numpy and scikit-activeml, and their common face"

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from scipy.stats import entropy as scipy_entropy

from deffi_lab.core.pool import Pool, Selection
from deffi_lab.core.step import make_generator
from deffi_lab.methods.selection.baselines import (
    badge_query,
    bald_query,
    coreset_query,
    coverage_query,
    entropy_query,
    gradient_parts,
    margin_diverse_query,
    margin_query,
    probcover_query,
    random_query,
    stratified_query,
    typiclust_query,
)
from deffi_lab.methods.selection.strategies import (
    ROWS,
    STRATEGIES,
    Strategy,
    choose,
    query,
    skactiveml_query,
    strategy,
)
from deffi_lab.methods.selection.view import View
from deffi_lab.numeric.cover import (
    ball_count,
    clusters,
    lazy_greedy,
    least_distance,
    max_cover,
    most_typical,
    purity_radius,
)
from deffi_lab.numeric.neighbours import entropy, margin

N = 400
CENTRES = torch.tensor([[0.0, 0], [4, 0], [0, 4], [4, 4]])


@pytest.fixture
def problem():
    g = make_generator(0)
    truth = torch.arange(N) % 4
    z = CENTRES[truth] + torch.randn(N, 2, generator=g) * 0.6
    pool = Pool(torch.zeros(N, 1, 2, 2, dtype=torch.uint8), lambda i: truth[i], 4)
    pool.label(torch.tensor([0, 5]))
    return pool, z, -(z[:, None] - CENTRES).square().sum(2), truth


class Plane:
    "A latent space of two dimensions, whose images are the latents themselves"

    def __init__(self, z):
        self.w = self.z = z

    def decode(self, w):
        return w[:, None, None].expand(-1, 1, 2, 2)

    def encode(self, x):
        return x[:, 0, 0]


def plane_net():
    "Images of two numbers -> logits of four classes"
    net = torch.nn.Sequential()
    net.features = torch.nn.Flatten()
    net.head = torch.nn.Linear(4, 4)
    net.forward = lambda x: net.head(net.features(x))
    g = make_generator(3)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g)
    return net


def view_of(z, logits):
    g = make_generator(7)
    draws = (logits + torch.randn(4, *logits.shape, generator=g)).softmax(2)
    rows = (logits, torch.cat([z, torch.ones(len(z), 1)], 1), z, draws)
    return View(*rows, net=plane_net(), space=Plane(z))


PICKING = [name for name, s in STRATEGIES.items() if not s.synthesises]
BY_ROWS = [name for name, s in STRATEGIES.items() if set(s.needs) & set(ROWS)]


QUERIES = {
    "random": lambda p, z, lo, k, g: random_query(p, k, g),
    "margin": lambda p, z, lo, k, g: margin_query(p, lo, k),
    "entropy": lambda p, z, lo, k, g: entropy_query(p, lo, k),
    "diverse": lambda p, z, lo, k, g: margin_diverse_query(p, lo, z, k, g),
    "badge": lambda p, z, lo, k, g: badge_query(p, lo, z, k, g),
    "typiclust": lambda p, z, lo, k, g: typiclust_query(p, z, k, g),
    "coverage": lambda p, z, lo, k, g: coverage_query(p, z, k, g),
    "coverage, whole": lambda p, z, lo, k, g: coverage_query(p, z, k, g, among=None),
    "badge, whole": lambda p, z, lo, k, g: badge_query(p, lo, z, k, g, among=None),
    "coreset": lambda p, z, lo, k, g: coreset_query(p, z, k, g),
    "probcover": lambda p, z, lo, k, g: probcover_query(p, z, k, g),
    "bald": lambda p, z, lo, k, g: bald_query(p, view_of(z, lo).draws, k),
    "stratified": lambda p, z, lo, k, g: stratified_query(p, lo, k, g),
}
each = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())


@each
@pytest.mark.parametrize("k", [1, 12, N - 2])
def test_each_chooses_k_different_unlabelled_with_scores_for_all(query, k, problem):
    pool, z, logits, _ = problem
    s = query(pool, z, logits, k, make_generator(1))
    assert len(s.indices) == len(s.indices.unique()) == k and pool.unlabelled[s.indices].all()
    assert torch.equal(torch.isnan(s.scores), pool.labelled)
    assert torch.equal(s.indices, query(pool, z, logits, k, make_generator(1)).indices)


@each
@pytest.mark.parametrize("k", [0, -1, N])
def test_each_refuses_what_is_not_there(query, k, problem):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match=f"={k}"):
        query(pool, z, logits, k, make_generator(1))


def test_doubt_is_that_of_numpy(problem):
    pool, z, logits, _ = problem
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    top = np.sort(p, 1)
    assert np.allclose(margin(logits), top[:, -1] - top[:, -2], atol=1e-5)
    assert np.allclose(entropy(logits), scipy_entropy(p, axis=1), atol=1e-5)
    free = np.flatnonzero(pool.unlabelled.numpy())
    assert set(margin_query(pool, logits, 9).indices.tolist()) == set(
        free[np.argsort((top[:, -1] - top[:, -2])[free])[:9]]
    )
    assert set(entropy_query(pool, logits, 9).indices.tolist()) == set(
        free[np.argsort(-scipy_entropy(p, axis=1)[free])[:9]]
    )


def test_typical_and_covering_ones_find_every_cluster(problem):
    pool, z, _, truth = problem
    for s in (
        typiclust_query(pool, z, 4, make_generator(0)),
        coverage_query(pool, z, 6, make_generator(0), sigma=0.8),
    ):
        assert {2, 3} <= set(truth[s.indices].tolist()), "the clusters without a label"


def test_badge_takes_long_and_different_gradients(problem):
    pool, z, logits, truth = problem
    s = badge_query(pool, logits, torch.cat([z, torch.ones(N, 1)], 1), 20, make_generator(0))
    assert s.scores[s.indices].mean() > 2 * s.scores[pool.unlabelled].mean()
    assert (
        margin_diverse_query(pool, logits, z, 20, make_generator(0)).indices.unique().numel() == 20
    )


def test_numbers_that_are_not_are_refused(problem):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match="not finite"):
        margin_query(pool, logits * torch.nan, 3)
    with pytest.raises(ValueError, match="rows"):
        margin_query(pool, logits[:5], 3)


# The one face


@pytest.mark.parametrize("name", PICKING)
@pytest.mark.parametrize("k", [1, 15, N - 2])
def test_each_name_answers_alike_and_for_every_candidate(name, k, problem):
    pool, z, logits, _ = problem
    s = query(name, pool, k, view_of(z, logits), make_generator(1))
    assert len(s.indices) == len(s.indices.unique()) == k and pool.unlabelled[s.indices].all()
    unscored = torch.isnan(s.scores)
    if STRATEGIES[name].partial:
        assert unscored[pool.labelled].all() and not unscored[s.indices[: k - s.filled]].any()
    else:
        assert torch.equal(unscored, pool.labelled) and s.filled == 0
    assert torch.equal(
        s.indices, query(name, pool, k, view_of(z, logits), make_generator(1)).indices
    )


def test_all_names_that_are_promised_are_there():
    assert set(STRATEGIES) >= {
        "random",
        "stratified",
        "entropy",
        "margin",
        "bald",
        "coreset",
        "badge",
        "typiclust",
        "probcover",
        "maxherding",
        "margin-diverse",
        "boost",
        "pool-walk",
        "snn",
        "snn-decoded",
        "si",
        "poisson",
    }


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("k", [0, -3, N - 1])
def test_each_name_refuses_a_k_that_is_not_there(name, k, problem):
    pool, z, logits, _ = problem
    with pytest.raises(
        ValueError, match=f"k={k}: {N - 2} unlabelled samples are left, choose 1..{N - 2}"
    ):
        query(name, pool, k, view_of(z, logits), make_generator(0))


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.needs])
def test_each_name_says_what_the_view_lacks(name, problem):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match=f"{name} needs view.{STRATEGIES[name].needs[0]}"):
        query(name, pool, 3, View(), make_generator(0))


@pytest.mark.parametrize("name", BY_ROWS)
def test_nan_in_the_view_is_counted_and_named(name, problem):
    pool, z, logits, _ = problem
    view = view_of(z, logits)
    need = STRATEGIES[name].needs[-1]
    broken = getattr(view, need).clone()
    broken[(0, slice(3, 6)) if need == "draws" else slice(3, 6)] = torch.nan
    with pytest.raises(
        ValueError, match=f"{name}: view.{need} has values that are not finite in 3 of {N} rows"
    ):
        query(name, pool, 3, View(**{**vars(view), need: broken}), make_generator(0))


def test_a_strategy_of_ones_own_is_checked_too(problem, monkeypatch):
    pool, z, logits, _ = problem
    good = query("random", pool, 3, View(), make_generator(0))
    nan = good.scores.clone().index_fill(0, torch.tensor([10, 11]), torch.nan)
    for own, message in (
        (type(good)(good.indices, nan), f"own: 2 of {N - 2} scores are nan"),
        (type(good)(good.indices[:2], good.scores), "own chose 2 samples of k=3"),
        (type(good)(torch.tensor([0, 8, 9]), good.scores), "index 0 was asked for before"),
    ):
        monkeypatch.setitem(STRATEGIES, "own", Strategy(lambda p, k, v, g: own))
        with pytest.raises(ValueError, match=message):
            query("own", pool, 3, View(), make_generator(0))


def test_a_strategy_in_pieces_is_the_same_as_at_once(problem, monkeypatch):
    pool, z, logits, _ = problem

    def slow(pool, k, view, rng):
        for part in range(3):
            yield {"part": part}
        return query("random", pool, k, view, rng)

    monkeypatch.setitem(STRATEGIES, "slow", Strategy(slow))
    steps, seen = choose("slow", pool, 5, View(), make_generator(0)), []
    with pytest.raises(StopIteration) as end:
        while True:
            seen.append(next(steps))
    at_once = STRATEGIES["slow"](pool, 5, View(), make_generator(0))
    assert seen == [{"part": 0}, {"part": 1}, {"part": 2}]
    assert torch.equal(end.value.value.indices, at_once.indices)
    assert torch.equal(query("slow", pool, 5, View(), make_generator(0)).indices, at_once.indices)


def test_a_strategy_is_registered_by_its_name(problem, monkeypatch):
    pool, z, logits, _ = problem
    monkeypatch.setattr("deffi_lab.methods.selection.strategies.STRATEGIES", dict(STRATEGIES))
    from deffi_lab.methods.selection import strategies

    @strategy("sure", "logits")
    def sure(pool, k, view, rng):
        p = view.logits.softmax(1).amax(1).masked_fill(~pool.unlabelled, torch.nan)
        return Selection(p.nan_to_num(-1).topk(k).indices, p)

    picks = strategies.query("sure", pool, 4, View(logits), make_generator(0)).indices
    doubtful = query("margin", pool, 4, View(logits), make_generator(0)).indices
    assert not set(picks.tolist()) & set(doubtful.tolist()) and "sure" not in STRATEGIES
    with pytest.raises(ValueError, match="sure needs view.logits"):
        strategies.query("sure", pool, 4, View(), make_generator(0))


def test_walks_too_few_are_filled_up_at_random_and_counted(problem):
    pool, z, logits, _ = problem
    s = query("snn", pool, 100, view_of(z, logits), make_generator(0))
    met = s.indices[: 100 - s.filled]
    assert 0 < s.filled < 100 and len(s.indices.unique()) == 100
    assert not torch.isnan(s.scores[met]).any() and len(met) <= 2 * 8, "two labels, eight each"


def test_synthesised_images_lie_on_the_manifold_or_nobody_is_asked(problem):
    pool, z, logits, _ = problem
    view = view_of(z, logits)
    s = query("si", pool, 7, view, make_generator(0))
    assert s.images.shape == (2, 1, 2, 2) and len(s.indices) == 0, "as many as there are labels"
    view.space.encode = lambda x: x[:, 0, 0] + 100
    away = query("si", pool, 7, view, make_generator(0))
    assert away.images is None and away.filled == len(away.indices.unique()) == 7


def test_unknown_names_and_one_class_get_one_clear_error(problem):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match="'bagde': unknown, choose from random, stratified"):
        query("bagde", pool, 3, View(), make_generator(0))
    for name in ("margin", "entropy", "badge", "margin-diverse"):
        with pytest.raises(ValueError, match="at least 2 classes"):
            query(name, pool, 3, View(logits[:, :1], z, z), make_generator(0))
    with pytest.raises(ValueError, match="no probabilities"):
        bald_query(pool, logits.expand(3, -1, -1), 3)
    with pytest.raises(ValueError, match="at least 2 draws"):
        bald_query(pool, logits.softmax(1)[None], 3)


@pytest.mark.parametrize("name", PICKING)
def test_a_net_that_knows_one_class_only_is_no_trouble(name, problem):
    pool, z, logits, truth = problem
    pool.clear()
    pool.label((truth == 2).nonzero()[:6, 0])
    sure = torch.zeros(N, 4).index_fill(
        1, torch.tensor(2), 200.0
    )  # probabilities of exactly 0 and 1
    rows = (sure, z, z, sure.softmax(1).expand(3, -1, -1))
    view = View(*rows, net=plane_net(), space=Plane(z))
    with torch.no_grad():
        view.net.head.weight.zero_()
        view.net.head.bias.copy_(sure[0])
    s = query(name, pool, 9, view, make_generator(0))
    assert len(s.indices.unique()) == 9


@pytest.mark.parametrize("name", [n for n in PICKING if "net" not in STRATEGIES[n].needs])
def test_a_pool_of_equal_points_without_a_label_still_answers(name):
    pool = Pool(torch.zeros(30, 1), lambda i: i % 2, 2)
    view = View(
        torch.zeros(30, 2), torch.ones(30, 3), torch.ones(30, 3), torch.full((3, 30, 2), 0.5)
    )
    try:
        s = query(name, pool, 8, view, make_generator(0))
    except ValueError as e:
        assert name == "probcover" and "give delta" in str(e)
    else:
        assert len(s.indices.unique()) == 8


# Properties

points = st.integers(0, 2**31).map(lambda seed: torch.randn(60, 3, generator=make_generator(seed)))


@settings(max_examples=25, deadline=None)
@given(z=points, k=st.integers(1, 40), labelled=st.integers(0, 10))
def test_coreset_is_the_greedy_k_centre(z, k, labelled):
    pool = Pool(torch.zeros(60, 1), lambda i: i % 2, 2)
    if labelled:
        pool.label(torch.arange(labelled))
    picks = coreset_query(pool, z, k, make_generator(0)).indices.tolist()
    centres = list(range(labelled)) or picks[:1]
    for pick in picks[0 if labelled else 1 :]:
        away = torch.cdist(z.double(), z[centres].double()).amin(1)
        assert away[pick] >= away.max() * (1 - 1e-5)
        centres.append(pick)


@settings(max_examples=25, deadline=None)
@given(z=points, k=st.integers(1, 40), delta=st.floats(0.1, 3.0))
def test_probcover_is_the_greedy_cover(z, k, delta):
    pool = Pool(torch.zeros(60, 1), lambda i: i % 2, 2)
    pool.label(torch.arange(3))
    edge = torch.cdist(z.double(), z.double())
    if (edge - delta).abs().min() < 1e-4:
        return
    edge = edge <= delta
    bare = ~edge[:3].any(0)
    s = probcover_query(pool, z, k, make_generator(0), delta)
    assert torch.equal(s.scores[3:], (edge & bare).sum(1)[3:].float())
    for pick in s.indices.tolist():
        count = (edge & bare).sum(1)
        assert count[pick] == count[3:].max()
        bare &= ~edge[pick]


@settings(max_examples=25, deadline=None)
@given(z=points, k=st.integers(1, 60), sigma=st.floats(0.2, 3.0))
def test_herding_over_the_whole_pool_is_herding(z, k, sigma):
    pool = Pool(torch.zeros(60, 1), lambda i: i % 2, 2)
    mine = coverage_query(pool, z, k, make_generator(0), sigma, among=None).indices
    kernel = torch.exp(-0.5 * (torch.cdist(z.double(), z.double()) / sigma) ** 2)
    best, taken = torch.zeros(60).double(), []
    for pick in mine.tolist():
        gain = (kernel - best).clamp(min=0).sum(1)
        gain[taken] = 0
        assert gain[pick] >= gain.max() * (1 - 1e-4) - 1e-4 and pick not in taken
        best = torch.maximum(best, kernel[pick])
        taken.append(pick)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 30), width=st.integers(1, 40))
def test_lazy_greedy_is_greedy(seed, k, width):
    "On weighted set cover, where gains only fall"
    g = make_generator(seed)
    holds, weight, done = (
        torch.rand(30, 50, generator=g) < 0.2,
        torch.rand(50, generator=g).double(),
        [],
    )

    def gain(i, done):
        return (holds[i] & ~holds[done].any(0)).double() @ weight

    lazy = lazy_greedy(
        gain(torch.arange(30), []), lambda i: gain(i, done), done.append, k, width
    ).tolist()
    for step, pick in enumerate(lazy):
        now = gain(torch.arange(30), lazy[:step])
        now[lazy[:step]] = -1
        assert now[pick] == now.max()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 300))
def test_stratified_keeps_the_share_of_each_class(seed, k):
    truth = torch.arange(400) % 4 * (torch.arange(400) % 3 > 0)
    pool = Pool(torch.zeros(400, 1), lambda i: truth[i], 4)
    picks = stratified_query(
        pool, torch.nn.functional.one_hot(truth, 4).float(), k, make_generator(seed)
    ).indices
    want = torch.bincount(truth, minlength=4) * k / 400
    assert ((torch.bincount(truth[picks], minlength=4) - want).abs() < 1 + 1e-6).all() and len(
        picks.unique()
    ) == k


def test_stratified_gives_equal_chances_and_is_random_before_any_label(problem):
    pool, z, logits, _ = problem
    count = torch.zeros(N)
    for seed in range(300):
        count[stratified_query(pool, logits, 100, make_generator(seed)).indices] += 1
    assert chisquare(count[pool.unlabelled].numpy()).pvalue > 1e-3
    assert torch.equal(
        stratified_query(pool, None, 9, make_generator(4)).indices,
        random_query(pool, 9, make_generator(4)).indices,
    )


def test_clusters_are_as_good_as_those_of_scikit_learn():
    from sklearn.cluster import KMeans

    z = torch.randn(9000, 4, generator=make_generator(0)) * torch.tensor([3.0, 2, 1, 1])

    def inertia(group):
        c = torch.zeros(60, 4).index_add(0, group, z) / torch.bincount(group, minlength=60)[:, None]
        return float((z - c[group]).square().sum())

    theirs = inertia(torch.from_numpy(KMeans(60, random_state=0).fit_predict(z.numpy())).long())
    assert inertia(clusters(z, 60, make_generator(0))) < 1.06 * theirs
    with pytest.raises(ValueError, match="k=9001"):
        clusters(z, 9001, make_generator(0))


# scikit-activeml's own


def asked(strategy, pool, k, view, on="z", **more):
    pytest.importorskip("skactiveml")
    import skactiveml.pool

    name, knobs = strategy
    return skactiveml_query(
        getattr(skactiveml.pool, name)(random_state=0, **knobs), pool, k, view, on, **more
    )


def test_doubt_is_that_of_scikit_activeml(problem):
    pool, z, logits, _ = problem
    view = view_of(z, logits)
    for name, method in (("entropy", "entropy"), ("margin", "margin_sampling")):
        theirs = asked(("UncertaintySampling", {"method": method}), pool, 9, view)
        mine = query(name, pool, 9, view, make_generator(0))
        shift = (theirs.scores - mine.scores)[pool.unlabelled]  # theirs: 1 - margin
        assert torch.allclose(shift, shift.mean().round().expand_as(shift), atol=1e-5)
        assert set(mine.indices.tolist()) == set(theirs.indices.tolist())


def test_bald_is_that_of_scikit_activeml_and_of_the_hand(problem):
    pool, z, logits, _ = problem
    view = view_of(z, logits)
    theirs, mine = (
        asked(("GreedyBALD", {}), pool, 9, view),
        query("bald", pool, 9, view, make_generator(0)),
    )
    assert torch.allclose(mine.scores, theirs.scores, atol=1e-5, equal_nan=True)
    assert set(mine.indices.tolist()) == set(theirs.indices.tolist())
    p = torch.tensor([[[1.0, 0], [0.5, 0.5], [0.9, 0.1]], [[0.0, 1], [0.5, 0.5], [0.1, 0.9]]])
    small = Pool(torch.zeros(3, 1), lambda i: i % 2, 2)
    h = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert np.allclose(bald_query(small, p, 1).scores, [np.log(2), 0, np.log(2) - h], atol=1e-6)


def test_coreset_picks_what_scikit_activeml_picks(problem):
    pool, z, logits, _ = problem
    theirs, mine = (
        asked(("CoreSet", {}), pool, 60, view_of(z, logits)),
        coreset_query(pool, z, 60, make_generator(0)),
    )
    assert mine.indices.tolist() == theirs.indices.tolist()
    assert torch.allclose(mine.scores, theirs.scores, atol=1e-5, equal_nan=True)


@pytest.mark.filterwarnings("ignore:The maximum purity")
def test_probcover_picks_what_scikit_activeml_picks(problem):
    pool, z, logits, _ = problem
    mine = probcover_query(pool, z, 12, make_generator(0), 0.5)
    for pick in mine.indices:  # one at a time: theirs draws among equals
        theirs = asked(("ProbCover", {"deltas": [0.5]}), pool, 1, view_of(z, logits))
        assert theirs.scores[pick] == theirs.scores[pool.unlabelled].max()
        pool.label(pick)


def test_the_radius_is_the_one_scikit_activeml_finds_by_trying(problem):
    pool, z, logits, _ = problem
    ProbCover = pytest.importorskip("skactiveml.pool").ProbCover
    group = clusters(z, 4, make_generator(0))

    class Given:
        def __init__(self, n_clusters):
            pass

        def fit_predict(self, X):
            return group.numpy()

    tried = np.arange(0.01, 3, 0.01)
    for alpha in (0.95, 0.8, 0.6):
        theirs = ProbCover(
            n_classes=4, deltas=tried, alpha=alpha, cluster_algo=Given, random_state=0
        )
        skactiveml_query(theirs, pool, 1, view_of(z, logits))
        assert abs(purity_radius(z, group, make_generator(0), alpha) - theirs.delta_max_) < 0.015
    with pytest.raises(ValueError, match="alpha=1"):
        purity_radius(z, group, make_generator(0), 1.0)


def test_typiclust_picks_what_scikit_activeml_picks_of_the_same_groups(problem):
    pool, z, logits, _ = problem
    group = clusters(z, 12, make_generator(0))

    class Given:
        def __init__(self, n_clusters):
            pass

        def fit_predict(self, X):
            return group.numpy()

    theirs = asked(("TypiClust", {"cluster_algo": Given, "k": 20}), pool, 10, view_of(z, logits))
    mine, score = most_typical(z, group, pool.labelled, pool.unlabelled, 10, 20)
    size = torch.bincount(group)
    assert [int(size[c]) for c in group[mine]] == [int(size[c]) for c in group[theirs.indices]], (
        "largest first"
    )
    assert set(mine.tolist()) == set(theirs.indices.tolist())
    first = group == group[mine[0]]
    assert torch.allclose(score[first], theirs.scores[first], rtol=1e-4)


def test_badge_draws_by_the_chances_of_scikit_activeml(problem):
    pytest.importorskip("skactiveml")
    from skactiveml.pool._badge import Badge, _d_2

    _, z, logits, truth = problem
    z, logits = z[:24], logits[:24] / 8
    pool, view = Pool(torch.zeros(24, 1), lambda i: truth[i], 4), View(logits, z, z)
    g = (gradient_parts(logits)[:, :, None] * z[:, None]).flatten(1).double()
    assert torch.allclose(
        query("badge", pool, 1, view, make_generator(0)).scores.double(), g.norm(dim=1), rtol=1e-5
    )
    runs = 3000
    picks = torch.stack(
        [query("badge", pool, 3, view, make_generator(s)).indices for s in range(runs)]
    )
    assert (picks[:, 0] == g.norm(dim=1).argmax()).all()
    theirs = skactiveml_query(Badge(random_state=0), pool, 2, view)
    size, second = g.square().sum(1), (g - g[picks[0, 0]]).square().sum(1)
    assert theirs.indices[0] == picks[0, 0] and torch.allclose(
        theirs.scores.double(), size / size.sum(), rtol=1e-4
    )
    # theirs goes on with min(second, size), as if zero had been picked too; ours with second, as
    # published
    latest = _d_2(g.numpy(), [int(picks[0, 0])], size.numpy())
    assert np.allclose(latest, torch.minimum(second, size), atol=1e-9)
    away = torch.minimum(second[:, None], (g[:, None] - g).square().sum(2))  # [n, second pick]
    third = (away / away.sum(0)) @ (second / second.sum())
    for turn, probability in ((1, second), (2, third)):
        probability = (probability / probability.sum()).numpy()
        seen = np.bincount(picks[:, turn].numpy(), minlength=24)
        can = probability > 1e-9
        assert seen[~can].sum() == 0 and can.sum() > 15 and (probability[can] * runs).min() > 4
        assert chisquare(seen[can], probability[can] * runs).pvalue > 1e-3


def test_maxherding_covers_what_that_of_scikit_activeml_covers(problem):
    pool, z, logits, _ = problem
    knobs = {"normalize_samples": False, "metric_dict": {"gamma": 0.5}}
    theirs = asked(("MaxHerding", knobs), pool, 20, view_of(z, logits))
    mine = coverage_query(pool, z, 20, make_generator(0), 1.0, among=None)
    assert mine.indices.tolist() == theirs.indices.tolist()


def test_the_wrapper_says_what_is_missing(problem, monkeypatch):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match="Badge needs view.z"):
        asked(("Badge", {}), pool, 3, View(logits))
    with pytest.raises(ValueError, match="UncertaintySampling needs view.logits"):
        asked(("UncertaintySampling", {}), pool, 3, View(z=z))
    with pytest.raises(ValueError, match="k=0"):
        asked(("CoreSet", {}), pool, 0, View(z=z))
    monkeypatch.setitem(sys.modules, "skactiveml.base", None)
    with pytest.raises(ImportError, match=r"pip install deffi_lab\[active\]"):
        skactiveml_query(object(), pool, 3, View(z=z))


def test_counts_of_whole_tiles_and_parts_agree_with_all_pairs():
    z = torch.randn(2600, 5, generator=make_generator(0)) + 50  # far from 0: no digits lost
    assert torch.equal(
        ball_count(z, z[:600], 1.5),
        (torch.cdist(z[:600].double(), z.double()) <= 1.5).sum(1).float(),
    )
    assert torch.allclose(
        least_distance(z, z[:9]).double(),
        torch.cdist(z.double(), z[:9].double()).amin(1),
        atol=5e-3,
    )
    with pytest.raises(ValueError, match="delta=0"):
        max_cover(z, z[:0], torch.ones(2600, dtype=torch.bool), 3, 0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [n for n in PICKING if "net" not in STRATEGIES[n].needs])
def test_each_name_answers_on_the_device_of_its_input(name, problem):
    pool, z, logits, truth = problem
    near = Pool(pool.x.cuda(), lambda i: truth.cuda()[i], 4)
    near.label(torch.tensor([0, 5], device="cuda"))
    rows = {field: getattr(view_of(z, logits), field).cuda() for field in ROWS}
    view = View(**rows)
    s = query(name, near, 12, view, make_generator(1, "cuda"))
    assert s.indices.is_cuda and s.scores.is_cuda and len(s.indices.unique()) == 12
