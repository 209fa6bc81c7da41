"""The fewest labels: the recipe of `methods.fewest` on MNIST, then, untuned, on Fashion-MNIST and
CIFAR-10.

    python bench/study.py fewest mnist --seeds 20                     # runs what is missing
    python bench/study.py fewest mnist --methods "random questions"   # the control
    python bench/study.py fewest --table                              # prints what is there

The control asks random questions; encoder, graph and network are the same.

The recipe's constants were chosen among about a dozen variants by the share of the 60,000 training
digits that graph
or network got right (so by their true labels), with other encoders; the test sets were looked at
here only. Half of the seeds use one encoder, half another;
each has its own first questions, candidates, weights and minibatches. No label is used but those
asked for.
"""

import time
from dataclasses import asdict
from functools import cache

import torch
import torch.nn.functional as F
from common import CACHE, Row, Study, arguments, ends_of, parsed

from deffi_lab.core.ledger import Key, Ledger, Point
from deffi_lab.core.pool import Selection
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import ImageSet, cifar10, fashion_mnist, mnist
from deffi_lab.methods.selection.fewest import FewestKnobs, FewestLabels
from deffi_lab.methods.selection.propagation import Graph, knn_graph
from deffi_lab.nets.classify import predict
from deffi_lab.nets.contrast import Encoder, reference_encoder, train_encoder
from deffi_lab.study.curves import band, by_budget, from_ledger, median_labels, reaches
from deffi_lab.study.shipped import runs
from deffi_lab.study.statistics import ratio

SCHEDULE = (20, 30, 50, 75, 100)
SETS = {"mnist": mnist, "fashion": fashion_mnist, "cifar": cifar10}
ENCODERS = {"mnist": 2, "fashion": 1, "cifar": 1}
GOALS = {30: 0.97, 100: 0.985}
RECIPE = {k: asdict(FewestKnobs())[k] for k in sorted(asdict(FewestKnobs()))}
STUDY = Study("fewest", {"recipe": RECIPE, "schedule": list(SCHEDULE)})
GRAPH = Study(
    "fewest_graph",
    {"recipe": RECIPE, "value": "share of the pool that the graph has right"},
    "fewest",
)


class RandomQuestions(FewestLabels):
    "The recipe's control: all but the questions is the same, those are random"

    def ask(self, k: int) -> Selection:
        "Asks for `k` samples at random"
        free = self.pool.unlabelled_indices
        picks = free[torch.randperm(len(free), generator=self.generator, device=free.device)[:k]]
        scores = torch.full((len(self.pool),), torch.nan, device=free.device)
        self.selection = Selection(picks, scores)
        self.pool.label(picks)
        self.order = torch.cat([self.order, picks[self.pool.labelled[picks]]])
        return self.selection


METHODS = {"fewest": FewestLabels, "random questions": RandomQuestions}


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
    path = CACHE / f"encoder_{name}_{seed}.safetensors"
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


def once(name: str, method: str, seed: int, total: int) -> FewestLabels:
    """One run to its end: `curve` on the test images, `spread` what the graph has right of the
    pool, label by label"""
    d, which = data(name), seed * ENCODERS[name] // total
    m = METHODS[method](
        d.pool(),
        encoder(name, which),
        d.x_test,
        d.y_test,
        seed=seed,
        schedule=SCHEDULE,
        graph=graph(name, which),
        truth=d.y,
    )
    for _ in m:
        pass
    return m


def run(name: str, method: str, seeds: range, total: int = 20) -> None:
    "Runs what is missing of a data set and writes after each seed; `total` seeds share encoders"
    with STUDY.open() as ledger, Ledger(GRAPH.work, GRAPH.name, GRAPH.settings) as spread:
        for seed in seeds:
            key = Key(name, method, 0, seed)
            if ledger.last(key) is not None:
                continue
            t = time.time()
            m = once(name, method, seed, total)
            took, share, order = time.time() - t, dict(m.spread), m.order.tolist()
            which = seed * ENCODERS[name] // total
            ledger.add_many(
                [
                    (
                        key,
                        Point(
                            n,
                            value,
                            took * (n == m.curve[-1][0]),
                            order[:n],
                            metrics={"encoder": which, "graph": share[n]},
                        ),
                    )
                    for n, value in m.curve
                ]
            )
            spread.add_many([(key, Point(n, v)) for n, v in m.spread])
            print(key, [round(100 * a, 2) for _, a in m.curve], f"{took:.0f} s", flush=True)


def table() -> None:
    "Accuracy at each budget with Student's interval over encoders, and the worst seed"
    columns = STUDY.columns()
    for name in dict.fromkeys(columns["data"].tolist()):
        for method, r in from_ledger(columns, name, 0, "encoder").items():
            cells = []
            worst = {n: min(v) for n, v in by_budget(r).items()}
            for n, mean, _, high in zip(*band(r)):
                half = high - mean
                cells.append(f"{n:.0f}: {mean:.2%} +-{half:.2%} (worst {worst[n]:.2%})")
            print(name, method, f"{len(r)} seeds", *cells, sep="  ")


def rows() -> list[Row]:
    "Accuracy at 30 and at 100 labels against what was wanted, and labels to 97 %"
    measured, out = runs("fewest", "mnist")["fewest"], []
    at = {n: ends for n, *ends in zip(*(v.tolist() for v in band(measured)))}
    count = len(set(measured.cluster.values()))
    for n, goal in GOALS.items():
        mean, low, high = at[n]
        out.append(
            Row(
                f"mnist_at_{n}_labels",
                mean,
                "test accuracy",
                goal,
                "share",
                mean / goal,
                "ci95",
                low / goal,
                high / goal,
                len(measured),
                f"peer is what was wanted; interval over {count} encoders",
            )
        )
    return [*out, to_97()]


def to_97(target: float = 0.97) -> Row:
    "Labels to 97 %: the recipe against the plain network on random labels"
    both = runs("fewest", "mnist")
    r = ratio(both["fewest"], both["random"], target)
    a, b = (median_labels(reaches(both[m], target).values()) for m in ("fewest", "random"))
    note = f"medians {a} and {b}; {r}; peer: a small CNN from scratch on random labels"
    return Row(
        "labels_to_97_mnist",
        a.labels,
        "labels",
        b.labels,
        "speedup",
        r.ratio,
        n=r.n,
        note=note,
        **ends_of(r),
    )


def main(words: list[str]) -> None:
    "Runs, prints or ships the study"
    a = parsed(arguments(__doc__, list(SETS), 20, methods=["fewest"]), list(SETS), words)
    for name in a.parts * a.measure:
        for method in a.methods:
            run(name, method, range(a.first, a.seeds))
    if a.export:
        STUDY.ship(lists=True)
    if a.table:
        table()
