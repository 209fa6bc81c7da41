"""Makes the pictures of README: the boosting lab after five rounds, and the study's curves from the ledger; seeded.

    python tools/picture.py          # writes docs/first_light.png and docs/fewest_labels.png
    python tools/picture.py study    # the second only
"""
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from deffi_lab.labs.boosting import boosting_lab
from deffi_lab.study.efficiency import band, from_ledger
from deffi_lab.study.protocol import shipped

LOOK = {"fewest": ("#EE7733", "the recipe: embedding, graph, few questions"),
        "boost": ("#332288", "doubt shared out by coverage"), "margin": ("#117733", "doubt (margin)"), "random": ("#777777", "labels at random")}


def study() -> Figure:
    "MNIST: accuracy against labels, means of 20 seeds with 95 % intervals"
    runs = from_ledger(shipped(), "mnist", 0) | from_ledger(shipped("fewest"), "mnist", 0)
    fig = Figure(figsize=(8, 4), dpi=90, layout="constrained")
    ax = fig.subplots()
    for name, (color, words) in LOOK.items():
        x, mean, low, high = band(runs[name])
        ax.plot(x, 100 * mean, "-o", color=color, ms=4, label=words)
        ax.fill_between(x, 100 * low, 100 * high, color=color, alpha=.2, lw=0)
    ticks = (20, 50, 100, 200, 500, 1000, 2000)
    ax.axhline(97, color="#555", lw=.8, ls="--")
    ax.text(2000, 96.8, "97 %", color="#555", ha="right", va="top")
    ax.set(xscale="log", ylim=(50, 100), xlabel="labels asked for, all counted", ylabel="test accuracy, %",
           title="MNIST: who needs fewer labels? (20 seeds, 95 % intervals)")
    ax.set_xticks(ticks, labels=map(str, ticks)); ax.minorticks_off(); ax.legend(loc="lower right")
    return fig

if __name__ == "__main__":
    torch.set_num_threads(1)
    docs = Path(__file__).resolve().parents[1] / "docs"
    docs.mkdir(exist_ok=True)
    study().savefig(docs / "fewest_labels.png")
    if sys.argv[1:] == ["study"]: sys.exit()
    lab = boosting_lab(name="picture")
    race = lab.run.method
    while min(m.round for m in race.lanes.values()) < 5: lab.run.run(1)
    out = docs / "first_light.png"
    out.write_bytes(lab.figure(dpi=90)._repr_png_())
    print(out.name, out.stat().st_size, "bytes;", {n: m.curve[-1] for n, m in race.lanes.items()})
