"""Two workers against one on independent runs, what an executor costs a round, and where 1,000
workers would wait.

The simulation is of one parent that writes the ledger and hands out rounds, as `Sweep` does; its
round times are the
ones just measured, its costs a round too.
"""

import heapq
import os
import statistics
import tempfile
import time
from collections import deque
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from common import CACHE

from deffi_lab.core.ledger import Ledger, Point
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.nets.classify import SmallCNN, accuracy, train_classifier
from deffi_lab.study.sweep import Sweep, Task, call, tasks

RUNS, ROUNDS, AHEAD = 12, 300, 4
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@cache
def digits() -> tuple[torch.Tensor, ...]:
    torch.set_num_threads(1)
    d = mnist()
    return d.x[:2000].clone(), d.y[:2000].clone(), d.x_test[:1000].clone(), d.y_test[:1000].clone()


def train(task: Task, last: list) -> list:
    "A small CNN a seed, on random labels, on one thread; tells the seconds of processor it took"
    x, y, xt, yt = digits()
    out = []
    for seed in task.seeds:
        began, cpu, g = time.perf_counter(), time.process_time(), make_generator(seed)
        order = torch.randperm(len(x), generator=g)[: task.budgets[0]]
        net = SmallCNN(generator=g)
        for _ in train_classifier(net, x[order], y[order], steps=150, generator=g):
            pass
        right = accuracy(net, xt, yt)
        out.append(
            Point(
                len(order),
                right,
                time.perf_counter() - began,
                order.numpy(),
                (),
                {"cpu": time.process_time() - cpu},
            )
        )
    return out


def nothing(task: Task, last: list) -> list:
    "A round that costs nothing and brings back what a real one does"
    return [
        Point(task.budgets[0], 0.5, 0.0, np.arange(1000), np.arange(100), {"kappa": 0.5})
        for _ in task.seeds
    ]


def pool(n: int) -> ProcessPoolExecutor:
    "A pool of `n` that has started and read its data"
    made = ProcessPoolExecutor(n, get_context("spawn"))
    list(made.map(warm, range(4 * n)))
    return made


def warm(_: int) -> None:
    digits()
    time.sleep(0.1)


def study(round, executor: Executor | None, runs: int) -> tuple[float, dict]:
    "Seconds of a sweep of one-budget runs into a new ledger, and the ledger's columns"
    CACHE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as folder,
        Ledger(Path(folder) / "l") as ledger,
    ):
        plan = tasks(["mnist"], ["random"], (500,), seeds=range(runs), group=1)
        report = Sweep(round, plan, ledger).run(executor, progress=False, ahead=AHEAD)
        assert (report.done, report.failed) == (runs, 0), ledger.failures()
        return report.seconds, ledger.columns()


def two_workers(n: int = 5) -> tuple[dict, np.ndarray]:
    "The row, and the seconds of every round that one worker ran"
    took, cpu, wall, values = {1: [], 2: []}, {1: [], 2: []}, {1: [], 2: []}, []
    with pool(1) as one, pool(2) as two:
        for i in range(n):
            for k, executor in ((1, one), (2, two)) if i % 2 == 0 else ((2, two), (1, one)):
                seconds, got = study(train, executor, RUNS)
                took[k].append(seconds)
                cpu[k] += got["cpu"].tolist()
                values.append(got["value"])
                wall[k] += got["seconds"].tolist()
    assert all((v == values[0]).all() for v in values), "two workers gave other numbers than one"
    ratios = sorted(a / b for a, b in zip(took[1], took[2]))
    mid = {k: statistics.median(v) for k, v in took.items()}
    busy = {k: sum(wall[k]) / (k * sum(took[k])) for k in took}
    core = {k: sum(cpu[k]) / sum(wall[k]) for k in took}
    note = (
        f"{RUNS} runs; one and two workers: {statistics.mean(wall[1]):.2f} and "
        f"{statistics.mean(wall[2]):.2f} s a run, "
        f"of the processor {statistics.mean(cpu[1]):.2f} and {statistics.mean(cpu[2]):.2f} s; at "
        f"work "
        f"{busy[1]:.0%} and {busy[2]:.0%} of the time; had {core[1]:.0%} and {core[2]:.0%} of a "
        f"core each (the rest: "
        f"other processes); load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; same "
        f"numbers"
    )
    return {
        "name": "two_workers",
        "ours": mid[2],
        "peer": mid[1],
        "unit": "s",
        "ratio": statistics.median(ratios),
        "effect": "speedup",
        "interval": "range",
        "low": ratios[0],
        "high": ratios[-1],
        "n": n,
        "note": note,
    }, np.array(wall[1])


