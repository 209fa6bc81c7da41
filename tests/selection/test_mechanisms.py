"Each mechanism of a strategy: without it, a test of this file fails (see tools/mutants.py)"

import pytest
import torch
import torch.nn.functional as F
from helpers import Trainings, half_cosine, rates
from torch import nn

from deffi_lab.core.pool import Pool
from deffi_lab.core.step import drain, make_generator
from deffi_lab.data.images import from_arrays
from deffi_lab.methods.selection import boosting, fewest
from deffi_lab.methods.selection.baselines import coverage_query, margin_diverse_query
from deffi_lab.methods.selection.boosting import BoostingKnobs, DeepBoosting
from deffi_lab.methods.selection.fewest import FewestKnobs, FewestLabels
from deffi_lab.methods.selection.latent_strategies import WalkKnobs
from deffi_lab.methods.selection.propagation import knn_graph, poisson
from deffi_lab.methods.selection.strategies import query
from deffi_lab.methods.selection.teacher import Teacher
from deffi_lab.methods.selection.view import View
from deffi_lab.methods.selection.walk import walk
from deffi_lab.nets.classify import predict
from deffi_lab.nets.contrast import Encoder
from deffi_lab.nets.vae import VAE

# ---- the recipe with the fewest labels

N = 300  # samples of the recipe's pool; sample i has the bytes of i in its first two pixels


