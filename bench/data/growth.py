"""Fisher-Kolmogorov growth of 64 tumours on 128 x
128, 300 steps, against a loop of NumPy over cases."""

import os
import statistics

import numpy as np
import torch
from common import timed

from deffi_lab.data.brain.atlas import subjects
from deffi_lab.data.brain.growth import first_cells, grow, stable_step
from deffi_lab.data.brain.tumour import diffusivity

RHO, SPACING, STEPS = 0.04, 1.5, 300


def loop(c0: np.ndarray, D: np.ndarray, dt: float) -> np.ndarray:
    """One case after another in float32: faces once, then
    fluxes by slices, as one would write it with NumPy"""
    out = []
    for c, d in zip(c0, D):
        c = c.copy()
        w = [
            np.float32(dt / SPACING**2) * 2 * a * b / np.maximum(a + b, np.float32(1e-30))
            for a, b in ((d[:-1], d[1:]), (d[:, :-1], d[:, 1:]))
        ]
        gain = np.float32(dt * RHO)
        for _ in range(STEPS):
            down, right = w[0] * (c[1:] - c[:-1]), w[1] * (c[:, 1:] - c[:, :-1])
            c = c + gain * c * (1 - c)
            c[:-1] += down
            c[1:] -= down
            c[:, :-1] += right
            c[:, 1:] -= right
        out.append(c)
    return np.stack(out)


def rows(n: int = 7) -> list[dict]:
    """Interleaved timings on all cores and on one, and on a
    GPU where there is one; the same step and result on all"""
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    heads = subjects(64, 128, seed=1, spacing=SPACING, device="cpu", height=(0.0, 45.0))
    D = diffusivity(heads, 0.5)
    places = torch.full((64, 2), 63.0) + torch.arange(64)[:, None] % 8 * torch.tensor([2.0, 3.0])
    start = first_cells(places, (128, 128), SPACING)
    start = start * (D > 0)
    D[:, 0, 0] = 0.5  # every case has the same step
    dt = 0.9 * stable_step(D, RHO, SPACING)
    time_ = dt * STEPS * (1 - 1e-4)
    out = []

    def peer():
        return loop(start.numpy(), D.numpy(), time_ / STEPS)

    for device, many in [("cpu", cores), ("cpu", 1)] + [("cuda", 1)] * torch.cuda.is_available():
        torch.set_num_threads(many)
        a, d = start.to(device), D.to(device)

        def ours(a=a, d=d):
            return grow(a, d, RHO, time_, SPACING)

        gap = float((ours().cpu() - torch.from_numpy(peer())).abs().max())
        if gap > 1e-4:
            raise RuntimeError(f"growth and the loop of NumPy differ by {gap:g}")
        for _ in range(2):
            timed(ours)
        mine, theirs = zip(*[(timed(ours), timed(peer)) for _ in range(n)])
        ratios = sorted(b / a for a, b in zip(mine, theirs))
        out.append(
            {
                "name": "growth"
                + "_cuda" * (device == "cuda")
                + "_one_core" * (device == "cpu" and many == 1),
                "ours": statistics.median(mine),
                "peer": statistics.median(theirs),
                "unit": "ms",
                "ratio": statistics.median(ratios),
                "effect": "speedup",
                "interval": "range",
                "low": ratios[0],
                "high": ratios[-1],
                "n": n,
                "note": f"64 tumours of 128 x 128, {STEPS} steps, float32, {many} "
                f"core{'s' * (many > 1)}; peer: NumPy's loop over cases, one core; "
                f"largest difference {gap:.0e}",
            }
        )
    torch.set_num_threads(threads)
    return out


if __name__ == "__main__":
    print(rows())
