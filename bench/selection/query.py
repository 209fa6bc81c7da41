"""A query of 100 among 60,000 digits of which 200 are labelled, against scikit-activeml's, and how
good both are.

BADGE and CoreSet look at a small net trained on the 200 labels, TypiClust and ProbCover at the
latents. For ProbCover
scikit-activeml holds 60,000^2 distances (29 GB): it is timed on 5,000 and 10,000 samples, and its
time, which grows
with the square, is extrapolated to 60,000.
"""

import statistics
import time
import warnings
from collections.abc import Callable

import torch

from deffi_lab.core.pool import Pool, Selection
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist, unit
from deffi_lab.methods.selection.baselines import (
    gradient_parts,
    probcover_query,
    typiclust_query,
)
from deffi_lab.methods.selection.strategies import query, skactiveml_query
from deffi_lab.methods.selection.view import View
from deffi_lab.nets.classify import SmallCNN, train_classifier
from deffi_lab.nets.vae import latents, reference_vae, whiten
from deffi_lab.numeric.cover import clusters, least_distance, purity_radius
from deffi_lab.numeric.neighbours import nearest

K, LABELS = 100, 200


def scene() -> tuple[Pool, View]:
    "All digits, 200 labels, and what a net trained on those and the shipped VAE say of each"
    data, g = mnist(), make_generator(0)
    pool = Pool(data.x, lambda i: data.y[i], data.n_classes)
    known = torch.randperm(len(data.x), generator=g)[:LABELS]
    pool.label(known)
    net = SmallCNN(generator=g)
    for _ in train_classifier(net, data.x[known], data.y[known], steps=300, generator=g):
        pass
    with torch.no_grad():
        features = torch.cat([net.features(unit(x)) for x in data.x.split(1000)])
    z = latents(reference_vae(16), data.x)
    return pool, View(net.head(features).detach(), features, whiten(z).apply(z))


def part(pool: Pool, view: View, n: int) -> tuple[Pool, View]:
    "The first `n` samples of both, with the labels among them"
    y = pool.oracle(torch.arange(n))
    small = Pool(pool.x[:n], lambda i: y[i], pool.n_classes)
    small.label(pool.labelled_indices[pool.labelled_indices < n])
    return small, View(view.logits[:n], view.features[:n], view.z[:n])


def timed(way: Callable[[int], Selection], seed: int) -> tuple[float, Selection]:
    "Seconds and what was chosen"
    t = time.perf_counter()
    chosen = way(seed)
    return time.perf_counter() - t, chosen


def potential(pool: Pool, view: View, picks: torch.Tensor) -> float:
    """Mean squared distance of last-layer gradients to the
    nearest picked one, over that to zero: k-means++ lowers it"""
    e, f = gradient_parts(view.logits), view.features
    size = (e.norm(dim=1) * f.norm(dim=1)).square()
    near = torch.stack([size + size[j] - 2 * (e @ e[j]) * (f @ f[j]) for j in picks.tolist()]).amin(
        0
    )
    return float(near[pool.unlabelled].clamp(min=0).mean() / size[pool.unlabelled].mean())


def row(name: str, ours: Callable, peer: Callable, quality: Callable, say: str, n: int) -> dict:
    """`n` interleaved queries of each with seeds 0..n-1;
    `quality(picks)`: a number given for both in the note"""
    runs = [(timed(ours, seed), timed(peer, seed)) for seed in range(n)]
    good = [statistics.mean(quality(pair[side][1].indices) for pair in runs) for side in (0, 1)]
    ratios = [b[0] / a[0] for a, b in runs]
    note = f"{torch.get_num_threads()} thread; {K} of 60,000; {say} {good[0]:.4g}, theirs {good[1]:.4g}"  # noqa: E501
    return {
        "name": name,
        "ours": statistics.median(a[0] for a, _ in runs),
        "peer": statistics.median(b[0] for _, b in runs),
        "unit": "s",
        "ratio": statistics.median(ratios),
        "effect": "speedup",
        "interval": "range",
        "low": min(ratios),
        "high": max(ratios),
        "n": n,
        "note": note,
    }


def probcover(pool: Pool, view: View) -> dict:
    "Ours on all, scikit-activeml's on 10,000, extrapolated to 60,000; the same radius for both"
    from skactiveml.pool import ProbCover

    delta = purity_radius(
        view.z, clusters(view.z, pool.n_classes, make_generator(0)), make_generator(0)
    )
    full, _ = timed(lambda s: probcover_query(pool, view.z, K, make_generator(s), delta), 0)
    theirs = []
    for n in (5000, 10000):
        small = part(pool, view, n)
        peer = ProbCover(deltas=[delta], random_state=0)
        theirs.append(timed(lambda s: skactiveml_query(peer, small[0], K, small[1]), 0))
    ours = timed(lambda s: probcover_query(small[0], small[1].z, K, make_generator(s), delta), 0)
    known, z = small[0].labelled_indices, small[1].z
    share = [
        float((least_distance(z, z[torch.cat([known, s.indices])]) <= delta).float().mean())
        for s in (ours[1], theirs[1][1])
    ]
    extrapolated = theirs[1][0] * (len(pool) / 10000) ** 2
    note = (
        f"{torch.get_num_threads()} thread; {K} of 60,000, radius {delta:.3f}; theirs extrapolated "
        f"from "
        f"{theirs[1][0]:.2f} s for 10,000 ({theirs[0][0]:.2f} s for 5,000; ours {ours[0]:.3f} s "
        f"for 10,000); covered share of those "
        f"{share[0]:.4f}, theirs {share[1]:.4f}"
    )
    return {
        "name": "query_probcover",
        "ours": full,
        "peer": extrapolated,
        "unit": "s",
        "ratio": extrapolated / full,
        "effect": "speedup",
        "n": 1,
        "note": note,
    }


def rows() -> list[dict]:
    "One row a strategy"
    from skactiveml.pool import Badge, CoreSet, TypiClust

    warnings.filterwarnings("ignore", module="skactiveml")
    pool, view = scene()
    truth = pool.oracle(torch.arange(len(pool)))

    def radius(i: torch.Tensor) -> float:
        return float(
            least_distance(
                view.features, view.features[torch.cat([pool.labelled_indices, i])]
            ).max()
        )

    def away(i: torch.Tensor) -> float:
        return float(nearest(view.z[i], view.z, 21)[0][:, 1:].mean())

    first = typiclust_query(pool, view.z, 20, make_generator(0)).indices
    seek = f"{len(truth[first].unique())} classes in the first 20 picks; mean distance of picks to their 20 neighbours"  # noqa: E501
    out = [
        row(
            "query_coreset",
            lambda s: query("coreset", pool, K, view, make_generator(s)),
            lambda s: skactiveml_query(CoreSet(random_state=s), pool, K, view, "features"),
            radius,
            "covering radius",
            5,
        ),
        row(
            "query_typiclust",
            lambda s: query("typiclust", pool, K, view, make_generator(s)),
            lambda s: skactiveml_query(TypiClust(k=20, random_state=s), pool, K, view),
            away,
            seek,
            3,
        ),
    ]
    out.append(probcover(pool, view))
    out.append(
        row(
            "query_badge",
            lambda s: query("badge", pool, K, view, make_generator(s)),
            lambda s: skactiveml_query(Badge(random_state=s), pool, K, view, "features"),
            lambda i: potential(pool, view, i),
            "share of the gradients' spread left",
            2,
        )
    )
    return out


if __name__ == "__main__":
    for r in rows():
        print(r)