def recipe(lead: int = 1000, schedule=(40, 80), **knobs) -> FewestLabels:
    g = make_generator(0)
    x = torch.randint(0, 256, (N, 1, 8, 8), generator=g, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(N) % 256, torch.arange(N) // 256
    y = torch.arange(N) % 5
    encoder = Encoder(size=8, width=4, dims=32, out=8, generator=make_generator(1)).eval()
    quick = dict(first=20, query=10, lead=lead, later=20, among=N, train_steps=3, batch=16)
    pool = Pool(x, lambda i: y[i], 5)
    knobs = FewestKnobs(**quick | knobs)
    return FewestLabels(pool, encoder, x[:20], y[:20], knobs, 0, schedule=schedule)


def played(m: FewestLabels, labels: int) -> FewestLabels:
    "The recipe at the end of the round that brings it to so many labels"
    for _ in m:
        if m.at_boundary and len(m.order) >= labels:
            return m


def greedy(rows, doubt, own, k, width) -> set[int]:
    "The `k` unlabelled samples that cover most doubt, by the formula, in float64"
    z, w = rows.detach().double(), doubt.detach().double()
    free = [i for i in range(len(z)) if i not in own]
    sigma = width * torch.cdist(z[free], z[free]).median()
    kernel = (-0.5 * (torch.cdist(z, z) / sigma) ** 2).exp()
    best = kernel[:, own].amax(1) if own else torch.zeros(len(z)).double()
    out = []
    for _ in range(k):
        gain = {j: float(w[free] @ torch.maximum(best, kernel[:, j])[free]) for j in free}
        out.append(max((j for j in free if j not in out), key=gain.get))
        best = torch.maximum(best, kernel[:, out[-1]])
    return set(out)


def test_the_recipe_asks_where_doubt_is_least_covered():
    m = recipe()
    rows = m.rows
    first = m.ask(6).indices.tolist()
    assert set(first) == greedy(rows, torch.ones(N), [], 6, 0.5), "no doubt yet: coverage alone"
    m.doubt = torch.rand(N, generator=make_generator(2))
    second = m.ask(6).indices.tolist()
    assert set(second) == greedy(rows, m.doubt**3, first, 6, 0.5)
    m.net = nn.Identity()  # once a network asks: its doubt as it is, and a narrower kernel
    assert set(m.ask(6).indices.tolist()) == greedy(rows, m.doubt, first + second, 6, 0.3)


def test_once_the_network_asks_candidates_are_drawn_by_its_doubt():
    m = recipe(among=100)
    m.net, m.doubt = nn.Identity(), torch.zeros(N)
    m.doubt[:150] = 1.0
    assert (m.ask(100).indices < 150).all()


def test_the_recipe_doubts_what_the_graph_cannot_tell():
    m = played(recipe(), 20)
    u = poisson(knn_graph(m.rows), m.order, m.pool.y[m.order], 5)
    best = u.sort(1, descending=True)[0]
    doubt = 1 - (best[:, 0] - best[:, 1]) / u.abs().amax(1)
    torch.testing.assert_close(m.doubt.double(), doubt, rtol=0, atol=1e-3)
    assert m.doubt.std() > 0.05
    own = m.order.tolist()
    m.ask(10)
    assert set(m.order[20:].tolist()) == greedy(m.rows, m.doubt**3, own, 10, 0.5)


@pytest.fixture
def lesson(monkeypatch):
    """What the recipe's network is trained on: a recipe whose graph is sure of samples below 200
    and knows nothing of the others, and the arguments of its training"""
    m, seen = recipe(train_steps=20), Trainings(monkeypatch, fewest)
    m.ask(20)
    m.u = torch.zeros(N, 5, dtype=torch.float64)
    m.u[torch.arange(200), (torch.arange(200) + 1) % 5] = 1.0  # never the true class
    warped = []
    monkeypatch.setattr(fewest, "warp", lambda x, rng: (warped.append(len(x)), x)[1])
    drain(m._train())
    images, classes = seen[0]["draw"](make_generator(5))
    first = (images[:, 0, 0, :2] * 255).round().long()
    return m, seen[0], warped, images, classes, first[:, 0] + 256 * first[:, 1]


def test_the_network_learns_what_the_graph_is_sure_of(lesson):
    m, _, _, _, classes, index = lesson
    drawn = index[:16]
    assert (drawn < 200).all(), "no sample that the graph knows nothing of"
    new = ~torch.isin(drawn, m.order)
    assert new.any() and torch.equal(classes[:16][new], (drawn[new] + 1) % 5), "the graph's classes"


def test_the_network_learns_the_labels_themselves_too(lesson):
    m, fit, _, images, classes, index = lesson
    assert len(index) == 16 + 32 and torch.isin(index[16:], m.order).all()
    assert torch.equal(classes[16:], index[16:] % 5), "labels stand above the graph's classes"
    logits = fit["net"](images)
    graph, own = (F.cross_entropy(logits[s], classes[s]) for s in (slice(16), slice(16, None)))
    torch.testing.assert_close(fit["loss"]((images, classes)), graph + 0.3 * own)


def test_the_network_learns_from_warped_images_at_a_rising_and_falling_rate(lesson):
    _, fit, warped, _, _, _ = lesson
    assert warped == [48]
    share = rates(fit["schedule"], 20)
    assert max(share) == max(share[2:6]) > 5 * share[0] and share[-1] < 0.1


def test_the_network_begins_as_the_encoder_and_goes_on_from_the_one_that_asks():
    m = recipe()
    same = lambda a, b: all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    fresh = m.student()
    assert same(fresh[0], m.encoder.features) and fresh[0] is not m.encoder.features
    m.net = fresh
    with torch.no_grad():
        m.net[2].bias += 1
    assert same(m.student(), m.net) and m.student() is not m.net


def test_the_network_takes_over_doubt_features_and_graph():
    m = recipe(lead=40)
    before = m.rows
    played(m, 40)
    logits, f = predict(m.net, m.pool.x), predict(m.net[:-1], m.pool.x)
    best = logits.softmax(1).sort(1, descending=True)[0]
    torch.testing.assert_close(m.doubt, 1 - (best[:, 0] - best[:, 1]), rtol=1e-4, atol=1e-5)
    u, s, _ = torch.linalg.svd(f - f.mean(0), full_matrices=False)
    rows = F.normalize((u * s)[:, :24], dim=1)
    torch.testing.assert_close(m.rows @ m.rows.T, rows @ rows.T, rtol=0, atol=1e-3)
    assert m.rows.shape != before.shape and m.graph is None
    doubt, rows, own = m.doubt, m.rows, m.order.tolist()
    m.ask(5)
    assert set(m.order[40:].tolist()) == greedy(rows, doubt, own, 5, 0.3)


# ---- strategies that walk, on a plane whose points are the images


class Plane:
    "A latent space of two dimensions; an image repeats them; `shrunk`: what encoding multiplies by"

    def __init__(self, w, shrunk=1.0):
        self.w, self.shrunk = w, shrunk

    def decode(self, w):
        return w[:, None, None].expand(-1, 1, 2, 2)

    def encode(self, x):
        return x[:, 0, 0] * self.shrunk


def plane(n: int = 200, labelled: int = 8, shrunk: float = 1.0):
    "A pool of such images in bytes, and a view with a linear network"
    g = make_generator(4)
    x = torch.randint(0, 256, (n, 1, 1, 2), generator=g).expand(-1, 1, 2, 2).contiguous()
    y = torch.randint(0, 4, (n,), generator=g)
    pool = Pool(x.to(torch.uint8), lambda i: y[i], 4)
    pool.label(torch.arange(labelled))
    net = nn.Sequential()
    net.features, net.head = nn.Flatten(), nn.Linear(4, 4)
    net.forward = lambda x01: net.head(net.features(x01))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g)
    space = Plane(x[:, 0, 0].float() / 255, shrunk)
    walks = []
    knobs = WalkKnobs(eta=0.15, steps=4)
    view = View(net=net, space=space, knobs=knobs, on_walks=walks.append)
    return pool, view, lambda w: net(space.decode(w)), walks


