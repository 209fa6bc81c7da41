"""Agent-steps a second: 10,000 agents on a field of 256 x
256, Euler, one core, against a loop over agents in Python."""

import statistics
import time

import torch

from deffi_lab.core.step import make_generator
from deffi_lab.methods.contours.field import make_field, march
from deffi_lab.numeric.distance import signed_distance


def bilinear(f: list, x: float, y: float, w: int, h: int) -> tuple[float, float]:
    "What one agent reads, in plain Python"
    x, y = min(max(x, 0.0), w - 1.0), min(max(y, 0.0), h - 1.0)
    j, i = min(int(x), w - 2), min(int(y), h - 2)
    a, b = x - j, y - i
    return tuple(
        (1 - b) * ((1 - a) * c[i][j] + a * c[i][j + 1])
        + b * ((1 - a) * c[i + 1][j] + a * c[i + 1][j + 1])
        for c in f
    )


def one_by_one(f: list, p: list, steps: int, h: float) -> list:
    "Each agent by itself"
    out = []
    for x, y in p:
        for _ in range(steps):
            u, v = bilinear(f, x, y, len(f[0][0]), len(f[0]))
            x, y = x + h * u, y + h * v
        out.append((x, y))
    return out


def rows(n: int = 15, agents: int = 10_000, steps: int = 300) -> list[dict]:
    "Interleaved timings on one core; the loop moves 100 of the agents 30 steps"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    y, x = torch.meshgrid(torch.arange(256.0) - 128, torch.arange(256.0) - 128, indexing="ij")
    star = (x * x + y * y).sqrt() < 70 + 25 * torch.cos(5 * torch.atan2(y, x))
    f = make_field(signed_distance(star, smooth=1.0)[None]).f
    p = torch.rand(1, agents, 2, generator=make_generator(0)) * 255
    plain, few = f[0].tolist(), p[0, :100].tolist()
    gap = (
        (
            march(f, p[:, :100], 30, 0.5, "euler")[0][0]
            - torch.tensor(one_by_one(plain, few, 30, 0.5))
        )
        .norm(dim=1)
        .median()
    )
    fast, slow = [], []
    for _ in range(n):
        t = time.perf_counter()
        march(f, p, steps, 0.5, "euler")
        fast.append(agents * steps / (time.perf_counter() - t) / 1e6)
        t = time.perf_counter()
        one_by_one(plain, few, 30, 0.5)
        slow.append(3e3 / (time.perf_counter() - t) / 1e6)
    torch.set_num_threads(threads)
    ratios = sorted(a / b for a, b in zip(fast, slow))
    return [
        {
            "name": "agents",
            "ours": statistics.median(fast),
            "peer": statistics.median(slow),
            "unit": "M agent-steps/s",
            "ratio": statistics.median(ratios),
            "effect": "share",
            "interval": "p10-p90",
            "low": ratios[n // 10],
            "high": ratios[-1 - n // 10],
            "n": n,
            "note": f"{agents} agents, {steps} Euler steps, 256 x 256, one core; peer: a loop "
            f"over agents in plain Python; "
            f"median gap {float(gap):.1g} px",
        }
    ]


if __name__ == "__main__":
    print(rows())
