"""The study: ways of choosing labels on MNIST, Fashion-MNIST and CIFAR-10, under one protocol, into
one ledger.

    python bench/study.py                    # runs what is missing into bench/cache/study.sqlite
    (hours; resumable)
    python bench/study.py mnist --workers 2  # one part, on two processes
    python bench/study.py --export           # writes the small copy that ships:
    deffi_lab/assets/study.sqlite
    python bench/study.py --table            # prints labels to the target and ratios

The recipe (300 minibatches of 64, shift augmentation) was fixed before any test image was looked at
by these runs.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from deffi_lab.core.ledger import Key, Ledger, Point
from deffi_lab.methods.selection.fewest import FewestKnobs
from deffi_lab.study.curves import from_ledger
from deffi_lab.study.protocol import FairRound, Recipe
from deffi_lab.study.statistics import report
from deffi_lab.study.sweep import Sweep, tasks

here = Path(__file__).resolve().parent
WORK, SHIPPED = (
    here / "cache" / "study.sqlite",
    here.parent / "deffi_lab" / "assets" / "study.sqlite",
)
RECIPE = Recipe(pool=20_000, steps=300)
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


def run(parts: list[str], workers: int) -> None:
    "Runs what is missing of the parts, one after the other"
    WORK.parent.mkdir(exist_ok=True)
    with Ledger(WORK, "study", asdict(RECIPE)) as ledger:
        for name in parts:
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
                Sweep(FairRound(RECIPE), tasks(**PARTS[name]), ledger, POOLS).run(pool, tell),
                flush=True,
            )
        for key, labels, text in ledger.failures():
            print("failed:", key, labels, text.strip().splitlines()[-1])


def take_up_fewest() -> None:
    "The runs of bench/labels.py, as study 'fewest' of the same file"
    with Ledger(WORK, "fewest", {"recipe": asdict(FewestKnobs())}) as ledger:
        for path in sorted((here / "results").glob("labels_*.json")):
            name = path.stem.removeprefix("labels_")
            for seed, r in json.loads(path.read_text())["runs"].items():
                ledger.add_many(
                    [
                        (Key(name, "fewest", 0, int(seed)), Point(n, v, 0.0, r["order"][:n]))
                        for n, v in r["curve"]
                    ]
                )


def table(path: Path = SHIPPED) -> None:
    "Labels to the target of each data set"
    with Ledger(path, "study", readonly=True) as ledger:
        columns = ledger.columns()
    for name, target in TARGETS.items():
        if name not in columns["data"]:
            continue
        print(f"\n{name}, {target:.0%} test accuracy")
        for r in sorted(
            report(from_ledger(columns, name, 0), target, "random"), key=lambda r: r.median.labels
        ):
            more = f"{r.ratio}, Holm p {r.p:.1g}" if r.ratio is not None else ""
            print(f"{r.method:15}{str(r.median):>9}   {r.arrived}/{r.seeds} arrived   {more}")


if __name__ == "__main__":
    alone()
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("parts", nargs="*", choices=[[], *PARTS])
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--export", action="store_true")
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    if a.export:
        SHIPPED.unlink(missing_ok=True)
        take_up_fewest()
        with Ledger(WORK, "study") as ledger:
            ledger.export(SHIPPED, metrics=("kappa", "doubt"))
    elif not a.table:
        run(a.parts or list(PARTS), a.workers)
    if a.table or a.export:
        table()
    sys.exit(0)
