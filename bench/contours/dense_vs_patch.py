"""A traced 128 x 128 image: the field at all pixels once and 1,000 agents through it, against
agents that each look
at a patch at each step. The same net, starts, steps and rule of closing; Dice of both masks against
the truth.
"""

import statistics
import time

import torch

from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.methods.contours.field import march
from deffi_lab.methods.contours.tracing import closing, tracer_field, train_tracer, walk_patchwise
from deffi_lab.nets.score import dice
from deffi_lab.nets.tracer import TracerNet
from deffi_lab.numeric.polygon import fill_polygon

AGENTS, STEPS = 1000, 300


def enclosed(paths: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    "Pixels that more than half of the closed orbits enclose"
    loops = [o.points for o in closing(paths) if o.closed]
    if not loops:
        return torch.zeros(shape, dtype=torch.bool)
    return sum(fill_polygon(loop, shape).float() for loop in loops) > len(loops) / 2


def rows(n: int = 2) -> list[dict]:
    "Midpoint steps; the patch-by-patch walk, all agents in one batch, runs once for each image"
    torch.set_num_threads(1)
    hearts, tests = phantom(60, size=128, seed=0), phantom(n, size=128, seed=1)
    net = TracerNet(generator=make_generator(0))
    for _ in train_tracer(net, hearts, steps=600, generator=make_generator(1)):
        pass
    took, score, ratios = {"dense": [], "patch": []}, {"dense": [], "patch": []}, []
    for i in range(n):
        image, mask = tests.image[i : i + 1], tests.mask[i]
        near = mask.nonzero().flip(1).float()  # starts: around the ventricle, as after a click
        g = make_generator(2 + i)
        p0 = near[torch.randint(0, len(near), (AGENTS,), generator=g)] + 4 * torch.randn(
            AGENTS, 2, generator=g
        )
        p0 = p0.clamp(0, 127)

        def dense() -> torch.Tensor:
            field = tracer_field(net, image, consistent=False)[1]
            return march(field.f, p0[None], STEPS, 1.0, "midpoint", every=1)[1][:, 0]

        def patch() -> torch.Tensor:
            return walk_patchwise(net, image, p0, STEPS)

        dense()
        for name, way in (("dense", dense), ("patch", patch)):
            repeated = []
            for _ in range(5 if name == "dense" else 1):
                t = time.perf_counter()
                paths = way()
                repeated.append(time.perf_counter() - t)
            took[name].append(statistics.median(repeated))
            score[name].append(float(dice(enclosed(paths, mask.shape)[None], mask[None])))
        ratios.append(took["patch"][-1] / took["dense"][-1])
    mean = {name: sum(v) / n for name, v in score.items()}
    gap = max(abs(a - b) for a, b in zip(score["dense"], score["patch"]))
    note = (
        f"{AGENTS} agents, {STEPS} midpoint steps, 128 x 128, one thread; mean Dice dense "
        f"{mean['dense']:.3f}, "
        f"patch by patch {mean['patch']:.3f}, largest difference {gap:.3f}; {n} images"
    )
    mid = {name: statistics.median(t) for name, t in took.items()}
    return [
        {
            "name": "dense_vs_patch",
            "ours": mid["dense"],
            "peer": mid["patch"],
            "unit": "s",
            "n": n,
            "note": note,
            "ratio": statistics.median(ratios),
            "effect": "speedup",
            "interval": "range",
            "low": min(ratios),
            "high": max(ratios),
        }
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
