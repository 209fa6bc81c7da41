"""Poisson learning: the graph by hand and against others,
the flow against a dense solve, MNIST with few labels"""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.propagation import (
    LEAK,
    drain,
    graph_margin,
    graph_steps,
    joined,
    knn_graph,
    poisson,
    poisson_steps,
)
from deffi_lab.nets.vae import latents, reference_vae, whiten


def points(n: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=make_generator(seed))


def dense_solve(graph, indices, labels, n_classes):
    "The same system in float64, by elimination"
    w = graph.weights.to_dense().numpy()
    d = w.sum(1)
    source, y = np.zeros((len(d), n_classes)), np.eye(n_classes)[labels]
    source[indices] = y - y.mean(0)
    u = np.linalg.solve((1 + LEAK) * np.diag(d) - w, source)
    return torch.from_numpy(u - d @ u / d.sum())


@pytest.mark.parametrize(
    "n, d, k", [(2, 1, 1), (30, 2, 3), (300, 5, 10), (251, 16, 7), (40, 3, 39)]
)
def test_the_graph_is_symmetric_and_holds_scikit_learn_s_neighbours(n, d, k):
    z = points(n, d)
    g = knn_graph(z, k)
    w = g.weights.to_dense()
    assert (
        len(g) == n
        and w.dtype == torch.float64
        and torch.equal(w, w.T)
        and (w.diagonal() == 0).all()
    )
    torch.testing.assert_close(w.sum(1), g.degree)
    near = (
        NearestNeighbors(n_neighbors=k + 1)
        .fit(z.double().numpy())
        .kneighbors(z.double().numpy())[1][:, 1:]
    )
    want = torch.zeros(n, n, dtype=torch.bool)
    want[torch.arange(n)[:, None], torch.from_numpy(near)] = True
    assert torch.equal(w > 0, want | want.T)
    other = drain(graph_steps(z, k, chunk=17))
    torch.testing.assert_close(other.weights.to_dense(), w, rtol=1e-5, atol=1e-7)


def test_weights_are_the_formula():
    z = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    w = knn_graph(z, 2).weights.to_dense()
    e = lambda d, far: math.exp(-4 * d * d / far / far)  # far: the second neighbour, of either end
    want = torch.tensor(
        [
            [0, max(e(1, 3), e(1, 2)), max(e(3, 3), e(3, 3)), 0],
            [0, 0, max(e(2, 2), e(2, 3)), e(6, 6)],
            [0, 0, 0, e(4, 6)],
            [0, 0, 0, 0],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(w, want + want.T)


def test_graph_steps_tell_the_share_done():
    shares = list(graph_steps(points(100), 3, chunk=40))
    assert shares == [0.4, 0.8, 1.0]


def test_duplicates_and_equal_points_have_neighbours_and_answers():
    z = torch.cat([points(20).repeat(5, 1), points(20, seed=1) + 20])
    g = knn_graph(z, 6)
    w = g.weights.to_dense()
    assert torch.isfinite(w).all() and (w.diagonal() == 0).all() and (g.degree > 0).all()
    u = poisson(g, torch.tensor([0, 100]), torch.tensor([0, 1]), 2)
    assert torch.isfinite(u).all() and u[0].argmax() == 0 and u[100].argmax() == 1
    same = knn_graph(torch.ones(30, 3), 5)
    assert torch.isfinite(same.weights.to_dense()).all() and (same.degree > 0).all()


def test_joined_keeps_the_larger_of_both_directions():
    g = joined(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2]), torch.tensor([0.2, 0.7, 0.5]), 4)
    want = torch.zeros(4, 4, dtype=torch.float64)
    want[0, 1] = want[1, 0] = torch.tensor(0.7)
    want[1, 2] = want[2, 1] = 0.5
    assert torch.equal(g.weights.to_dense(), want) and torch.allclose(g.degree, want.sum(1))
    u = torch.randn(4, 2, generator=make_generator(0), dtype=torch.float64)
    torch.testing.assert_close(g.laplacian(u), (1 + LEAK) * want.sum(1)[:, None] * u - want @ u)


@pytest.mark.parametrize("n, k, m, classes", [(60, 5, 4, 2), (200, 8, 12, 5), (150, 10, 150, 3)])
def test_poisson_is_the_dense_solve(n, k, m, classes):
    g = knn_graph(points(n), k)
    indices = torch.randperm(n, generator=make_generator(1))[:m]
    labels = torch.arange(m) % classes
    u = drain(poisson_steps(g, indices, labels, classes, tolerance=1e-12, iterations=2000))
    want = dense_solve(g, indices.numpy(), labels.numpy(), classes)
    torch.testing.assert_close(u, want, rtol=0, atol=1e-6 * float(want.abs().max()))
    loose = poisson(g, indices, labels, classes)
    torch.testing.assert_close(loose, want, rtol=0, atol=0.02 * float(want.abs().max()))
    torch.testing.assert_close(
        (g.degree[:, None] * loose).sum(0),
        torch.zeros(classes, dtype=torch.float64),
        rtol=0,
        atol=1e-8 * float(g.degree.sum() * want.abs().max()),
    )


