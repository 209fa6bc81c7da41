"""The fewest labels: the recipe of `methods.fewest` on MNIST, then, untuned, on Fashion-MNIST and
CIFAR-10.

    python bench/labels.py mnist --seeds 20      # takes up bench/results/labels_mnist.json where it
    ended
    python bench/labels.py --table               # prints what is there

The recipe's constants were chosen among about a dozen variants by the share of the 60,000 training
digits that graph
or network got right (so by their true labels), with other encoders; the test sets were looked at
here only. Half of the seeds use one encoder, half another;
each has its own first questions, candidates, weights and minibatches. No label is used but those
asked for.
"""

import argparse
import json
import time
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import ImageSet, cifar10, fashion_mnist, mnist
from deffi_lab.methods.selection.fewest import FewestLabels
from deffi_lab.methods.selection.propagation import Graph, knn_graph
from deffi_lab.nets.classify import predict
from deffi_lab.nets.contrast import Encoder, reference_encoder, train_encoder

here = Path(__file__).resolve().parent
SCHEDULE = (20, 30, 50, 75, 100)
SETS = {"mnist": mnist, "fashion": fashion_mnist, "cifar": cifar10}
ENCODERS = {"mnist": 2, "fashion": 1, "cifar": 1}
GOALS = {30: 0.97, 100: 0.985}


@cache
def data(name: str) -> ImageSet:
    return SETS[name]()


@cache
def encoder(name: str, seed: int) -> Encoder:
    "Trained on the unlabelled training images once; kept in bench/cache (not committed)"
    if (name, seed) == ("mnist", 0):
        return reference_encoder()
    from safetensors.torch import load_file, save_file

    x = data(name).x
    net = Encoder(x.shape[1], x.shape[2], generator=make_generator(seed))
    path = here / "cache" / f"encoder_{name}_{seed}.safetensors"
    if path.exists():
        net.load_state_dict(load_file(path))
    else:
        for i, loss in enumerate(train_encoder(net, x, generator=make_generator(seed))):
            if i % 400 == 0:
                print("encoder", name, seed, i, round(loss, 3), flush=True)
        path.parent.mkdir(exist_ok=True)
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return net.eval().requires_grad_(False)


@cache
def graph(name: str, seed: int) -> Graph:
    "Of an encoder's embedding, shared by the seeds that use it"
    return knn_graph(F.normalize(predict(encoder(name, seed).features, data(name).x), dim=1))


def once(name: str, seed: int, total: int) -> dict:
    """One run: accuracy on the test images, and the share
    of the pool that the graph has right, label by label"""
    d, which, t = data(name), seed * ENCODERS[name] // total, time.time()
    g = graph(name, which)
    m = FewestLabels(
        d.pool(),
        encoder(name, which),
        d.x_test,
        d.y_test,
        seed=seed,
        schedule=SCHEDULE,
        graph=g,
        truth=d.y,
    )
    for _ in m:
        pass
    return {
        "curve": m.curve,
        "graph": m.spread,
        "asked": m.pool.asked,
        "order": m.order.tolist(),
        "encoder": which,
        "seconds": round(time.time() - t, 1),
    }


def path_of(name: str) -> Path:
    return here / "results" / f"labels_{name}.json"


def run(name: str, seeds: int) -> dict:
    "Runs what is missing and writes after each seed"
    path = path_of(name)
    out = (
        json.loads(path.read_text())
        if path.exists()
        else {"data": data(name).title, "schedule": SCHEDULE, "runs": {}}
    )
    for seed in range(seeds):
        if str(seed) in out["runs"]:
            continue
        out["runs"][str(seed)] = r = once(name, seed, seeds)
        print(
            name, seed, [round(100 * a, 2) for _, a in r["curve"]], f"{r['seconds']} s", flush=True
        )
        part = path.with_suffix(".part")
        part.write_text(json.dumps(out) + "\n")
        part.replace(path)
    return out


def accuracies(name: str) -> torch.Tensor:
    "Accuracy [seeds budgets]"
    runs = json.loads(path_of(name).read_text())["runs"]
    return torch.tensor([[a for _, a in runs[s]["curve"]] for s in sorted(runs, key=int)])


def half_width(a: torch.Tensor) -> torch.Tensor:
    "Half of the 95 % interval of the mean over seeds (Student's t)"
    from scipy.stats import t

    return a.std(0) / len(a) ** 0.5 * t.ppf(0.975, len(a) - 1)


def table() -> None:
    for name in SETS:
        if not path_of(name).exists():
            continue
        a = accuracies(name)
        print(
            name,
            f"{len(a)} seeds",
            *(
                f"{n}: {m:.2%} +-{h:.2%} (worst {w:.2%})"
                for n, m, h, w in zip(SCHEDULE, a.mean(0), half_width(a), a.amin(0))
            ),
            sep="  ",
        )


def rows() -> list[dict]:
    "Accuracy at 30 and at 100 labels against what was wanted"
    a = accuracies("mnist")
    mean, half = a.mean(0), half_width(a)
    out = []
    for n, goal in GOALS.items():
        j = SCHEDULE.index(n)
        out.append(
            {
                "name": f"mnist_at_{n}_labels",
                "ours": float(mean[j]),
                "peer": goal,
                "unit": "test accuracy",
                "ratio": float(mean[j]) / goal,
                "low": float(mean[j] - half[j]),
                "high": float(mean[j] + half[j]),
                "n": len(a),
                "note": "peer is what was wanted; low and high: 95 % interval of the mean",
            }
        )
    return [*out, to_97()]


def to_97(target: float = 0.97) -> dict:
    "Labels to 97 %: the recipe against the plain network on random labels (bench/study.py)"
    from deffi_lab.study.curves import from_ledger, median_labels, reaches
    from deffi_lab.study.protocol import shipped
    from deffi_lab.study.statistics import ratio

    ours = from_ledger(shipped("fewest"), "mnist", 0)["fewest"]
    peer = from_ledger(shipped(), "mnist", 0)["random"]
    r = ratio(ours, peer, target)
    a, b = (median_labels(reaches(x, target).values()) for x in (ours, peer))
    return {
        "name": "labels_to_97_mnist",
        "ours": a.labels,
        "peer": b.labels,
        "unit": "labels",
        "ratio": r.ratio,
        "low": r.low,
        "high": r.high,
        "n": r.n,
        "note": f"medians {a} and {b}; {r}; peer: a small CNN from scratch on random labels",
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("names", nargs="*", choices=[[], *SETS])
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    if not a.table:
        for name in a.names or SETS:
            run(name, a.seeds)
    table()
