"""What all benches share: a `Row` with one meaning, folders, timing, and what studies with a ledger
need."""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from deffi_lab.core.ledger import Ledger
from deffi_lab.study.curves import from_ledger
from deffi_lab.study.statistics import Ratio, difference_at

BENCH = Path(__file__).resolve().parent
ROOT, CACHE, RESULTS = BENCH.parent, BENCH / "cache", BENCH / "results"
ASSETS = ROOT / "deffi_lab" / "assets"
EFFECTS = {  # what the value of a row is, and its value where nothing differs
    "speedup": (lambda ours, peer: peer / ours, 1.0),
    "share": (lambda ours, peer: ours / peer, 1.0),
    "difference": (lambda ours, peer: ours - peer, 0.0),
}
INTERVALS = ("p10-p90", "range", "ci95", "bound95")
NEAR = 0.25  # a median of ratios may lie so far from the ratio of the medians, as a share


@dataclass(frozen=True)
class Row:
    """One measurement: `ours` beside `peer`, and their `effect` under the key `ratio`.

    `effect`: 'speedup' is peer / ours, 'share' is ours / peer, 'difference' is ours - peer; None
    where there is no peer. `low`..`high` is the `interval` of the effect: 'p10-p90' of the runs,
    'range' (least and most), 'ci95' of the mean, or 'bound95', a one-sided bound of it with one of
    `low` and `high`. `version`: of deffi_lab when it was measured;
    `date`: of that day. ValueError where these do not fit together.
    """

    name: str
    ours: float
    unit: str
    peer: float | None = None
    effect: str | None = None
    ratio: float | None = None
    interval: str | None = None
    low: float | None = None
    high: float | None = None
    n: int = 1
    note: str = ""
    version: str = ""
    date: str = ""

    def __post_init__(self):
        if self.effect is not None and self.effect not in EFFECTS:
            raise self._wrong(f"effect={self.effect!r}: choose from {', '.join(EFFECTS)}")
        if self.interval is not None and self.interval not in INTERVALS:
            raise self._wrong(f"interval={self.interval!r}: choose from {', '.join(INTERVALS)}")
        if (self.peer is None) != (self.effect is None):
            raise self._wrong(f"peer={self.peer}, effect={self.effect!r}: give both or neither")
        ends = (self.low is not None) + (self.high is not None)
        if self.interval == "bound95" and ends != 1:
            raise self._wrong("bound95: give one of low and high, the other side is open")
        if self.interval != "bound95" and ends != 2 * (self.interval is not None):
            raise self._wrong("low, high and interval: give all three or none")
        if self.n < 1:
            raise self._wrong(f"n={self.n}: at least 1 run")
        if self.effect is None:
            return
        expected = EFFECTS[self.effect][0](self.ours, self.peer)
        if self.ratio is None:
            object.__setattr__(self, "ratio", expected)
        room = 1e-2 if self.effect != "difference" and self.n == 1 else NEAR
        room = 1e-6 if self.effect == "difference" else room * abs(expected)
        if abs(self.ratio - expected) > room:
            raise self._wrong(
                f"ratio={self.ratio:.4g}: a {self.effect} of {self.ours:.4g} and {self.peer:.4g} "
                f"is {expected:.4g}"
            )
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not low <= self.ratio <= high:
            raise self._wrong(
                f"ratio={self.ratio:.4g} lies outside {low:.4g}..{high:.4g}: low and "
                f"high are bounds of the effect, in its own unit"
            )

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"row {self.name!r}: {what}")

    def stamped(self) -> "Row":
        "The row with today's date and the version of deffi_lab that is installed"
        return Row(**asdict(self) | {"version": version("deffi_lab"), "date": str(date.today())})