def bare(executor: Executor) -> float:
    "Seconds a round to hand out rounds that do nothing, two workers, no sweep and no ledger"
    task, t = tasks(["mnist"], ["random"], (500,), seeds=[0])[0], time.perf_counter()
    flying = deque()
    for _ in range(ROUNDS):
        flying.append(executor.submit(call, nothing, task, [None]))
        if len(flying) >= 2 * AHEAD:
            flying.popleft().result()
    while flying:
        flying.popleft().result()
    return (time.perf_counter() - t) / ROUNDS


def cost(name: str, executor: Executor, n: int = 5) -> dict:
    "What a sweep costs a round, ledger and all, against the bare executor"
    got = [(study(nothing, executor, ROUNDS)[0] / ROUNDS, bare(executor)) for _ in range(n + 1)][1:]
    ratios = sorted(b / a for a, b in got)
    ours, peer = (1e3 * statistics.median(v) for v in zip(*got))
    here_ms = 1e3 * study(nothing, None, ROUNDS)[0] / ROUNDS
    return {
        "name": f"round_cost_{name}",
        "ours": ours,
        "peer": peer,
        "unit": "ms",
        "ratio": statistics.median(ratios),
        "effect": "speedup",
        "interval": "range",
        "low": ratios[0],
        "high": ratios[-1],
        "n": n,
        "note": f"{ROUNDS} rounds that do nothing on two workers; ours: sweep with a durable "
        f"commit a round "
        f"({here_ms:.2f} ms without any executor); peer: the bare executor, which keeps nothing; ",
    }


def simulate(
    workers: int, seconds: np.ndarray, parent: float, per_worker: int = 20, seed: int = 0
) -> float:
    """Busy share of `workers` fed by one parent that needs `parent` seconds a round to write and
    hand out.

    Event by event: a worker that ends starts what waits for it, and its result queues at the
    parent, which answers
    each with one more round for that worker. At most `AHEAD` rounds are out for a worker, as in
    `Sweep`.
    """
    g, free = np.random.default_rng(seed), 0.0
    left, done, total, work, end = workers * per_worker, 0, workers * per_worker, 0.0, 0.0
    waiting, busy, events, number = [0] * workers, [False] * workers, [], 0

    def hand(w: int, now: float) -> None:
        nonlocal free, left, number
        free, left, number = max(free, now) + parent, left - 1, number + 1
        heapq.heappush(events, (free, number, "came", w))

    def start(w: int, now: float) -> None:
        nonlocal number, work
        length = float(g.choice(seconds))
        busy[w], work, number = True, work + length, number + 1
        heapq.heappush(events, (now + length, number, "ended", w))

    for _ in range(AHEAD):
        for w in range(workers):
            hand(w, 0.0)
    while done < total:
        end, _, kind, w = heapq.heappop(events)
        if kind == "ended":
            done, busy[w] = done + 1, False
            if left:
                hand(w, end)
        else:
            waiting[w] += 1
        if waiting[w] and not busy[w]:
            waiting[w] -= 1
            start(w, end)
    return work / (workers * end)


def limit(name: str, seconds: np.ndarray, parent: float) -> dict:
    """The row of the most workers that are kept busy for
    90 % of the time that an ideal parent would keep them"""
    share = {w: simulate(w, seconds, parent) / simulate(w, seconds, 0.0) for w in SIZES}
    good = max((w for w in SIZES if share[w] >= 0.9), default=0)
    note = (
        f"simulated: rounds of {seconds.mean():.2f} s (measured, {len(seconds)} of them), "
        f"{1e3 * parent:.2f} ms of "
        f"the parent each: it saturates at {seconds.mean() / parent:.0f} workers; of 20 rounds a "
        f"worker, first "
        f"and last included, {share[good]:.0%} of the ideal at {good}, {share[1000]:.0%} at "
        f"1,000; 1,000 "
        f"workers are fed from rounds of {1000 * parent:.1f} s up"
    )
    return {
        "name": f"workers_fed_{name}",
        "ours": float(good),
        "peer": None,
        "unit": "workers",
        "n": len(SIZES),
        "note": note,
    }


def rows(n: int = 5) -> list[dict]:
    """Two workers, the cost of a round by a process pool
    and by Dask, and how many workers each would feed"""
    first, seconds = two_workers(n)
    with pool(2) as executor:
        costs = {"pool": cost("pool", executor, n)}
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        pass  # without the extra [dask]
    else:
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
            ) as cluster,
            Client(cluster) as client,
        ):
            costs["dask"] = cost("dask", client.get_executor(), n)
    return [first, *costs.values(), *(limit(k, seconds, c["ours"] / 1e3) for k, c in costs.items())]


if __name__ == "__main__":
    import workers  # so that other processes find its functions by name

    for r in workers.rows():
        print(r)
