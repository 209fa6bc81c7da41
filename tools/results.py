"""Writes docs/RESULTS.md from the ledgers that ship and the rows of the benches: `make results`.

Every number of that page is computed here; only the sentences around them are written by hand. A
gain stands beside its baseline and its control. The same ledgers give the same file.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from deffi_lab.core.machine import in_words
from deffi_lab.study import shipped
from deffi_lab.study.curves import Runs, by_budget, median_labels, reaches
from deffi_lab.study.evidence import Gain, describe, ratio_cell, table
from deffi_lab.study.shipped import gains, metric, runs
from deffi_lab.study.statistics import Ratio

root = Path(__file__).resolve().parents[1]
PAGE = root / "docs" / "RESULTS.md"
HEAD = """# What was measured

This page is made by `make results` from the ledgers that ship (`deffi_lab/assets/*.sqlite`) and
from the rows of the benches (`bench/results/`); a test holds it to them. ± is half of Student's
95 % interval of the mean over seeds; (lowest–highest, seeds) stands where there are few. Where
seeds share an encoder, ± and all intervals are over encoders (Student's t over the encoders'
means), and both counts are given; with two encoders such an interval is very wide. Intervals of
differences and of ratios (on the log scale) are Student's up to 20 pairs, and the bootstrap's (BCa)
above, where it is said. Every label that was asked for is counted. **A gain stands beside its
control**: the same method without what is said to help. Where ours is not ahead of the control, the
gain over the baseline is not due to that part. "At least" and "at most" are one-sided 95 % bounds:
they stand where some runs never arrive or are there at their first budget, so that a ratio is known
from one side only; "open" are ratios with pairs bounded from either side."""


# ---- small parts ----
def markdown(header: list[str], rows: list[list[str]]) -> str:
    "A table of Markdown"
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def effect(e) -> str:
    "A ratio of labels or a difference, with its interval and pairs"
    if isinstance(e, Ratio):
        return ratio_cell(e, pairs=True)
    return describe(e)


def gain_table(rows: list[Gain], names: dict[str, str] | None = None) -> str:
    "Gains with baseline and control"
    called = lambda m: (names or {}).get(m, m)
    header = ["", "baseline", "against it", "control", "against the control", "control / baseline"]
    lines = [
        [
            f"{called(g.claim.ours)}, {g.what}",
            called(g.claim.baseline),
            effect(g.over_baseline),
            called(g.claim.control),
            effect(g.over_control),
            effect(g.control_over_baseline),
        ]
        for g in rows
    ]
    verdicts = dict.fromkeys(f"* {g.what}: {g.verdict}." for g in rows)
    return markdown(header, lines) + "\n\n" + "\n".join(verdicts)


def tests_of(values: Runs, methods: dict[str, str], budgets: list[int], target: float) -> str:
    "Accuracies in % by budget, and labels to a target, for the methods by name"
    here = {m: word for m, word in methods.items() if m in values}
    made = table(values, budgets, names=here, target=target)
    return made.markdown() + (f"\n\nSeeds that share an encoder: {made.note}." if made.note else "")


# ---- the chapters ----
MNIST = {
    "fewest": "**fewest**",
    "random questions": "fewest, random questions (control)",
    "boost": "boost",
    "badge": "badge",
    "margin": "margin (control of boost)",
    "maxherding": "maxherding",
    "random": "random",
    "typiclust": "typiclust",
    "poisson": "Poisson learning, VAE latent",
}


def selection() -> list[str]:
    "Who needs fewer labels, on three data sets"
    mnist = runs("fewest", "mnist")
    n = {m: len(r) for m, r in mnist.items()}
    control = f" ({n['random questions']} of its control)" if "random questions" in n else ""
    budgets = [20, 30, 50, 70, 75, 100, 300, 1000]
    out = [
        "## Who needs fewer labels?",
        f"MNIST, {n['random']} seeds{control}, test accuracy in % of a network that labels new "
        f"images, and labels to 97 % (median). The usual ways train one small CNN from scratch "
        f"at each budget on a pool of 20,000 (same start, same recipe); `fewest` learns an "
        f"embedding of the 60,000 images without a label, spreads a few labels over a graph, "
        f"asks where the graph is torn, and lets a network take over.",
        tests_of(mnist, MNIST, budgets, 0.97),
        gain_table(gains("fewest", "mnist", target=0.97) + gains("study", "mnist", target=0.97)),
        "![Accuracy on unseen digits against labels asked for](fewest_labels.png)",
        _bounds(mnist),
        "A run sees no label but those it asks for, but the recipe's constants (warps, width and "
        "power of the "
        "query, when the network takes over) were chosen among about a dozen variants by the "
        "true labels of the "
        "60,000 training digits, with other encoders; test images were not looked at. The 20 "
        "seeds share two encoders, over which their intervals are taken.",
    ]
    if control:
        out.append(
            "The control asks random questions; encoder, graph and network are the recipe's. It "
            "was "
            "run on seeds of the shipped encoder only, on another processor than the recipe. Most "
            "of the gain over random labels is the encoder and the graph; the questions add the "
            "rest."
        )
    for data, title, target in (
        ("fashion", "Fashion-MNIST", 0.80),
        ("cifar", "CIFAR-10 (re-encoded as JPEG)", 0.40),
    ):
        here = runs("fewest", data)
        seeds = ", ".join(f"{m} {len(here[m])}" for m in ("fewest", "random"))
        out += [
            f"### {title}",
            f"Untuned; seeds: {seeds}. Test accuracy in %, and labels to {target:.0%}.",
            tests_of(here, MNIST, [20, 30, 50, 75, 100, 200, 500, 1000, 2000, 4000], target),
            gain_table(gains("study", data, target=target)),
        ]
    return [*out, *_questions()]


def _bounds(mnist: Runs) -> str:
    "How the bounds of the headline are to be read"
    early = sum(r.already for r in reaches(mnist["fewest"], 0.97).values())
    return (
        f"The ratios of `fewest` are lower bounds: {early} of {len(mnist['fewest'])} runs are at "
        f"97 % at their "
        f"first budget, 20 labels (median: "
        f"{median_labels(reaches(mnist['fewest'], 0.97).values())})."
    )


def _questions() -> list[str]:
    "What asking fewer labels at a time buys"
    rows = []
    for q, word in ((10, "10"), (30, "30"), (0, "from budget to budget (30–50)")):
        here = runs("study", "mnist", q)
        cells = []
        for m in ("random", "margin", "badge"):
            at = by_budget({s: c for s, c in here[m].items() if s < 6})[200]
            cells.append(
                f"{100 * np.mean(at):.1f} ({100 * min(at):.1f}–{100 * max(at):.1f}, {len(at)})"
            )
        rows.append([word, *cells])
    return [
        "### Labels asked for at a time",
        "MNIST, test accuracy in % with 200 labels.",
        markdown(["labels a query", "random", "margin", "badge"], rows),
    ]


BOOSTING = {
    "boost": "**boost**",
    "boost, eta 0": "boost without walks (η = 0)",
    "boost, random direction": "boost, walks in random directions",
    "pool-walk": "pool-walk",
    "margin-diverse": "margin-diverse",
    "margin": "margin",
    "random": "random",
    "snn-hardest-2d": "snn, as published, 2-D",
    "snn-hardest-16d": "snn, as published, 16-D",
    "snn-decoded-16d": "snn, decoded, 16-D",
    "si-prior": "si, from the prior",
    "si-hardest": "si, from the hardest",
}


def boosting() -> list[str]:
    "Deep boosting, variant by variant"
    r = runs("boosting", "mnist")
    whole = table(
        r,
        [70, 100, 200, 500, 1000],
        names=BOOSTING,
        target=0.95,
        baseline="random",
        control="boost, eta 0",
        centre="geometric",
    )
    near = {
        k: metric("boosting", "mnist", k)["pool-walk"].mean() for k in ("near_flip", "near_random")
    }
    names = ("error_on_picks", "apart", "balance", "flipped", "near", "rejected")
    values = {k: metric("boosting", "mnist", k) for k in names}
    rows = [
        [word, *(f"{values[k][m].mean():.2f}" if m in values[k] else "" for k in names)]
        for m, word in BOOSTING.items()
    ]
    header = [
        "",
        "errors among the chosen",
        "distance between chosen, sd",
        "smallest / largest class",
        "walks that flip",
        "ends near a boundary",
        "rejected by the teacher",
    ]
    return [
        "## Deep boosting, variant by variant",
        f"MNIST, pool of 20,000, one random start of 40 labels, a small network trained from "
        f"scratch in each "
        f"round, {len(r['boost'])} paired seeds; test accuracy in %, labels to 95 % (geometric "
        f"mean; a run that "
        "never arrives counts with 1,000).",
        whole.markdown(),
        gain_table(gains("boosting", "mnist", target=0.95), BOOSTING),
        "What saves labels here is doubt shared out by coverage. The walk shows where the "
        "network errs, but its "
        "direction was not shown to save any. `boost` and the training recipe were developed on "
        "the last 10,000 "
        "training digits with other networks; `snn` and `si` are reconstructions.",
        "### What the runs did on the way",
        "Means over rounds and seeds.",
        markdown(header, rows),
        f"Share of walked points near a boundary, at 200 labels: {near['near_flip']:.2f} towards "
        f"the flip, "
        f"{near['near_random']:.2f} in random directions.",
    ]


OUTLINES = {
    "U-Net, largest": "U-Net on masks",
    "field U-Net, orbits": "U-Net on the field, agents",
    "field U-Net, threshold": "U-Net on the field, threshold (control)",
    "tracer, orbits": "patch tracer, agents",
    "tracer, threshold": "patch tracer, threshold (control)",
}
CLICKS = {
    "clicks, field": "network for the field",
    "clicks, mask": "network for masks (control)",
    "by hand": "by hand, no learning",
}


def outlines() -> list[str]:
    "One outline, a dynamical system"
    out = [
        "## Deep labelling: does tracing need fewer outlines than learning the mask?",
        "Dice on unseen slices; mean (lowest–highest, seeds). Hearts are three patients, tested "
        "on the one left "
        "out. The U-Nets are the same MONAI network with 1,000 steps on the same augmented slices.",
        "![Dice on unseen slices against labelled slices](deep_labelling.png)",
    ]
    for data, title in (("phantom", "phantoms"), ("heart", "Sunnybrook")):
        t = table(
            runs("labelling", data),
            [1, 2, 5, 10, 20],
            interval="range",
            scale=1,
            digits=3,
            names=OUTLINES,
        )
        labels = [f"{k} label{'s' * (k != '1')}" for k in t.header[1:]]
        out += [markdown([f"{title}, Dice", *labels], t.rows)]
    names = {m: w.removesuffix(" (control)") for m, w in OUTLINES.items()}
    for data, title in (("phantom", "Phantoms"), ("heart", "Hearts")):
        two = [g for g in gains("labelling", data, budget=5) if "clicks" not in g.claim.ours]
        out += [f"{title}, paired differences of Dice:", gain_table(two, names)]
    out += [
        "The threshold of the very distance that was learnt does as well as the agents. With so "
        "few seeds, small "
        "differences are not established. Nothing was tuned on these test slices.",
        "### A person who clicks",
        "Dice with five outlines to learn from; mean (lowest–highest, seeds). The simulated "
        "person is a kind one.",
    ]
    for data, title in (("phantom", "phantoms"), ("heart", "hearts")):
        rows = []
        for m, word in CLICKS.items():
            cells = []
            for k in (0, 1, 2, 3, 4, 5, 6, 8, 12):
                v = metric("labelling", data, f"c{k}", 5).get(m)
                cells.append(
                    "" if v is None else f"{v.mean():.3f} ({v.min():.3f}–{v.max():.3f}, {len(v)})"
                )
            rows.append([word, *cells])
        heads = [f"{k} click{'s' * (k != 1)}" for k in (0, 1, 2, 3, 4, 5, 6, 8, 12)]
        out.append(markdown([title, *heads], rows))
    clicks = [g for d in ("phantom", "heart") for g in gains("labelling", d, budget=5)]
    out.append("One click against none, phantoms first, hearts second:")
    out.append(gain_table([g for g in clicks if "clicks" in g.claim.ours], names | CLICKS))
    r = runs("labelling", "phantom")
    long, plain = r["U-Net 3x, largest"][0][1][0], by_budget({0: r["U-Net, largest"][0]})[5][0]
    out.append(
        f"Trained three times as long, the U-Net on masks (five labels, no clicks) gained "
        f"{long - plain:+.3f} on "
        "the one seed tried."
    )
    hard = table(runs("phantom", "phantom"), interval="range", scale=1, digits=3)
    like = [[d, *_patient(d)] for d in ("SCD0000101", "SCD0000201", "SCD0000301")]
    out += [
        "### Is the phantom hard enough, and like enough?",
        "Dice on 300 phantoms by the number of labelled ones; mean (lowest–highest, seeds).",
        hard.markdown(),
        "The network that saw 2,000 phantoms and no patient, on each patient (the first one's "
        "slices were looked at while the phantom was made):",
        markdown(["patient", "Dice", "median", "slices below .5"], like),
    ]
    return out


def _patient(name: str) -> list[str]:
    "Dice of one patient's slices"
    one = lambda k: next(iter(metric("phantom", name, k).values()))[0]
    below = f"{one('below'):.0f} of {one('slices'):.0f}"
    return [f"{one('value'):.3f}", f"{one('median'):.3f}", below]


BLOCKS = {
    "U-Net": "U-Net, 1,000 steps",
    "U-Net 2x": "U-Net, 2,000 steps",
    "greedy": "greedy",
    "greedy, polished": "greedy, polished",
    "end to end": "the same blocks end to end (control)",
    "end to end long": "the same blocks end to end, work of the polished (control)",
}
PARTS = ("value", "TC", "ET")


def regions(data: str, methods: dict[str, str], budgets: list[int]) -> list[list[str]]:
    "Mean Dice of whole tumour / core / enhancing part (seeds), one row a budget"
    tables = {
        p: {m: by_budget(r) for m, r in runs("blockwise", data, value=p).items()} for p in PARTS
    }
    rows = []
    for k in budgets:
        cells = []
        for m in methods:
            at = [tables[p].get(m, {}).get(k) for p in PARTS]
            means = " / ".join(f"{np.mean(v):.3f}" for v in at if v)
            cells.append(f"{means} ({len(at[0])})" if at[0] else "")
        rows.append([str(k), *cells])
    return rows


def blocks() -> list[str]:
    "Coarse to fine, block by block"
    out = [
        "## Coarse to fine, block by block",
        "Dice of whole tumour / core / enhancing part on unseen slices, means (seeds); tumours "
        "grown by "
        "Fisher–Kolmogorov on real anatomy, and real slices of four patients, tested on the one "
        "left out.",
        "![Dice on unseen slices against labelled slices, block by block](block_by_block.png)",
    ]
    for data, title in (("phantom", "grown tumours"), ("glioma", "real slices")):
        r = runs("blockwise", data)
        there = {m: w for m, w in BLOCKS.items() if m in r}
        budgets = sorted(by_budget(r["greedy"]))
        rows = regions(data, there, [int(k) for k in budgets])
        out.append(markdown([f"{title}, labels", *there.values()], rows))
    names = {m: w.removesuffix(" (control)") for m, w in BLOCKS.items()}
    both = [g for k in (5, 20) for g in gains("blockwise", "phantom", budget=k)]
    out += [
        "Paired differences of whole-tumour Dice, grown tumours:",
        gain_table(both, names),
        "Most of the gain is the blocks, not the order in which they learn. Four real patients "
        "establish "
        "nothing. Constants were chosen on other grown tumours.",
    ]
    work = {m: v.mean() for m, v in metric("blockwise", "phantom", "gflops", 20).items()}
    rel = lambda m: f"{work[m] / work['greedy, polished']:.2f}"
    ways = ("greedy", "greedy, polished", "end to end", "end to end long", "U-Net", "U-Net 2x")
    rows = [[names[m], f"{work[m] / 1000:.1f}", rel(m)] for m in ways]
    out += [
        "### Work",
        markdown(["", "TFLOP of training", "of the polished blocks' work"], rows),
    ]
    early = {
        "greedy early": "greedy",
        "end to end early": "end to end (control)",
        "U-Net early": "U-Net",
    }
    out += [
        "### After 0.3 of the work of the greedy pass, 20 labels",
        markdown(["labels", *early.values()], regions("phantom", early, [20])),
    ]
    more = {
        "greedy, polished": "greedy, polished",
        "softened, polished": "softened references",
        "out of fold, polished": "references out of fold",
        "map alone, polished": "the map alone is handed on",
        "tiled, polished": "the last block on pieces of 48²",
        "joint": "joint",
        "at once": "all at once, each its own loss",
    }
    out += ["### Variants", markdown(["labels", *more.values()], regions("phantom", more, [5, 20]))]
    return out


# ---- the benches ----
def machines() -> list[dict]:
    "What each machine measured"
    files = sorted((root / "bench" / "results").glob("*-core-*.json"))
    return [json.loads(p.read_text(encoding="utf-8")) for p in files]


def memory() -> list[str]:
    "What block-wise training saves, and what saves as much without it"
    rows = {r["name"]: r for doc in machines() for r in doc["rows"]}
    part, full = (f"{rows[n]['ratio']:.2f}" for n in ("block_memory", "block_memory_full"))
    cube = {n.removeprefix("cube_3_gib_"): r for n, r in rows.items() if n.startswith("cube_3")}
    joint = cube["greedy"]["peer"]
    return [
        "### Memory",
        f"At the peak of a step of four 96² slices the largest block keeps {part} of what the same "
        f"blocks keep jointly (its last block on pieces of 48²), and {full} where four blocks all "
        f"have full resolution. In 3-D, 3 GiB hold the gradient of a cube of {joint} voxels a side "
        f"jointly, {cube['greedy']['ours']} block by block and {cube['pieces']['ours']} with "
        f"pieces; a U-Net's {cube['unet']['ours']}. The control: computing activations again on "
        f"the way back brings the joint blocks to {cube['joint_checkpointed']['ours']} and the "
        f"U-Net to {cube['unet_checkpointed']['ours']} without any of this, and a joint polish "
        "needs the joint memory again. Bytes are those that the gradient needs, counted, not an "
        "allocator's.",
    ]


def provenance() -> list[str]:
    "On which machines each ledger was measured, one line a ledger"
    lines = []
    for file in dict.fromkeys(shipped.FILES.values()):
        count: dict[str, int] = {}
        for study in (s for s, f in shipped.FILES.items() if f == file):
            for record, n in shipped.machines(study):
                name = in_words(record) if record else "unknown (before 0.5)"
                count[name] = count.get(name, 0) + n
        words = "; ".join(f"{name}: {n:,} points" for name, n in count.items())
        lines.append(f"* `{file}`: measured on {words}")
    return [
        "## Measured on",
        "The same seed gives the same draws everywhere, but sums differ in their last bit with the "
        "number of threads and with the processor, and a training makes other weights of that: "
        "compare means over seeds between machines, never single runs. A point says what it was "
        "computed on since 0.5.",
        "\n".join(lines),
    ]


MEANS = {
    "speedup": "peer / ours",
    "share": "ours / peer",
    "difference": "ours − peer",
}


def number(v: float | None) -> str:
    "Four digits, thousands apart"
    if v is None:
        return ""
    return f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.4g}"


def benches() -> list[str]:
    "One row a measurement, machine by machine"
    out = ["## Benches"]
    for doc in machines():
        out += [
            f"Measured on: {doc['machine']['name']}. `effect` says what the value is: "
            + ", ".join(f"{k} = {v}" for k, v in MEANS.items())
            + "; the interval's kind stands behind it (bound95: one-sided).",
        ]
        header = [
            "",
            "ours",
            "peer",
            "unit",
            "effect",
            "value",
            "interval",
            "n",
            "measured",
            "note",
        ]
        out.append(markdown(header, [bench_row(r) for r in doc["rows"]]))
    return out


def bench_row(r: dict) -> list[str]:
    "One row of the table of benches"
    span = ""
    if r.get("interval") == "bound95":
        low = r.get("low") is not None
        span = f"at {'least' if low else 'most'} {number(r['low'] if low else r['high'])} (bound95)"
    elif r.get("low") is not None:
        span = f"{number(r['low'])} to {number(r['high'])} ({r.get('interval')})"
    when = " ".join(str(v) for v in (r.get("version"), r.get("date")) if v)
    cells = [r["name"], number(r["ours"]), number(r["peer"]), r["unit"], r.get("effect") or ""]
    cells += [number(r["ratio"]), span, str(r["n"]), when, r["note"] or ""]
    return [c.replace("|", "\\|") for c in cells]


def page() -> str:
    "The whole page"
    parts = [HEAD, *selection(), *boosting(), *outlines(), *blocks(), *memory()]
    parts += [*provenance(), *benches()]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    "Writes the page, or with --check says whether it is what the ledgers hold"
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--check", action="store_true", help="write nothing; fail where the page is old")
    text = page()
    if p.parse_args().check:
        old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        print(
            "docs/RESULTS.md is up to date"
            if old == text
            else "docs/RESULTS.md is old: make results"
        )
        return int(old != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