def machine() -> dict:
    "What the figures were measured on"
    import torch

    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [ln for ln in info.read_text().splitlines() if ln.startswith("model name")]
        cpu = lines[0].split(":")[1].strip() if lines else cpu
    cuda = torch.cuda.is_available()
    return {
        "name": torch.cuda.get_device_name(0) if cuda else f"{os.cpu_count()}-core {cpu or 'cpu'}",
        "system": platform.system(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def timed(way: Callable[[], object]) -> float:
    "Seconds of one call"
    t = time.perf_counter()
    way()
    return time.perf_counter() - t


# ---- studies with a ledger ----
@dataclass(frozen=True)
class Study:
    "A study's name in its ledger, its settings, and the ledgers in work and as it ships"

    name: str
    settings: dict
    file: str = ""

    @property
    def work(self) -> Path:
        return CACHE / f"{self.file or self.name}.sqlite"

    @property
    def shipped(self) -> Path:
        return ASSETS / f"{self.file or self.name}.sqlite"

    def open(self) -> Ledger:
        "The ledger in work, made where there is none"
        CACHE.mkdir(exist_ok=True)
        return Ledger(self.work, self.name, self.settings)

    def columns(self) -> dict[str, np.ndarray]:
        "All that was measured, in work or, where nothing is, as it ships"
        path = self.work if self.work.exists() else self.shipped
        with Ledger(path, self.name, readonly=True) as ledger:
            return ledger.columns()

    def ship(self, metrics: tuple[str, ...] | None = None, lists: bool = False) -> Path:
        "Writes the copy that ships, whole or not at all"
        part = self.shipped.with_suffix(".new")
        part.unlink(missing_ok=True)
        with self.open() as ledger:
            ledger.export(part, metrics, lists)
        os.replace(part, self.shipped)
        return self.shipped


def difference(columns: dict, data: str, ours: str, peer: str, k: int, name: str, note: str) -> Row:
    "Of Dice at k labels, with Student's interval over the seeds that both have"
    runs = from_ledger(columns, data, 0)
    at = {
        m: {s: float(v[list(n).index(k)]) for s, (n, v) in runs[m].items() if k in n}
        for m in (ours, peer)
    }
    seeds = sorted(set(at[ours]) & set(at[peer]))
    mean = {m: math.fsum(at[m][s] for s in seeds) / len(seeds) for m in at}
    only = {m: {s: runs[m][s] for s in seeds} for m in at}
    d = difference_at(only[ours], only[peer], k)
    return Row(
        name,
        mean[ours],
        "Dice",
        mean[peer],
        "difference",
        d.mean,
        "ci95",
        d.low,
        d.high,
        d.n,
        note + "; paired over seeds",
    )


def ends_of(r: Ratio) -> dict:
    "How a row states a ratio's interval: both ends, one bound, or nothing where it is open"
    if not r.bound:
        return dict(interval="ci95", low=r.low, high=r.high)
    if r.limit is None:
        return {}
    return dict(interval="bound95", **{"low" if r.bound == "≥" else "high": r.limit})


def arguments(doc: str | None, parts: list[str], seeds: int, **defaults) -> argparse.ArgumentParser:
    """The one command line of all studies: which parts, how many seeds, what to run and to write.

    `defaults` of further options: `methods` (a list of all), `labels` (budgets).
    """
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("parts", nargs="*", help=f"what to run: {', '.join(parts)} (nothing: all)")
    p.add_argument("--seeds", type=int, default=seeds, help="seeds 0 to this, not included")
    p.add_argument("--first", type=int, default=0, help="the first of them")
    p.add_argument("--labels", type=int, nargs="*", default=defaults.get("labels"), help="budgets")
    p.add_argument("--methods", nargs="*", default=defaults.get("methods"), help="only these")
    p.add_argument("--workers", type=int, default=1, help="processes, where the study has several")
    p.add_argument("--until", type=float, default=math.inf, help="begin no run after so many s")
    p.add_argument("--quick", action="store_true", help="one seed, to see that it runs")
    p.add_argument("--export", action="store_true", help="write the ledger that ships, run nothing")
    p.add_argument("--table", action="store_true", help="print what was measured, run nothing")
    return p


def parsed(p: argparse.ArgumentParser, parts: list[str], words: list[str]) -> argparse.Namespace:
    "The arguments, checked: parts that exist, one seed where --quick is given"
    a = p.parse_args(words)
    if wrong := [x for x in a.parts if x not in parts]:
        p.error(f"no part {wrong[0]!r}: choose from {', '.join(parts)}")
    a.parts = a.parts or list(parts)
    if a.quick:
        a.seeds = a.first + 1
    a.measure = not (a.export or a.table)
    return a
