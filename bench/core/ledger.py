"""Durable points a second into the ledger, a hundred at
a time and one at a time, against a CSV file and JSON."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import CACHE

from deffi_lab.core.ledger import Key, Ledger, Point

ORDER = 1000  # labels listed with a point


def points(n: int, seed: int) -> list[tuple[Key, Point]]:
    """Points as a study makes them: a thousand indices
    asked so far, a hundred to ask next, two metrics"""
    g = np.random.default_rng(seed)
    return [
        (
            Key("mnist", "margin", 0, seed * n + i),
            Point(
                ORDER,
                float(g.random()),
                1.5,
                *np.split(g.permutation(60000)[: ORDER + 100].astype(np.int32), [ORDER]),
                {"kappa": 0.5, "doubt": 0.1},
            ),
        )
        for i in range(n)
    ]


def flush(f) -> None:
    f.flush()
    os.fsync(f.fileno())


def line(key: Key, p: Point) -> str:
    "A point as a row of CSV, all of it, so that a run could go on from there"
    lists = (" ".join(map(str, v.tolist())) for v in (p.order, p.next))
    return (
        ",".join(
            map(
                str,
                (
                    key.data,
                    key.method,
                    key.query,
                    key.seed,
                    p.labels,
                    p.value,
                    p.seconds,
                    *lists,
                    *p.metrics.values(),
                ),
            )
        )
        + "\n"
    )


def whole_json(path: Path, rows: list[tuple[Key, Point]]) -> float:
    "Seconds to write all points anew into one JSON file, moved into place"
    t = time.perf_counter()
    with open(path, "w") as f:
        json.dump(
            [
                (vars(k), {**vars(p), "order": p.order.tolist(), "next": p.next.tolist()})
                for k, p in rows
            ],
            f,
        )
        flush(f)
    os.replace(path, path.with_suffix(".json"))
    return time.perf_counter() - t


def rates(ways: dict[str, Callable], size: int, n: int) -> dict[str, list[float]]:
    "Points a second of each way in each of `n` interleaved rounds of `size` points a commit"
    out, commits = {k: [] for k in ways}, max(5, 50 // size)
    for r in range(n):
        rows = points(size * commits, r)
        for k, way in ways.items():
            t = time.perf_counter()
            for i in range(0, len(rows), size):
                way(rows[i : i + size])
            out[k].append(len(rows) / (time.perf_counter() - t))
    return out


def row(name: str, size: int, n: int) -> dict:
    CACHE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as folder,
        Ledger(Path(folder) / "l") as ledger,
        open(Path(folder) / "csv", "a") as csv,
    ):

        def append(rows):
            csv.writelines(line(*r) for r in rows)
            flush(csv)

        got = rates({"ours": ledger.add_many, "peer": append}, size, n)
        held = len(ledger)
        anew = whole_json(Path(folder) / "part", points(1000, 0))
    assert held == n * size * max(5, 50 // size), "points were lost"
    ratios = sorted(a / b for a, b in zip(got["ours"], got["peer"]))
    mid = {k: statistics.median(v) for k, v in got.items()}
    note = (
        f"{size} a commit, each with {ORDER} indices, fsync at each commit; slowest round "
        f"{min(got['ours']):.0f}/s; "
        f"peer: a CSV file with fsync; JSON written anew with 1,000 points: "
        f"{1e3 * anew:.0f} ms a commit"
    )
    return {
        "name": name,
        "ours": mid["ours"],
        "peer": mid["peer"],
        "unit": "points/s",
        "ratio": statistics.median(ratios),
        "effect": "share",
        "interval": "p10-p90",
        "low": ratios[n // 10],
        "high": ratios[-1 - n // 10],
        "n": n,
        "note": note,
    }


def rows(n: int = 20) -> list[dict]:
    "Both ways of writing, in a folder beside this file (not in memory)"
    return [row("ledger_batch_per_s", 100, n), row("ledger_single_per_s", 1, n)]


if __name__ == "__main__":
    for r in rows():
        print(r)
