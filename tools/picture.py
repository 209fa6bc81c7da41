"""Makes the picture of README: the boosting lab after five rounds, run without a browser; seeded.

    python tools/picture.py          # writes docs/first_light.png
"""
from pathlib import Path

import torch

from deffi_lab.labs.boosting import boosting_lab

if __name__ == "__main__":
    torch.set_num_threads(1)
    lab = boosting_lab(name="picture")
    race = lab.run.method
    while min(m.round for m in race.lanes.values()) < 5: lab.run.run(1)
    out = Path(__file__).resolve().parents[1] / "docs" / "first_light.png"
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(lab.figure(dpi=90)._repr_png_())
    print(out.name, out.stat().st_size, "bytes;", {n: m.curve[-1] for n, m in race.lanes.items()})