def ends(view, w, y, stop):
    knobs = view.knobs
    return walk(w, y, view.space.decode, view.net, eta=knobs.eta, steps=knobs.steps, stop=stop)


def test_boost_is_its_formula():
    pool, view, logits, _ = plane()
    w, k = view.space.w, 6
    p = logits(w).softmax(1).sort(1, descending=True)[0]
    margin = (p[:, 0] - p[:, 1]).detach()
    c = sorted(pool.unlabelled_indices.tolist(), key=lambda i: float(margin[i]))[: 15 * k]
    own = pool.labelled_indices
    end = ends(view, w[c], logits(w[c]).argmax(1), True).end.double()
    assert (end - w[c]).abs().max() > 0.1, "the walks lead somewhere"
    f = w.double().repeat(1, 2)  # the network's features: the pixels
    size = [side.std(0).square().sum().sqrt() for side in (f[c], end)]
    place = torch.cat([f[c] / size[0], end / size[1]], 1)
    known = torch.cat([f[own] / size[0], w[own].double() / size[1]], 1)
    sigma = 0.4 * torch.cdist(place[::8], place[::8]).median()
    bump = lambda a, b: (-0.5 * (torch.cdist(a, b) / sigma) ** 2).exp()
    best, picks = 0.5 * bump(place, known).amax(1), []
    kernel, weight = bump(place, place), 1 - margin[c].double()
    for _ in range(k):
        gain = [float(weight @ torch.maximum(best, kernel[:, j])) for j in range(len(c))]
        j = max((j for j in range(len(c)) if c[j] not in picks), key=gain.__getitem__)
        picks.append(c[j])
        best = torch.maximum(best, kernel[:, j])
    assert query("boost", pool, k, view, make_generator(0)).indices.tolist() == picks


@pytest.mark.parametrize("name, shrunk", [("snn", 1.0), ("snn-decoded", 0.6)])
def test_snn_takes_the_neighbours_of_where_the_hardest_walk_to(name, shrunk):
    pool, view, logits, _ = plane(shrunk=shrunk)
    w, own = view.space.w, pool.labelled_indices
    loss = F.cross_entropy(logits(w[own]), pool.y[own], reduction="none")
    start = own[loss.argsort(descending=True)[:4]]
    end = ends(view, w[start], pool.y[start], False).end * shrunk
    free = pool.unlabelled_indices
    near = free[torch.cdist(end, w[free]).argsort(1)]
    want = list(dict.fromkeys(near[:, :8].T.flatten().tolist()))[:4]
    assert query(name, pool, 4, view, make_generator(0)).indices.tolist() == want


def test_pool_walk_takes_what_lies_at_the_ends_of_the_shortest_walks():
    pool, view, logits, _ = plane()
    w, free = view.space.w, pool.unlabelled_indices
    out = logits(w[free]).detach()
    walks = ends(view, w[free], out.argmax(1), True)
    p = out.softmax(1).sort(1, descending=True)[0]
    rank = walks.taken + 0.5 * (p[:, 0] - p[:, 1])
    assert walks.flipped.sum() > 20 and not walks.flipped.all()
    first = sorted(walks.flipped.nonzero()[:, 0].tolist(), key=lambda i: float(rank[i]))
    near = free[torch.cdist(walks.end, w[free]).argmin(1)]
    want = list(dict.fromkeys(near[first].tolist()))[:5]
    assert query("pool-walk", pool, 5, view, make_generator(0)).indices.tolist() == want


