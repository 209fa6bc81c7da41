"What studies with a ledger share: a bench row of paired differences, and the small copy that ships"

import os
from pathlib import Path

import numpy as np
from scipy.stats import t

from deffi_lab.core.ledger import Ledger
from deffi_lab.study.curves import from_ledger


def ship(work: Path, shipped: Path, study: str, settings: dict) -> None:
    "Writes the copy of a ledger that ships, whole or not at all"
    part = shipped.with_suffix(".new")
    part.unlink(missing_ok=True)
    with Ledger(work, study, settings) as ledger:
        ledger.export(part)
    os.replace(part, shipped)


def difference(columns: dict, data: str, ours: str, peer: str, k: int, row: str, note: str) -> dict:
    "Of Dice at k labels, with Student's interval over the seeds that both have"
    runs = from_ledger(columns, data, 0)
    at = {
        m: {s: float(v[list(n).index(k)]) for s, (n, v) in runs[m].items() if k in n}
        for m in (ours, peer)
    }
    seeds = sorted(set(at[ours]) & set(at[peer]))
    d = np.array([at[ours][s] - at[peer][s] for s in seeds])
    half = d.std(ddof=1) / len(d) ** 0.5 * t.ppf(0.975, len(d) - 1) if len(d) > 1 else float("nan")
    return {
        "name": row,
        "ours": float(np.mean([at[ours][s] for s in seeds])),
        "peer": float(np.mean([at[peer][s] for s in seeds])),
        "unit": "Dice",
        "ratio": float(d.mean()),
        "low": float(d.mean() - half),
        "high": float(d.mean() + half),
        "n": len(d),
        "note": note
        + "; ratio, low and high are the paired DIFFERENCE of Dice, 95 % interval over seeds",
    }
