"""Makes the pictures in docs/: each lab at the end of a run, and the studies' curves from the
ledgers; seeded.

python tools/picture.py              # all
python tools/picture.py study        # fewest_labels.png, deep_labelling.png, block_by_block.png
python tools/picture.py contours     # one lab, as lab_contours.png
"""

import sys

import torch
from film import DOCS, SHOTS
from matplotlib.figure import Figure

from deffi_lab.study.curves import band
from deffi_lab.study.shipped import columns, runs

LOOK = {
    "fewest": ("#EE7733", "the recipe: embedding, graph, few questions"),
    "boost": ("#332288", "doubt shared out by coverage"),
    "margin": ("#117733", "doubt (margin)"),
    "random": ("#777777", "labels at random"),
}


def study() -> Figure:
    "MNIST: accuracy against labels, means of 20 seeds, 95 % intervals (the recipe's: encoders)"
    measured = runs("fewest", "mnist")
    fig = Figure(figsize=(8, 4), dpi=90, layout="constrained")
    ax = fig.subplots()
    for name, (color, words) in LOOK.items():
        x, mean, low, high = band(measured[name])
        ax.plot(x, 100 * mean, "-o", color=color, ms=4, label=words)
        ax.fill_between(x, 100 * low, 100 * high, color=color, alpha=0.2, lw=0)
    ticks = (20, 50, 100, 200, 500, 1000, 2000)
    ax.axhline(97, color="#555", lw=0.8, ls="--")
    ax.text(2000, 96.8, "97 %", color="#555", ha="right", va="top")
    ax.set(
        xscale="log",
        ylim=(50, 100),
        xlabel="labels asked for, all counted",
        ylabel="test accuracy, %",
        title="MNIST: who needs fewer labels? (20 seeds, 95 % intervals; recipe: over 2 encoders)",
    )
    ax.set_xticks(ticks, labels=map(str, ticks))
    ax.minorticks_off()
    ax.legend(loc="lower right")
    return fig


def labelling() -> Figure:
    """A slice with its outline, the field and agents; Dice
    against clicks on phantoms and on hearts, from the ledger"""
    import numpy as np

    from deffi_lab.core.step import make_generator
    from deffi_lab.data.heart.phantom import phantom
    from deffi_lab.methods.contours.field import make_field, march
    from deffi_lab.numeric.distance import signed_distance

    heart = phantom(24, seed=4).take([23])
    phi = signed_distance(heart.mask, smooth=1.0)
    f = make_field(phi, k=0.05).f
    _, path = march(f, torch.rand(1, 60, 2, generator=make_generator(0)) * 95, 240, 0.5, every=2)
    fig = Figure(figsize=(11, 3.4), dpi=80, layout="constrained")
    a, b, *axes = fig.subplots(1, 4, width_ratios=(1, 1, 1.15, 1.15))
    a.imshow(heart.image[0, 0], cmap="gray", vmin=0, vmax=1)
    a.contour(heart.mask[0], [0.5], colors="#DDCC77")
    b.imshow(phi[0], cmap="PuOr_r", vmin=-60, vmax=60)
    b.contour(phi[0], [0], colors="k", linewidths=1.5)
    for k in range(60):
        b.plot(*path[:, 0, k].T, lw=0.7, color="#882255")
    a.set_title("one outline (phantom)")
    b.set_title("agents spiral onto it")
    for ax in (a, b):
        ax.set(xlim=(0, 95), ylim=(95, 0))
        ax.axis("off")
    c = columns("labelling")
    for ax, data, words in zip(
        axes, ("phantom", "heart"), ("phantoms", "real hearts, patient left out")
    ):
        for m, color, label in (
            ("clicks, field", "#4477DD", "network on the field"),
            ("clicks, mask", "#000000", "network on masks"),
        ):
            rows = (c["data"] == data) & (c["method"] == m) & (c["labels"] == 5)
            mean = [np.mean(c[f"c{j}"][rows]) for j in range(5)]
            ax.plot(range(5), mean, "o-", color=color, label=f"{label}, 5 labels")
        rows = (c["data"] == data) & (c["method"] == "by hand")
        ax.plot(
            (3, 4),
            [np.mean(c[f"c{j}"][rows]) for j in (3, 4)],
            "^:",
            color="#999933",
            label="by hand, no network",
        )
        ax.set(xlabel="clicks a contour", ylabel="Dice", title=words, ylim=(0.7, 1))
        ax.legend(fontsize=8, loc="lower right")
        ax.grid(alpha=0.3)
    return fig


