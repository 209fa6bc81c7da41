"""Deep boosting against random choice and doubt on MNIST: paired seeds, 40 -> 1,000 labels,
labels to 95 % test accuracy.

    python bench/study.py boosting --seeds 10      # runs what is missing
    python bench/study.py boosting --table         # prints what is there

Each seed has one pool of 20,000 training digits, one random start set of 40 and one recipe for all
methods (a small
CNN trained from scratch each round, 250 minibatches of 64, shift augmentation). The variant `boost`
and the recipe
were developed on the last 10,000 training digits with other nets; the test set was looked at here
only.
"""

import math
import time
from functools import cache

import torch
from common import Row, Study, arguments, ends_of, parsed

from deffi_lab.core.ledger import Key, Point
from deffi_lab.core.pool import Pool
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.boosting import BoostingKnobs, DeepBoosting
from deffi_lab.methods.selection.teacher import teacher_oracle
from deffi_lab.methods.selection.walk import Space, walk
from deffi_lab.nets.classify import Target, accuracy, train_classifier
from deffi_lab.nets.vae import reference_vae
from deffi_lab.study.curves import Runs, from_ledger, geometric_labels, reaches
from deffi_lab.study.evidence import table
from deffi_lab.study.statistics import ratio

SCHEDULE = [40, 70, 100, 150, 200, 300, 500, 1000]
POOL, GOAL = 20_000, 0.95
# name: latent dimensions, knobs; the second group is run when the first has all its seeds
METHODS = {
    "random": (16, dict(scheme="random")),
    "margin": (16, dict(scheme="margin")),
    "margin-diverse": (16, dict(scheme="margin-diverse")),
    "snn-hardest-2d": (2, dict(scheme="snn")),
    "snn-hardest-16d": (16, dict(scheme="snn")),
    "pool-walk": (16, dict(scheme="pool-walk")),
    "boost": (16, dict(scheme="boost")),
    "boost, eta 0": (16, dict(scheme="boost", eta=0.0)),
    "boost, random direction": (16, dict(scheme="boost", direction="random")),
    "si-prior": (16, dict(scheme="si", start="prior")),
    "si-hardest": (16, dict(scheme="si")),
    "snn-decoded-16d": (16, dict(scheme="snn-decoded")),
}
FIRST = 7
SETTINGS = {
    "pool": POOL,
    "start": SCHEDULE[0],
    "width": 8,
    "steps": 250,
    "batch": 64,
    "goal": GOAL,
    "schedule": SCHEDULE,
}
STUDY = Study("boosting", SETTINGS)


@cache
def data():
    "MNIST"
    return mnist()


@cache
def teacher():
    "A net trained on the 50,000 labels, which stands for the person who labels synthesised digits"
    d, g = data(), make_generator(99)
    net = Target(width=16, generator=g)
    for _ in train_classifier(
        net, d.x[:50_000], d.y[:50_000], steps=1000, batch=128, lr=1e-2, generator=g
    ):
        pass
    return net, accuracy(net, d.x[50_000:], d.y[50_000:])


@cache
def world(seed: int, latent: int):
    "The pool of a seed and its latents (held once for all methods)"
    d = data()
    i = torch.randperm(50_000, generator=make_generator(seed))[:POOL]
    x, y = d.x[i], d.y[i]
    return Pool(x, lambda k: y[k], 10), Space(reference_vae(latent), x), y


def mean(rows: list[dict]) -> dict[str, float]:
    "Means over rounds of the metrics, finite values only"
    names = {k for r in rows for k in r}
    return {
        k: sum(v) / len(v)
        for k in sorted(names)
        if (v := [r[k] for r in rows if k in r and math.isfinite(r[k])])
    }


def near_boundary(m: DeepBoosting) -> dict[str, float]:
    """Share of walked points near a boundary, walks from
    1,000 unlabelled samples: to the flip, and at random"""
    i = m.pool.unlabelled_indices[:1000]
    y = m.classify(m.pool.x[i].float() / 255)[1]
    go = {
        "flip": dict(stop=True),
        "random": dict(stop=False, way="random", generator=make_generator(0)),
    }
    return {
        f"near_{k}": walk(m.space.w[i], y, m.space.decode, m.net, **how).summary()["near"]
        for k, how in go.items()
    }