# ---- baselines


def test_margin_diverse_takes_one_of_each_group():
    heap = torch.arange(40) % 4
    z = torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50]])[heap]
    z = z + torch.rand(40, 2, generator=make_generator(0))
    sure = torch.arange(40) / 40 + 3.0 * (heap > 0)  # heap 0 is the most doubtful by far
    pool = Pool(torch.zeros(40, 1), lambda i: i % 2, 2)
    logits = torch.stack([sure, torch.zeros(40)], 1)
    for seed in range(5):
        picks = margin_diverse_query(pool, logits, z, 4, make_generator(seed)).indices
        assert sorted(picks.tolist()) == [0, 1, 2, 3], "the most doubtful of each heap"


def test_coverage_of_a_part_that_is_the_whole_pool_is_that_of_the_pool():
    z = torch.randn(90, 2, generator=make_generator(0))
    pool = Pool(torch.zeros(90, 1), lambda i: i % 2, 2)
    pool.label(torch.arange(4))
    whole, part = (
        coverage_query(pool, z, 8, make_generator(1), 0.7, among=n).indices for n in (None, 90)
    )
    free = pool.unlabelled_indices.tolist()
    kernel = (-0.5 * (torch.cdist(z.double(), z.double()) / 0.7) ** 2).exp()[free]
    best, picks = kernel[:, :4].amax(1), []  # what is unlabelled is to be covered
    for _ in range(8):
        gain = {j: float(torch.maximum(best, kernel[:, j]).sum()) for j in free}
        picks.append(max((j for j in free if j not in picks), key=gain.get))
        best = torch.maximum(best, kernel[:, picks[-1]])
    assert part.tolist() == picks and len(set(whole.tolist()) & set(picks)) >= 6


# ---- training and labelling in deep boosting


def small(n: int = 60) -> DeepBoosting:
    g = make_generator(0)
    x = torch.randint(0, 256, (n, 1, 16, 16), generator=g, dtype=torch.uint8)
    vae = VAE(2, size=16, width=16, generator=g)
    for p in vae.parameters():
        p.data *= 3  # as if trained: latents that vary
    pool = Pool(x, lambda i: i % 2, 2)
    knobs = BoostingKnobs(first=10, query=10, budget=30, train_steps=12, batch=8)
    return DeepBoosting(pool, vae, x[:10], torch.arange(10) % 2, knobs)


def test_the_target_learns_shifted_images_at_a_rate_on_half_a_cosine(monkeypatch):
    m, seen = small(), Trainings(monkeypatch, boosting)
    list(m)
    images, y = seen[0]["draw"](make_generator(3))
    padded = F.pad(m.pool.x[m.order[:10]].float() / 255, (2,) * 4)
    moves = set()
    for image in images:
        fit = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if any(torch.allclose(p[:, i : i + 16, j : j + 16], image) for p in padded)
        ]
        assert len(fit) == 1
        moves |= set(fit)
    assert len(moves) > 4 and len(y) == 8
    assert rates(seen[0]["schedule"], 12) == pytest.approx(half_cosine(12), abs=1e-6)


def test_a_teacher_with_data_rejects_what_it_is_unsure_of_and_counts_it():
    logits = torch.tensor([[5.0, 0.0], [0.1, 0.0], [0.0, 5.0], [9.0, 0.0]])
    x = torch.arange(4, dtype=torch.uint8)[:, None, None, None]
    net = nn.Sequential()
    net.forward = lambda x01: logits[(x01.flatten() * 255).round().long()]
    teacher = Teacher(from_arrays(x, [0, 1, 1, 1], x, [0, 1, 1, 1]), net)
    drain(teacher.prepare())
    assert teacher(x.float() / 255).tolist() == [0, -1, 1, 0]
    assert (teacher.rejected, teacher.error) == (0.25, pytest.approx(1 / 3))
