"""Nearest unlabelled neighbours of 1,000 walked points
among 60,000 in 16-D, against scikit-learn's brute force."""

import statistics
import time

import torch
from sklearn.neighbors import NearestNeighbors

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.walk import Space
from deffi_lab.nets.vae import reference_vae
from deffi_lab.numeric.neighbours import nearest


def rows(n: int = 15) -> list[dict]:
    """Interleaved timings on the same cores, 1,000 of
    the pool labelled; scikit-learn is fitted beforehand"""
    x = mnist().x
    w = Space(reference_vae(16), x).w
    g = make_generator(0)
    start = torch.randperm(len(w), generator=g)[:1000]
    step = torch.randn(1000, w.shape[1], generator=g)
    query = w[start] + 0.5 * step / step.norm(dim=1, keepdim=True)
    free = torch.ones(len(w), dtype=torch.bool).index_fill(
        0, torch.randperm(len(w), generator=g)[:1000], False
    )
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(w[free].numpy())
    place = free.nonzero()[:, 0]
    ways = {
        "ours": lambda: nearest(query, w, 1, free)[1][:, 0],
        "peer": lambda: place[
            torch.from_numpy(brute.kneighbors(query.numpy(), return_distance=False))[:, 0]
        ],
    }
    agree = float((ways["ours"]() == ways["peer"]()).float().mean())
    times = {name: [] for name in ways}
    for _ in range(n):
        for name, way in ways.items():
            t = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - t))
    ratios = sorted(b / a for a, b in zip(times["ours"], times["peer"]))
    mid = {name: statistics.median(t) for name, t in times.items()}
    note = f"{torch.get_num_threads()} threads; same neighbour for {agree:.2%}"  # noqa: E501
    return [
        {
            "name": "neighbours",
            **mid,
            "unit": "ms",
            "ratio": statistics.median(ratios),
            "effect": "speedup",
            "interval": "p10-p90",
            "low": ratios[n // 10],
            "high": ratios[-1 - n // 10],
            "n": n,
            "note": note,
        }
    ]


if __name__ == "__main__":
    print(rows())
