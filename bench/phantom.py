"""Is the phantom hard enough, and like enough? Writes bench/results/phantom.json, which its
notebook shows.

Hard enough: MONAI's U-Net on 1 and on 20 labelled phantoms, three seeds, Dice on 300 others. Like
enough: one network
that saw 2,000 phantoms and no patient, shown every packed slice, a patient at a time. `--seeds` and
`--steps` shorten.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.data.heart.readers import sunnybrook_npz
from deffi_lab.data.slices import Slices
from deffi_lab.nets.score import dice
from deffi_lab.nets.segment import TrainUNet, outputs, unet
from deffi_lab.numeric.distance import signed_distance

BATCH = 12
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


def patients(net: torch.nn.Module) -> list[dict]:
    "One row for each patient of the packed file; none where it is missing"
    try:
        real = sunnybrook_npz()
    except FileNotFoundError as e:
        print(e)
        return []
    rows = []
    for patient in sorted(set(real.subject)):
        d = score(net, real.take([i for i, s in enumerate(real.subject) if s == patient]))
        note = "its slices were looked at" if patient == SEEN else "untouched"
        rows.append(
            {
                "what": f"the same network on patient {patient}",
                "dice": float(d.mean()),
                "note": f"{len(d)} slices, median {float(d.median()):.3f}, below .5: "
                f"{int((d < 0.5).sum())}; {note}",
            }
        )
    return rows


def main() -> None:
    "Both measurements"
    p = argparse.ArgumentParser()
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=250)
    p.add_argument("--long", type=int, default=600)
    a, rows, start = p.parse_args(), [], time.time()
    test = phantom(300, seed=1_000_000, device="cpu")
    net = trained(phantom(2000, seed=1, device="cpu"), a.long, 0)
    rows.append(
        {
            "what": "2,000 labelled phantoms, 300 others",
            "dice": float(score(net, test).mean()),
            "note": f"{a.long} steps",
        }
    )
    rows += patients(net)
    print(*rows, sep="\n", flush=True)
    for labels in (20, 1):
        runs = [
            float(
                score(trained(phantom(labels, seed=100 + s, device="cpu"), a.steps, s), test).mean()
            )
            for s in range(a.seeds)
        ]
        spread = f"{min(runs):.3f} to {max(runs):.3f} over {a.seeds} seeds"
        rows.insert(
            0,
            {
                "what": f"{labels} labelled phantom{'s' * (labels > 1)}, 300 others",
                "dice": statistics.mean(runs),
                "note": f"{a.steps} steps; {spread}",
            },
        )
        print(rows[0], flush=True)
    out = Path(__file__).parent / "results" / "phantom.json"
    out.write_text(
        json.dumps({"seconds": round(time.time() - start), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