WAYS = {
    "greedy, then polished": ("#D1006C", "s-", ("greedy early", "greedy", "greedy, polished")),
    "the same blocks end to end": (
        "#0072B2",
        "D--",
        ("end to end early", "end to end", "end to end long"),
    ),
    "MONAI's U-Net": ("#000000", "o-", ("U-Net early", "U-Net", "U-Net 2x")),
}


def blocks() -> Figure:
    """A grown tumour and its label at each block's resolution;
    Dice against work with 20 labels; Dice against labels"""
    import numpy as np

    from deffi_lab.data.brain.tumour import tumours
    from deffi_lab.nets.blocks import onehot
    from deffi_lab.numeric.regrid import pooled
    from deffi_lab.show.parts.strip import tinted

    scans = tumours(12, modalities=("T1c", "FLAIR"), seed=4)
    i = int((scans.label == 3).flatten(1).sum(1).argmax())
    fig = Figure(figsize=(11, 3.6), dpi=80, layout="constrained")
    left, a, b = fig.subfigures(1, 3, width_ratios=(1.1, 1, 1))
    tiles = left.subplots(2, 3).flat
    for ax, image, name in zip(tiles, scans.image[i], scans.modalities):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1.2)
        ax.set_title(name)
    for ax, k in zip(list(left.axes)[2:], (8, 4, 2, 1)):
        ax.imshow(
            tinted(
                pooled(onehot(scans.label[i : i + 1]), k)[0],
                pooled(scans.image[i : i + 1, 1:], k)[0, 0],
            )
        )
        ax.set_title(f"label at 1/{k}" if k > 1 else "label")
    for ax in left.axes:
        ax.axis("off")
    c, ax = columns("blockwise"), a.subplots()
    pick = lambda m, k: (c["data"] == "phantom") & (c["method"] == m) & (c["labels"] == k)
    for words, (color, style, names) in WAYS.items():
        rows = [pick(m, 20) for m in names if pick(m, 20).any()]
        ax.plot(
            [c["gflops"][r].mean() / 1e3 for r in rows],
            [c["value"][r].mean() for r in rows],
            style,
            color=color,
            label=words,
        )
    ax.set(
        xlabel="work of training, 10¹² operations",
        ylabel="Dice, whole tumour",
        title="20 labelled slices",
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    ax = b.subplots()
    for m, (color, style) in {
        "greedy, polished": ("#D1006C", "s-"),
        "end to end": ("#0072B2", "D--"),
        "U-Net": ("#000000", "o-"),
    }.items():
        budgets = [k for k in (1, 2, 5, 10, 20, 50, 100) if pick(m, k).any()]
        ax.plot(
            budgets, [np.mean(c["value"][pick(m, k)]) for k in budgets], style, color=color, label=m
        )
    ax.set(
        xscale="log",
        xlabel="labelled slices",
        ylabel="Dice, whole tumour",
        title="unseen grown tumours",
    )
    ax.grid(alpha=0.3)
    ax.set_xticks(budgets, labels=map(str, budgets))
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="lower right")
    return fig


def studies() -> None:
    "The curves of the studies"
    study().savefig(DOCS / "fewest_labels.png")
    labelling().savefig(DOCS / "deep_labelling.png")
    blocks().savefig(DOCS / "block_by_block.png")


def photograph(name: str) -> None:
    "A lab at the end of its shot"
    shot = SHOTS[name]
    lab = shot.open()
    lab.run.run(shot.steps)
    path = DOCS / f"lab_{name}.png"
    path.write_bytes(shot.figure(lab)._repr_png_())
    print(f"{path.name}: {path.stat().st_size:,} bytes after {lab.run.last.index:,} steps")


if __name__ == "__main__":
    torch.set_num_threads(1)
    DOCS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ("study", *SHOTS):
        studies() if name == "study" else photograph(name)