def once(name: str, seed: int) -> dict:
    "One run: its curve and its metrics on the way"
    latent, knobs = METHODS[name]
    pool, space, y = world(seed, latent)
    oracle = teacher_oracle(teacher()[0]) if knobs["scheme"] == "si" else None
    t = time.time()
    d = data()
    m = DeepBoosting(
        pool,
        space.vae,
        d.x_test,
        d.y_test,
        BoostingKnobs(**knobs),
        seed=seed,
        oracle=oracle,
        schedule=SCHEDULE,
        space=space,
    )
    metrics = {}
    for _ in m:
        if m.at_boundary and name == "pool-walk" and m.curve[-1][0] == 200:
            metrics = near_boundary(m)
    labels = torch.cat([pool.y[m.order], m.extra_y])
    count = torch.bincount(labels, minlength=10)
    metrics |= {**mean(m.diagnosis), "balance": float(count.min() / count.max())}
    return {"curve": m.curve, "metrics": metrics, "seconds": round(time.time() - t, 1)}


def run(seeds: range, until: float = math.inf, methods: list[str] | None = None) -> None:
    """Runs what is missing, seed by seed so that runs stay paired, and writes after each; begins
    none after `until` seconds"""
    began, names = time.time(), list(METHODS)
    with STUDY.open() as ledger:
        for part in (names[:FIRST], names[FIRST:]):
            for seed in seeds:
                for name in part:
                    key = Key("mnist", name, 0, seed)
                    if ledger.last(key) is not None or (methods and name not in methods):
                        continue
                    if time.time() - began > until:
                        return
                    r = once(name, seed)
                    ledger.add_many([(key, p) for p in points(r)])
                    print(seed, name, [round(100 * a, 1) for _, a in r["curve"]], r["seconds"])
                world.cache_clear()


def points(r: dict) -> list[Point]:
    "A run as the ledger holds it: time and metrics belong to the last point"
    *early, (n, value) = r["curve"]
    return [Point(k, v) for k, v in early] + [Point(n, value, r["seconds"], metrics=r["metrics"])]


def measured() -> Runs:
    "The curves of all variants"
    return from_ledger(STUDY.columns(), "mnist", 0)


def compare(runs: Runs, ours: str, peer: str, goal: float = GOAL) -> Row:
    "Ratio of labels (peer to ours, geometric mean over paired seeds), its interval or bound"
    r = ratio(runs[ours], runs[peer], goal)
    ends = [list(reaches(runs[m], goal).values()) for m in (ours, peer)]
    never = [sum(e.censored for e in side) for side in ends]
    a, b = (geometric_labels(side).labels for side in ends)
    note = (
        f"MNIST, pool of {POOL}, paired seeds, geometric means, Student's t over logs; never "
        f"reached by {SCHEDULE[-1]} labels: {never[0]} of ours, {never[1]} of {peer} (counted at "
        f"{SCHEDULE[-1]})"
    )
    name = f"boosting_vs_{peer}"
    unit = f"labels to {goal:.0%}".replace("%", " %")
    return Row(name, a, unit, b, "speedup", r.ratio, n=r.n, note=note, **ends_of(r))


def rows() -> list[Row]:
    "Bench rows from the ledger"
    runs = measured()
    return [compare(runs, "boost", peer) for peer in ("random", "margin")]


def main(words: list[str]) -> None:
    "Runs, prints or ships the study"
    a = parsed(arguments(__doc__, ["mnist"], 10), ["mnist"], words)
    if a.measure:
        run(range(a.first, a.seeds), a.until, a.methods)
    if a.export:
        STUDY.ship()
    if a.table:
        how = dict(target=GOAL, baseline="random", control="boost, eta 0", centre="geometric")
        print(table(measured(), SCHEDULE, **how))
