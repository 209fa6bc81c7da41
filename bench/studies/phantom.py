"""Is the phantom hard enough, and like enough?

    python bench/study.py phantom            # runs what is missing
    python bench/study.py phantom --table    # prints what is there

Hard enough: MONAI's U-Net on 1 and on 20 labelled phantoms, three seeds, Dice on 300 others. Like
enough: one network that saw 2,000 phantoms and no patient, shown every packed slice, a patient at a
time.
"""

import time

import torch
from common import Study, arguments, parsed

from deffi_lab.core.ledger import Key, Ledger, Point
from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.data.heart.readers import sunnybrook_npz
from deffi_lab.data.slices import Slices
from deffi_lab.nets.score import dice
from deffi_lab.nets.segment import TrainUNet, outputs, unet
from deffi_lab.numeric.distance import signed_distance

BATCH = 12
STEPS, LONG, MANY = 250, 600, 2000
STUDY = Study("phantom", {"steps": STEPS, "long": LONG, "batch": BATCH, "test": 300})
SEEN = "SCD0000101"  # the patient whose slices were looked at while the phantom was made


def trained(s: Slices, steps: int, seed: int) -> torch.nn.Module:
    "The network after `steps` updates on these slices"
    net = unet(seed=seed)
    generator = make_generator(seed)
    for _ in TrainUNet(
        net,
        s.image,
        signed_distance(s.mask),
        steps=steps,
        batch=BATCH,
        generator=generator,
        chunk=steps,
    ):
        pass
    return net


def score(net: torch.nn.Module, s: Slices) -> torch.Tensor:
    "Dice of each slice"
    return dice(outputs(net, s.image)[:, 0] > 0, s.mask)


def point(net: torch.nn.Module, s: Slices, labels: int, began: float) -> Point:
    "Dice of a network on slices: mean, median, how many lie below .5"
    d = score(net, s)
    metrics = {"median": float(d.median()), "below": int((d < 0.5).sum()), "slices": len(d)}
    return Point(labels, float(d.mean()), time.time() - began, metrics=metrics)


def few(ledger: Ledger, test: Slices, seeds: range) -> None:
    "1 and 20 labelled phantoms"
    for labels in (20, 1):
        for seed in seeds:
            key, began = Key("phantom", "U-Net", 0, seed), time.time()
            if any(p.labels == labels for p in ledger.points(key)):
                continue
            net = trained(phantom(labels, seed=100 + seed, device="cpu"), STEPS, seed)
            ledger.add(key, point(net, test, labels, began))


def many(ledger: Ledger, test: Slices) -> None:
    "2,000 labelled phantoms, and the same network on each patient of the packed file"
    key, began = Key("phantom", "U-Net, 2,000 phantoms", 0, 0), time.time()
    if ledger.last(key) is not None:
        return
    net = trained(phantom(MANY, seed=1, device="cpu"), LONG, 0)
    rows = [(key, point(net, test, MANY, began))]
    try:
        real = sunnybrook_npz()
        for patient in sorted(set(real.subject)):
            own = real.take([i for i, s in enumerate(real.subject) if s == patient])
            rows.append((Key(patient, key.method, 0, 0), point(net, own, MANY, time.time())))
    except FileNotFoundError as e:
        print(e)
    ledger.add_many(rows)


def table() -> None:
    "One line a measurement"
    c = STUDY.columns()
    for i in range(len(c["value"])):
        note = f"; {SEEN}: its slices were looked at" * (c["data"][i] == SEEN)
        print(
            f"{c['data'][i]:12}{c['labels'][i]:6} labelled phantoms, seed {c['seed'][i]}: "
            f"{c['value'][i]:.3f}, median {c['median'][i]:.3f}, below .5: {c['below'][i]:.0f} of "
            f"{c['slices'][i]:.0f}{note}"
        )


def main(words: list[str]) -> None:
    "Both measurements"
    a = parsed(arguments(__doc__, ["few", "many"], 3), ["few", "many"], words)
    if a.measure:
        test = phantom(300, seed=1_000_000, device="cpu")
        with STUDY.open() as ledger:
            if "few" in a.parts:
                few(ledger, test, range(a.first, a.seeds))
            if "many" in a.parts:
                many(ledger, test)
    if a.export:
        STUDY.ship()
    if a.table:
        table()
