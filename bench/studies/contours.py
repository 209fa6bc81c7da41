"""The study of deep labelling: Dice on unseen slices after k labelled ones, seed by seed, into a
ledger.

    python bench/study.py contours phantom --labels 5  # one set, one budget, all ways of learning
    python bench/study.py contours                     # everything (hours)
    python bench/study.py contours --table             # or --export: the copy that ships

phantom: seeded drawings of a heart; training slices are nested in the budgets, the 200 test slices
are the same for all.
heart: Sunnybrook slices of three patients; a seed tests on one patient and learns from slices of
the two others.
Nothing was tuned on these test slices: constants were chosen on other phantoms (seeds 100.. and
999).
"""

import time
from functools import cache

import numpy as np
import torch
from common import Study, arguments, difference, parsed
from scipy.stats import spearmanr

from deffi_lab.core.ledger import Key, Point
from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.data.heart.readers import Slices, sunnybrook_npz
from deffi_lab.methods.contours.clicks import (
    ClickHint,
    by_hand,
    click_channel,
    hand_clicks,
    session,
)
from deffi_lab.methods.contours.orbits import outline
from deffi_lab.methods.contours.tracing import TrainTracer, learnt_field, studied_unet
from deffi_lab.nets.score import dice
from deffi_lab.nets.segment import largest, outputs
from deffi_lab.numeric.distance import signed_distance
from deffi_lab.numeric.polygon import fill_polygon

BUDGETS, SETS = (1, 2, 5, 10, 20), ("phantom", "heart")
SETTINGS = {
    "size": 96,
    "spacing": 1.75,
    "short": 400,
    "long": 1000,
    "tracer": 1500,
    "batch": 8,
    "sigma": 4.0,
    "test": 200,
}
STUDY = Study("labelling", SETTINGS)
AGENTS, CLICKS = 64, 5
TABLE = {
    "U-Net on masks": "U-Net, largest",
    "U-Net on the field, agents": "field U-Net, orbits",
    "U-Net on the field, threshold": "field U-Net, threshold",
    "patch tracer, agents": "tracer, orbits",
    "patch tracer, threshold": "tracer, threshold",
}


@cache
def test_phantoms() -> Slices:
    return phantom(SETTINGS["test"], seed=7000)


@cache
def hearts() -> Slices:
    return sunnybrook_npz()


def sets(name: str, seed: int, k: int) -> tuple[Slices, Slices]:
    "k labelled slices, and the test slices, for a seed"
    if name == "phantom":
        return phantom(max(BUDGETS), seed=1000 + seed).take(range(k)), test_phantoms()
    data = hearts()
    train, test = data.split([sorted(set(data.subject))[seed % 3]])
    return train.take(torch.randperm(len(train), generator=make_generator(seed))[:k]), test


def overlap(
    predicted: torch.Tensor, test: Slices, trust: torch.Tensor | None = None, **metrics: float
) -> tuple[float, dict]:
    """Mean Dice, its worst tenth, and the rank correlation of
    `trust` (what the method thinks of each slice) with it"""
    d = dice(predicted, test.mask)
    if trust is not None:
        metrics["trust"] = float(np.nan_to_num(spearmanr(trust, d).statistic))
    return float(d.mean()), {"tenth": float(d.quantile(0.1)), **metrics}


def by_orbits(field, n: int) -> tuple[torch.Tensor, dict]:
    """The orbit on which most agents end, filled; the share
    of agents that failed and of slices where nothing closed"""
    results = [outline(field.f[i], n_starts=AGENTS, seed=i) for i in range(n)]
    failed = sum(sum(t.failed.values()) for t in results) / (n * AGENTS)
    best = [
        max((c for c in t.contours if c.used and not c.hole), key=lambda c: c.count, default=None)
        for t in results
    ]
    predicted = [
        fill_polygon(c.orbit.points, t.mask.shape) if c else torch.zeros_like(t.mask)
        for c, t in zip(best, results)
    ]
    return torch.stack(predicted), {"failed": failed, "open": sum(c is None for c in best) / n}


