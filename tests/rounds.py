"Small real rounds that tests hand to a sweep, in this process and in others"

import os
import signal
import time
from functools import cache
from pathlib import Path

import numpy as np

from deffi_lab.core.ledger import Ledger, Point
from deffi_lab.data.images import mnist
from deffi_lab.study.sweep import Sweep, Task, tasks

BUDGETS = (10, 20, 40, 80, 160)


@cache
def digits() -> tuple[np.ndarray, ...]:
    d = mnist()
    x, t = (a.flatten(1).numpy().astype(np.float32) / 255 for a in (d.x[:2000], d.x_test[:500]))
    return x, d.y[:2000].numpy(), t, d.y_test[:500].numpy()


def nearest_mean(task: Task, last: list) -> list:
    """Class means of the labelled digits classify; 'far' asks
    for what lies furthest from its mean, others at random"""
    x, y, t, ty = digits()
    out = []
    for seed, p in zip(task.seeds, last):
        start = np.random.default_rng(seed).permutation(len(x))[: task.budgets[0]]
        order = start if p is None else np.concatenate([p.order, p.next])
        means = np.stack(
            [
                x[order][y[order] == c].mean(0) if (y[order] == c).any() else np.full(784, 9.0)
                for c in range(10)
            ]
        )
        size = (means**2).sum(1)
        away = (
            ((x**2).sum(1)[:, None] + size - 2 * x @ means.T).min(1)
            if task.method == "far"
            else np.random.default_rng([seed, len(order)]).random(len(x))
        )
        away[order] = -1
        goal = next((b for b in task.budgets if b > len(order)), len(order))
        right = ((size - 2 * t @ means.T).argmin(1) == ty).mean()
        out.append(
            Point(len(order), float(right), 0.01, order, np.argsort(-away)[: goal - len(order)])
        )
    return out


def breaking(task: Task, last: list) -> list:
    "Raises for one seed of 'far' after its second point"
    out = nearest_mean(task, last)
    return [
        RuntimeError("a bug in the method")
        if task.method == "far" and s == 1 and p.labels > 20
        else p
        for s, p in zip(task.seeds, out)
    ]


def breaking_whole(task: Task, last: list) -> list:
    "The same, but takes its whole group with it"
    for p in breaking(task, last):
        if isinstance(p, Exception):
            raise p
    return nearest_mean(task, last)


def deadly(task: Task, last: list) -> list:
    "Kills its worker once"
    mark = Path(os.environ["DEADLY_MARK"])
    if task.method == "far" and last[0] is not None and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return nearest_mean(task, last)


def slow(task: Task, last: list) -> list:
    time.sleep(0.02)
    return nearest_mean(task, last)


def plan(seeds: int = 4, group: int = 2) -> list[Task]:
    return tasks(["digits"], ["random", "far"], BUDGETS, seeds=range(seeds), group=group)


def content(path: Path) -> list:
    "What a ledger holds, times left out"
    with Ledger(path, "test", readonly=True) as ledger:
        return [
            (k, p.labels, p.value, p.order.tolist(), p.next.tolist())
            for k in ledger.keys()
            for p in ledger.points(k)
        ]


def go(path: Path, round=nearest_mean, executor=None) -> None:
    with Ledger(path, "test", {"v": 1}) as ledger:
        Sweep(round, plan(), ledger).run(executor, progress=False)


if __name__ == "__main__":  # for Ctrl-C: python rounds.py LEDGER WORKERS
    import sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import rounds

    n = int(sys.argv[2])
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job begins without it
    print("ready", flush=True)
    with Ledger(sys.argv[1], "test", {"v": 1}) as ledger:
        ex = (lambda: ProcessPoolExecutor(n, get_context("spawn"))) if n else None
        Sweep(rounds.slow, plan(40, 2), ledger).run(
            ex, progress=lambda done, total, left: print(done, flush=True)
        )
