"Baselines of selection against numpy, and their common face"
import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from deffi_lab.core import Pool, make_generator
from deffi_lab.methods.selection import (badge_query, coverage_query, entropy_query, margin_diverse_query, margin_query,
                                         random_query, typiclust_query)
from deffi_lab.nets.geometry import entropy, margin

N = 400
CENTRES = torch.tensor([[0., 0], [4, 0], [0, 4], [4, 4]])


@pytest.fixture
def problem():
    g = make_generator(0)
    truth = torch.arange(N) % 4
    z = CENTRES[truth] + torch.randn(N, 2, generator=g) * .6
    pool = Pool(torch.zeros(N, 1, 2, 2, dtype=torch.uint8), lambda i: truth[i], 4)
    pool.label(torch.tensor([0, 5]))
    return pool, z, -(z[:, None] - CENTRES).square().sum(2), truth


QUERIES = {"random": lambda p, z, lo, k, g: random_query(p, k, g), "margin": lambda p, z, lo, k, g: margin_query(p, lo, k),
           "entropy": lambda p, z, lo, k, g: entropy_query(p, lo, k),
           "diverse": lambda p, z, lo, k, g: margin_diverse_query(p, lo, z, k, g),
           "badge": lambda p, z, lo, k, g: badge_query(p, lo, z, k, g),
           "typiclust": lambda p, z, lo, k, g: typiclust_query(p, z, k, g),
           "coverage": lambda p, z, lo, k, g: coverage_query(p, z, k, g)}
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
    with pytest.raises(ValueError, match=f"={k}"): query(pool, z, logits, k, make_generator(1))


def test_doubt_is_that_of_numpy(problem):
    pool, z, logits, _ = problem
    p = np.exp(logits.double().numpy()); p /= p.sum(1, keepdims=True)
    top = np.sort(p, 1)
    assert np.allclose(margin(logits), top[:, -1] - top[:, -2], atol=1e-5)
    assert np.allclose(entropy(logits), scipy_entropy(p, axis=1), atol=1e-5)
    free = np.flatnonzero(pool.unlabelled.numpy())
    assert set(margin_query(pool, logits, 9).indices.tolist()) == set(free[np.argsort((top[:, -1] - top[:, -2])[free])[:9]])
    assert set(entropy_query(pool, logits, 9).indices.tolist()) == set(free[np.argsort(-scipy_entropy(p, axis=1)[free])[:9]])


def test_typical_and_covering_ones_find_every_cluster(problem):
    pool, z, _, truth = problem
    for s in (typiclust_query(pool, z, 4, make_generator(0)), coverage_query(pool, z, 6, make_generator(0), sigma=.8)):
        assert {2, 3} <= set(truth[s.indices].tolist()), "the clusters without a label"


def test_badge_takes_long_and_different_gradients(problem):
    pool, z, logits, truth = problem
    s = badge_query(pool, logits, torch.cat([z, torch.ones(N, 1)], 1), 20, make_generator(0))
    assert s.scores[s.indices].mean() > 2 * s.scores[pool.unlabelled].mean()
    assert margin_diverse_query(pool, logits, z, 20, make_generator(0)).indices.unique().numel() == 20


def test_numbers_that_are_not_are_refused(problem):
    pool, z, logits, _ = problem
    with pytest.raises(ValueError, match="not finite"): margin_query(pool, logits * torch.nan, 3)
    with pytest.raises(ValueError, match="rows"): margin_query(pool, logits[:5], 3)