def masks(train: Slices, test: Slices, seed: int, steps: int, tag: str) -> dict:
    "A U-Net that learns masks, and its largest piece"
    training = studied_unet(train, seed, steps=steps)
    for _ in training:
        pass
    net = training.net
    p = outputs(net, test.image)[:, 0].sigmoid()
    predicted = p > 0.5
    sure = (
        2 * (p * predicted).flatten(1).sum(1) / (p + predicted).flatten(1).sum(1)
    )  # soft Dice with its own threshold
    return {
        tag: overlap(predicted, test, sure),
        f"{tag}, largest": overlap(largest(predicted), test, sure),
    }


def read(out: torch.Tensor, test: Slices, tag: str) -> dict:
    """Three readings of one learnt field: threshold of its
    distance, agents on it as it is, and on the consistent one"""
    plain = largest(out[:, 0] < 0)
    results = {f"{tag}, threshold": overlap(plain, test)}
    for name, consistent in (("own field", False), ("orbits", True)):
        predicted, metrics = by_orbits(learnt_field(out, consistent=consistent)[1], len(test))
        results[f"{tag}, {name}"] = overlap(
            predicted, test, dice(predicted, plain), **metrics
        )  # trust: do both readings agree?
    return results


def short(train: Slices, test: Slices, seed: int) -> dict:
    return masks(train, test, seed, SETTINGS["short"], "U-Net short")


def long(train: Slices, test: Slices, seed: int) -> dict:
    return masks(train, test, seed, SETTINGS["long"], "U-Net")


def longer(train: Slices, test: Slices, seed: int) -> dict:
    return masks(train, test, seed, 3 * SETTINGS["long"], "U-Net 3x")


def field(train: Slices, test: Slices, seed: int) -> dict:
    training = studied_unet(train, seed, field=True, steps=SETTINGS["long"])
    for _ in training:
        pass
    return read(outputs(training.net, test.image), test, "field U-Net")


def tracer(train: Slices, test: Slices, seed: int, oriented: bool = False) -> dict:
    method = TrainTracer(train, seed=seed, steps=SETTINGS["tracer"])  # as the lab shows it
    for _ in method:
        pass
    net = method.net.eval()
    with torch.no_grad():
        out = torch.cat([net.dense(x) for x in test.image.split(20)])
    return read(out, test, "tracer")


def clicked(train: Slices, test: Slices, seed: int) -> dict:
    """Networks that take clicks: Dice after one click, after
    more in the metrics; the mask's zero contour is bent alike"""
    results, truth = {}, signed_distance(test.mask)
    for tag, flag in (("clicks, field", True), ("clicks, mask", False)):
        training = studied_unet(train, seed, field=flag, steps=SETTINGS["long"], hint=ClickHint())
        for _ in training:
            pass
        net = training.net
        net.eval()
        table, closed = [], 0
        for i in range(0, len(test), 2):
            got = session(
                guesser(net, test.image[i : i + 1], flag), truth[i], CLICKS, make_generator(i)
            )
            table.append(
                dice(
                    torch.stack([c.mask for c in got]), test.mask[i : i + 1].expand(CLICKS, -1, -1)
                )
            )
            closed += sum(c.closed for c in got)
        d = torch.stack(table)
        none = largest(
            (outputs(net, torch.cat([test.image, torch.zeros_like(test.image)], 1))[::2, 0] < 0)
            ^ (not flag)
        )
        results[tag] = (
            float(d[:, 0].mean()),
            {
                "c0": float(dice(none, test.mask[::2]).mean()),
                "closed": closed / d.numel(),
                "tenth": float(d[:, 0].quantile(0.1)),
                **{f"c{j + 1}": float(d[:, j].mean()) for j in range(CLICKS)},
                "to90": float(
                    torch.where(
                        (d >= 0.9).any(1), (d >= 0.9).float().argmax(1) + 1.0, CLICKS + 1.0
                    ).mean()
                ),
            },
        )
    return results


def guesser(net: torch.nn.Module, image: torch.Tensor, flag: bool):
    """What a click network says, given clicks, as a
    distance (a mask's: the exact distance of its threshold)"""

    @torch.no_grad()
    def guess(at):
        out = net(torch.cat([image, click_channel(at[None], image.shape[2:])], 1)).float()
        if flag:
            return learnt_field(out)[0][0], None
        mask = out[0, 0] > 0
        if not mask.any() or mask.all():
            return torch.full_like(out[0, 0], 5.0), None
        return signed_distance(mask, smooth=1.0).clamp(-9, 9), None

    return guess