def test_the_residual_falls_below_the_tolerance_asked_for():
    g = knn_graph(points(300), 8)
    left = list(poisson_steps(g, torch.arange(6), torch.arange(6) % 3, 3, tolerance=1e-5))
    assert left[-1] < 1e-5 <= left[-2] and len(left) < 200
    assert (
        len(
            list(
                poisson_steps(
                    g, torch.arange(6), torch.arange(6) % 3, 3, tolerance=0.0, iterations=7
                )
            )
        )
        == 7
    )


def test_parts_without_a_way_between_them_take_their_own_labels():
    z = torch.cat([points(40, seed=s) * 0.1 + 10 * s for s in range(3)])
    part = torch.arange(3).repeat_interleave(40)
    labels = torch.tensor([2, 0, 1])
    u = poisson(knn_graph(z, 5), torch.tensor([3, 44, 85]), labels, 4)
    assert torch.equal(u[:, :3].argmax(1), labels[part]) and torch.equal(u.argmax(1), labels[part])


def test_labels_of_one_class_give_no_flow():
    g = knn_graph(points(50), 5)
    for indices, labels in (([7], [2]), ([7, 9], [2, 2])):
        u = poisson(g, torch.tensor(indices), torch.tensor(labels), 4)
        assert u.shape == (50, 4) and (u == 0).all()
        assert (graph_margin(u) == 0).all()


def test_the_order_of_the_points_and_names_of_the_classes_do_not_matter():
    z, indices, labels = points(150), torch.arange(0, 90, 10), torch.arange(9) % 3
    order, names = torch.randperm(150, generator=make_generator(3)), torch.tensor([2, 0, 1])
    u = drain(poisson_steps(knn_graph(z, 6), indices, labels, 3, tolerance=1e-10, iterations=1000))
    moved = drain(
        poisson_steps(
            knn_graph(z[order], 6),
            order.argsort()[indices],
            names[labels],
            3,
            tolerance=1e-10,
            iterations=1000,
        )
    )
    torch.testing.assert_close(
        moved[:, names], u[order], rtol=1e-4, atol=1e-5 * float(u.abs().max())
    )


def test_graph_margin_by_hand():
    u = torch.tensor(
        [[3.0, 1.0, -4.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, -2.0, 4.0]], dtype=torch.float64
    )
    assert graph_margin(u).tolist() == pytest.approx([0.5, 0, 0, 1.25])
    assert graph_margin(u * 1e-9).tolist() == pytest.approx([0.5, 0, 0, 1.25])


def test_few_labels_on_mnist_go_far_and_more_go_further():
    data = mnist()
    z = latents(reference_vae(16), data.x_test)
    g = knn_graph(whiten(z).apply(z))
    mean = {}
    for m in (10, 30, 100):
        accuracies = []
        for seed in range(5):
            i = torch.randperm(len(z), generator=make_generator(seed))[:m]
            accuracies.append(
                float((poisson(g, i, data.y_test[i], 10).argmax(1) == data.y_test).float().mean())
            )
        mean[m] = np.mean(accuracies)
    assert mean[10] < mean[30] < mean[100] and mean[10] > 0.35 and mean[100] > 0.85


def test_bad_input_is_named():
    z = points(20)
    for k in (0, 20, -1):
        with pytest.raises(ValueError, match=f"k={k}"):
            knn_graph(z, k)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            knn_graph(z.index_fill(0, torch.tensor([3]), bad))
    g = knn_graph(z, 3)
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 indices"):
        poisson(g, none, none, 3)
    with pytest.raises(ValueError, match="2 indices, 1 labels"):
        poisson(g, torch.arange(2), torch.zeros(1, dtype=torch.int64), 3)
    for label in (3, -1):
        with pytest.raises(ValueError, match=r"classes are 0\.\.2"):
            poisson(g, torch.arange(2), torch.tensor([0, label]), 3)


@pytest.mark.cuda
def test_cuda_agrees_with_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    z, i, y = points(500), torch.arange(20), torch.arange(20) % 4
    here, there = knn_graph(z), knn_graph(z.cuda())
    torch.testing.assert_close(
        there.weights.to_dense().cpu(), here.weights.to_dense(), rtol=1e-3, atol=1e-5
    )
    u = drain(poisson_steps(here, i, y, 4, tolerance=1e-8))
    v = drain(poisson_steps(there, i.cuda(), y.cuda(), 4, tolerance=1e-8)).cpu()
    torch.testing.assert_close(v, u, rtol=0, atol=1e-3 * float(u.abs().max()))
