"""The study: ways of choosing labels on MNIST, Fashion-MNIST and CIFAR-10, under one protocol.

    python bench/study.py selection                    # runs what is missing (hours; resumable)
    python bench/study.py selection mnist --workers 2  # one part, on two processes
    python bench/study.py selection --table            # labels to the target and ratios

The recipe (300 minibatches of 64, shift augmentation) was fixed before any test image was looked at
by these runs.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context

import torch
from common import Study, arguments, parsed

from deffi_lab.study.curves import from_ledger
from deffi_lab.study.protocol import FairRound, Recipe
from deffi_lab.study.statistics import report
from deffi_lab.study.sweep import Sweep, tasks

RECIPE = Recipe(pool=20_000, steps=300)
STUDY = Study("study", asdict(RECIPE))
CORE = ["random", "margin", "badge", "typiclust", "maxherding", "boost", "poisson"]
PARTS = {  # name: the arguments of `tasks`
    "mnist": dict(
        data=["mnist"],
        methods=CORE,
        budgets=(20, 40, 70, 100, 150, 200, 300, 500, 1000, 2000),
        seeds=range(20),
        group=10,
    ),
    "fashion": dict(
        data=["fashion"],
        methods=["random", "margin", "badge", "boost"],
        budgets=(20, 50, 100, 200, 500, 1000, 2000),
        seeds=range(10),
        group=10,
    ),
    "cifar": dict(
        data=["cifar"],
        methods=["random", "margin", "badge", "boost"],
        budgets=(50, 100, 200, 500, 1000, 2000, 4000),
        seeds=range(10),
        group=10,
    ),
    "query": dict(
        data=["mnist"],
        methods=["random", "margin", "badge"],
        budgets=(20, 40, 70, 100, 150, 200),
        queries=(10, 30),
        seeds=range(6),
        group=6,
    ),
    "more": dict(
        data=["mnist"],
        methods=["stratified", "entropy", "margin-diverse", "bald", "coreset", "probcover"],
        budgets=(20, 40, 70, 100, 150, 200, 300, 500, 1000),
        seeds=range(10),
        group=10,
    ),
}
POOLS = {"mnist": 20_000, "fashion": 20_000, "cifar": 15_000}
TARGETS = {"mnist": 0.95, "fashion": 0.80, "cifar": 0.40}


def alone() -> None:
    "A worker keeps to one thread"
    torch.set_num_threads(1)


def run(parts: list[str], workers: int, seeds: range) -> None:
    "Runs what is missing of the parts, one after the other"
    with STUDY.open() as ledger:
        for name in parts:
            todo = tasks(**PARTS[name] | {"seeds": [s for s in PARTS[name]["seeds"] if s in seeds]})
            pool = (
                (lambda: ProcessPoolExecutor(workers, get_context("spawn"), alone))
                if workers > 1
                else None
            )
            tell = lambda done, total, left, name=name: print(
                f"{name}: {done}/{total}, {left / 60:.0f} min left", flush=True
            )
            print(
                name,
                Sweep(FairRound(RECIPE), todo, ledger, POOLS).run(pool, tell),
                flush=True,
            )
        for key, labels, text in ledger.failures():
            print("failed:", key, labels, text.strip().splitlines()[-1])


def table() -> None:
    "Labels to the target of each data set"
    columns = STUDY.columns()
    for name, target in TARGETS.items():
        if name not in columns["data"]:
            continue
        print(f"\n{name}, {target:.0%} test accuracy")
        for r in sorted(
            report(from_ledger(columns, name, 0), target, "random"), key=lambda r: r.median.labels
        ):
            more = f"{r.ratio}, Holm p {r.p:.1g}" if r.ratio is not None else ""
            print(f"{r.method:15}{str(r.median):>9}   {r.arrived}/{r.seeds} arrived   {more}")


def main(words: list[str]) -> None:
    "Runs, prints or ships the study"
    a = parsed(arguments(__doc__, list(PARTS), 20), list(PARTS), words)
    if a.measure:
        run(a.parts, a.workers, range(a.first, a.seeds))
    if a.export:
        STUDY.ship(metrics=("kappa", "doubt"))
    if a.table or a.export:
        table()