def hand(train: Slices, test: Slices, seed: int) -> dict:
    "Drawing by hand, for as many clicks: no learning, no labels"
    truth, g = signed_distance(test.mask), make_generator(seed)
    at = {
        n: dice(torch.stack([by_hand(hand_clicks(p, n, g), p.shape) for p in truth]), test.mask)
        for n in (3, 4, 5, 6, 8, 12)
    }
    return {"by hand": (float(at[4].mean()), {f"c{n}": float(d.mean()) for n, d in at.items()})}


UNITS = {
    "short": short,
    "long": long,
    "field": field,
    "tracer": tracer,
    "clicked": clicked,
    "hand": hand,
    "longer": longer,
}
FIRST = {
    "short": "U-Net short",
    "long": "U-Net",
    "field": "field U-Net, orbits",
    "tracer": "tracer, orbits",
    "clicked": "clicks, mask",
    "hand": "by hand",
    "longer": "U-Net 3x",
}


def run(name: str, k: int, seeds: range, units: list[str]) -> None:
    "What the ledger does not hold yet"
    with STUDY.open() as ledger:
        for seed in seeds:
            for unit in units:
                if any(p.labels == k for p in ledger.points(Key(name, FIRST[unit], 0, seed))):
                    continue
                t = time.time()
                results = UNITS[unit](*sets(name, seed, k), seed)
                took = time.time() - t
                ledger.add_many(
                    [
                        (Key(name, m, 0, seed), Point(k, value, took, metrics=metrics))
                        for m, (value, metrics) in results.items()
                    ]
                )
                print(
                    name,
                    k,
                    seed,
                    unit,
                    {m: round(v, 3) for m, (v, _) in results.items()},
                    f"{took:.0f} s",
                    flush=True,
                )


def rows() -> list[dict]:
    "Read from the ledger: what was asked at five labels, and with one click"
    out = []
    for name in SETS:
        fold = "" if name == "phantom" else ", tested on the patient left out (three patients)"
        out.append(
            difference(
                STUDY.columns(),
                name,
                "field U-Net, orbits",
                "U-Net, largest",
                5,
                f"dynamics_vs_mask_5_{name}",
                "agents on the field a U-Net learnt, against the same U-Net on masks, 1,000 steps"
                + fold,
            )
        )
        out.append(
            difference(
                STUDY.columns(),
                name,
                "tracer, orbits",
                "U-Net, largest",
                5,
                f"tracer_vs_mask_5_{name}",
                "agents on the patch tracer's field, against a U-Net on masks, 1,000 steps" + fold,
            )
        )
        out.append(
            difference(
                STUDY.columns(),
                name,
                "clicks, field",
                "clicks, mask",
                5,
                f"one_click_dice_{name}",
                "one click, 5 labels: field and mask networks that both take clicks" + fold,
            )
        )
    return out


def table() -> None:
    "README's tables: mean (lowest-highest, seeds)"
    from deffi_lab.study.curves import by_budget, from_ledger

    for name, title in (("phantom", "phantoms"), ("heart", "Sunnybrook")):
        print(f"| {title}, Dice |", *(f"{k} label{'s' * (k > 1)} |" for k in BUDGETS))
        print("|---" * (1 + len(BUDGETS)) + "|")
        runs = from_ledger(STUDY.columns(), name, 0)
        for words, m in TABLE.items():
            at = by_budget(runs[m])
            print(
                f"| {words} |",
                *(
                    f"{np.mean(at[k]):.3f} ({min(at[k]):.3f}–{max(at[k]):.3f}, {len(at[k])}) |"
                    if k in at
                    else " |"
                    for k in BUDGETS
                ),
            )
        print()


def main(words: list[str]) -> None:
    "Runs, prints or ships the study"
    methods = [u for u in UNITS if u != "longer"]
    parser = arguments(__doc__, list(SETS), 6, labels=BUDGETS, methods=methods)
    a = parsed(parser, list(SETS), words)
    for name in a.parts * a.measure:
        for k in a.labels:
            run(name, k, range(a.first, a.seeds), a.methods)
    if a.export:
        STUDY.ship()
    if a.table:
        table()
