"""Patches a second, turned, two scales, 31 x 31, one
core: ours, scipy's map_coordinates, unfold (unturned)."""

import math
import statistics
import time

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from deffi_lab.core.step import make_generator
from deffi_lab.methods.contours.pairs import PairSampler, patches
from deffi_lab.nets.tracer import scale_space

SIZE, SCALES = 31, (1, 2)


def by_scipy(
    levels: np.ndarray, index: np.ndarray, at: np.ndarray, heading: np.ndarray
) -> np.ndarray:
    "A call a patch and scale"
    o = np.arange(SIZE) - (SIZE - 1) / 2
    b, a = np.meshgrid(o, o, indexing="ij")
    out = np.empty((len(at), len(SCALES), SIZE, SIZE), np.float32)
    for i, ((x, y), (u, v)) in enumerate(zip(at, heading)):
        for s, scale in enumerate(SCALES):
            place = np.stack([y + scale * (a * v + b * u), x + scale * (a * u - b * v)])
            map_coordinates(levels[index[i], s], place, out[i, s], order=1, mode="nearest")
    return out


def by_unfold(levels: torch.Tensor) -> torch.Tensor:
    "Every pixel's patches at once, unturned"
    parts = []
    for s, scale in enumerate(SCALES):
        wide = torch.nn.functional.pad(
            levels[:, s : s + 1], (scale * (SIZE // 2),) * 4, "replicate"
        )
        parts.append(torch.nn.functional.unfold(wide, SIZE, dilation=scale))
    return torch.stack(parts, 1)


def rows(n: int = 9, count: int = 2000) -> list[dict]:
    "Interleaved on one core; scipy cuts a tenth as many"
    torch.set_num_threads(1)
    g = make_generator(0)
    images = torch.rand(5, 1, 96, 96, generator=g)
    levels = scale_space(images, SCALES)
    index = torch.randint(0, 5, (count,), generator=g).sort().values
    at, angle = 95 * torch.rand(count, 2, generator=g), 2 * math.pi * torch.rand(count, generator=g)
    heading = torch.stack([angle.cos(), angle.sin()], 1)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    sampler = PairSampler(images, (torch.hypot(x - 48, y - 48) - 20).expand(5, -1, -1))
    few = count // 10
    some = [t[:few].numpy() for t in (index, at, heading)]
    ways = {
        "ours": (count, lambda: patches(levels, index, at, SIZE, SCALES, heading)),
        "peer": (few, lambda: by_scipy(levels.numpy(), *some)),
        "unfold": (96 * 96, lambda: by_unfold(levels[:1])),
        "pairs": (count, lambda: sampler.draw(count, g, oriented=True)),
    }
    gap = float(np.abs(ways["ours"][1]()[:few].numpy() - ways["peer"][1]()).max())
    speed = {name: [] for name in ways}
    for _ in range(n):
        for name, (many, way) in ways.items():
            t = time.perf_counter()
            way()
            speed[name].append(many / (time.perf_counter() - t))
    mid = {name: statistics.median(v) for name, v in speed.items()}
    ratios = sorted(a / b for a, b in zip(speed["ours"], speed["peer"]))
    note = (
        f"31 x 31, two scales, turned, one thread; unturned by unfold, every pixel "
        f"{mid['unfold']:,.0f}/s; "
        f"largest difference to scipy {gap:.0e}"
    )
    how = dict(unit="pairs/s", low=ratios[n // 10], high=ratios[-1 - n // 10], n=n)
    whole = f"whole pairs: places, perturbed headings, targets and patches; peer: patches alone by scipy; {n} runs"  # noqa: E501
    return [
        {
            "name": "pairs_per_s",
            "ours": mid["ours"],
            "peer": mid["peer"],
            "ratio": statistics.median(ratios),
            "effect": "share",
            "interval": "p10-p90",
            "note": note,
            **how,
        },
        {
            "name": "pairs_whole_per_s",
            "ours": mid["pairs"],
            "peer": mid["peer"],
            "ratio": mid["pairs"] / mid["peer"],
            "effect": "share",
            "unit": "pairs/s",
            "n": n,
            "note": whole,
        },
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
