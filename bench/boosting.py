"""Deep boosting against chance and doubt on MNIST: paired seeds, 40 -> 1,000 labels, labels to 95 %
test accuracy.

    python bench/boosting.py --seeds 10      # takes up bench/results/boosting_mnist.json where it
    ended
    python bench/boosting.py --table         # prints what is there

Each seed has one pool of 20,000 training digits, one random start set of 40 and one recipe for all
methods (a small
CNN trained from scratch each round, 250 minibatches of 64, shift augmentation). The variant `boost`
and the recipe
were developed on the last 10,000 training digits with other nets; the test set was looked at here
only.
"""

import argparse
import json
import math
import time
from functools import cache
from pathlib import Path

import torch

from deffi_lab.core.pool import Pool
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.boosting import BoostingKnobs, DeepBoosting
from deffi_lab.methods.selection.teacher import teacher_oracle
from deffi_lab.methods.selection.walk import Space, walk
from deffi_lab.nets.classify import Target, accuracy, train_classifier
from deffi_lab.nets.vae import reference_vae

RESULTS = Path(__file__).resolve().parent / "results" / "boosting_mnist.json"
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
    "Means over rounds of what was told, finite values only"
    names = {k for r in rows for k in r}
    return {
        k: sum(v) / len(v)
        for k in sorted(names)
        if (v := [r[k] for r in rows if k in r and math.isfinite(r[k])])
    }


def near_boundary(m: DeepBoosting) -> dict[str, float]:
    """Share of walked points near a boundary, walks from
    1,000 unlabelled samples: to the flip, and by chance"""
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
    "One run: its curve and what was told on the way"
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
    told = {}
    for _ in m:
        if m.at_boundary and name == "pool-walk" and m.curve[-1][0] == 200:
            told = near_boundary(m)
    labels = torch.cat([pool.y[m.order], m.extra_y])
    count = torch.bincount(labels, minlength=10)
    told |= {**mean(m.diagnosis), "balance": float(count.min() / count.max())}
    return {"curve": m.curve, "told": told, "seconds": round(time.time() - t, 1)}


def load() -> dict:
    "What has been run so far"
    return (
        json.loads(RESULTS.read_text())
        if RESULTS.exists()
        else {"schedule": SCHEDULE, "pool": POOL, "runs": {}}
    )


def run(seeds: int, until: float = math.inf, methods: list[str] | None = None) -> dict:
    """Runs what is missing, seed by seed so that runs stay
    paired, and writes after each; stops at `until` (s)"""
    out, began = load(), time.time()
    names = list(METHODS)
    for part in (names[:FIRST], names[FIRST:]):
        for seed in range(seeds):
            for name in part:
                done = out["runs"].setdefault(name, {})
                if str(seed) in done or (methods and name not in methods):
                    continue
                if time.time() - began > until:
                    return out
                done[str(seed)] = r = once(name, seed)
                print(
                    seed,
                    name,
                    [round(100 * a, 1) for _, a in r["curve"]],
                    f"{r['seconds']} s",
                    flush=True,
                )
                text = RESULTS.with_suffix(".part")
                text.write_text(json.dumps(out) + "\n")
                text.replace(RESULTS)
            world.cache_clear()
    return out


def labels_to(curve: list, goal: float = GOAL) -> tuple[float, bool]:
    """Labels at which a curve first reaches the goal, interpolated
    in log labels; True where it never does (censored)"""
    for (n0, a0), (n1, a1) in zip([(curve[0][0], 0.0), *curve], curve):
        if a1 >= goal:
            return math.exp(math.log(n0) + (goal - a0) / (a1 - a0) * math.log(n1 / n0)), False
    return float(curve[-1][0]), True


def compare(ours: str, peer: str, goal: float = GOAL, draws: int = 10_000) -> dict:
    """Ratio of labels (peer to ours, geometric mean
    over paired seeds) with its 95 % bootstrap interval"""
    runs = load()["runs"]
    seeds = sorted(set(runs.get(ours, {})) & set(runs.get(peer, {})), key=int)
    if len(seeds) < 2:
        raise ValueError(
            f"{len(seeds)} paired seeds of {ours} and {peer}: run bench/boosting.py --seeds 10"
        )
    a, b = ([labels_to(runs[m][s]["curve"], goal) for s in seeds] for m in (ours, peer))
    log = torch.tensor([math.log(q[0] / p[0]) for p, q in zip(a, b)])
    i = torch.randint(len(seeds), (draws, len(seeds)), generator=make_generator(0))
    low, high = log[i].mean(1).quantile(torch.tensor([0.025, 0.975])).exp().tolist()
    geo = [math.exp(sum(math.log(v) for v, _ in c) / len(c)) for c in (a, b)]
    never = [sum(c for _, c in side) for side in (a, b)]
    return {
        "ours": geo[0],
        "peer": geo[1],
        "ratio": math.exp(float(log.mean())),
        "low": low,
        "high": high,
        "n": len(seeds),
        "never": never,
    }


def table() -> list[dict]:
    """One row a method: mean accuracy in % and half its 95
    % interval at each budget, labels to 95 %, what was told"""
    out, runs = [], load()["runs"]
    for name in METHODS:
        got = list(runs.get(name, {}).values())
        if not got:
            continue
        row = {"method": name, "n": len(got)}
        for j, n in enumerate(SCHEDULE):
            at = torch.tensor(
                [r["curve"][j][1] for r in got if len(r["curve"]) > j and r["curve"][j][0] == n]
            )
            if len(at):
                row[n] = (
                    100 * float(at.mean()),
                    196 * float(at.std()) / math.sqrt(len(at)) if len(at) > 1 else math.nan,
                )
        ends = [labels_to(r["curve"]) for r in got]
        row["to95"] = math.exp(sum(math.log(v) for v, _ in ends) / len(ends))
        row["never"] = sum(c for _, c in ends)
        out.append({**row, **mean([r["told"] for r in got])})
    return out


def rows() -> list[dict]:
    "Bench rows from the results file (run(10) makes it: half an hour on one core)"
    if not RESULTS.exists():
        run(10)
    out = []
    for peer in ("random", "margin"):
        c = compare("boost", peer)
        never = c.pop("never")
        out.append(
            {
                "name": f"boosting_vs_{peer}",
                "unit": "labels to 95 %",
                **c,
                "note": f"MNIST, pool of {POOL}, paired seeds, geometric means, bootstrap over seeds; never "  # noqa: E501
                f"reached by {SCHEDULE[-1]} labels: {never[0]} of ours, {never[1]} of {peer} (counted "  # noqa: E501
                f"at {SCHEDULE[-1]})",
            }
        )
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--until", type=float, default=math.inf, help="begin no run after so many seconds"
    )
    parser.add_argument("--methods", nargs="*", choices=list(METHODS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.table:
        run(args.seeds, args.until, args.methods)
    for row in table():
        print(
            f"{row['method']:>24} n={row['n']:<3}"
            + "".join(f" {n}: {row[n][0]:.1f}±{row[n][1]:.1f}" for n in SCHEDULE if n in row),
            f"to95={row['to95']:.0f}",
        )
