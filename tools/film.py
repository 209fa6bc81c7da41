"""Films a lab while it really runs, and photographs it: the moving picture of README and the
pictures of the four labs; seeded.

python tools/film.py              # docs/film.gif: deep boosting and its random twin
python tools/film.py contours     # another of SHOTS, as docs/film_contours.gif
python tools/picture.py           # the last picture of each shot, as docs/lab_<name>.png
"""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from deffi_lab.show.lab import Lab
from deffi_lab.show.render.mpl import to_mpl
from deffi_lab.show.scene import Scene

DOCS = Path(__file__).resolve().parents[1] / "docs"
LARGEST = 2_000_000  # bytes of a film
COLORS = 128  # of a film
DPI = 90


@dataclass(frozen=True)
class Shot:
    """A lab, which of its panels are seen (none: all) with what changed, and for how long.

    `steps` is the length of the run in steps; a film takes a frame every `every` steps.
    """

    open: Callable[[], Lab]
    steps: int
    every: int
    panels: tuple[str, ...] = ()
    views: dict[str, dict] = field(default_factory=dict)
    width: float = 8.4  # inches
    height: float | None = None  # inches; None: as the renderer has it
    title: str = ""

    def figure(self, lab: Lab) -> Figure:
        "The present picture of the lab"
        scene = lab.scene()
        panels = [p for p in scene.panels if not self.panels or p.name in self.panels]
        panels = [replace(p, **self.views.get(p.name, {})) for p in panels]
        figure = to_mpl(Scene(panels, self.title or scene.title, scene.note), DPI, self.width)
        if self.height:
            figure.set_size_inches(self.width, self.height)
        return figure


def boosting() -> Lab:
    from deffi_lab.labs.selection.boosting import boosting_lab

    return boosting_lab(scheme="boost", name="film of boosting")


def efficiency() -> Lab:
    from deffi_lab.labs.selection.efficiency import efficiency_lab

    return efficiency_lab(name="film of efficiency")


def contours() -> Lab:
    from deffi_lab.labs.contours.labelling import labelling_lab

    return labelling_lab(shape="star", pace=None, name="film of contours")


def blocks() -> Lab:
    from deffi_lab.labs.blocks.training import blockwise_lab

    return blockwise_lab(name="film of blocks")


SHOTS = {
    "boosting": Shot(
        boosting,
        2400,
        20,
        ("map", "accuracy"),
        {"accuracy": dict(xlim=(35, 300), ylim=(0.65, 1.0))},
        title="Where does a network err, and which labels are worth asking for?",
    ),
    "efficiency": Shot(efficiency, 100_000, 200, ("efficiency",), width=6.4),
    "contours": Shot(contours, 150, 2, ("label", "cobweb")),
    "blocks": Shot(blocks, 2500, 50, ("strip", "race"), width=11.5, height=6.0),
}


def pictures(shot: Shot) -> Iterator[Image.Image]:
    "What is seen before the first step, and after every `shot.every` steps"
    lab = shot.open()
    for _ in range(0, shot.steps, shot.every):
        raw = io.BytesIO()
        shot.figure(lab).savefig(raw, format="png", dpi=DPI)
        yield Image.open(raw).convert("RGB")
        lab.run.run(shot.every)
        if lab.run.status == "finished":
            return


def write(frames: list[Image.Image], path: Path, pause: int = 100, last: int = 3000) -> int:
    """Writes an animated GIF in the colours of its last frame and returns its bytes.

    `pause` and `last`: milliseconds that a frame, and the last one, stay. Equal frames are joined
    to one. ValueError where the film would be larger than `LARGEST`; nothing is written then.
    """
    how = dict(dither=Image.Dither.NONE)
    palette = frames[-1].quantize(COLORS, **how)
    flat = [f.quantize(palette=palette, **how) for f in frames]
    times = [pause] * (len(flat) - 1) + [last]
    raw = io.BytesIO()
    more = dict(append_images=flat[1:], duration=times, loop=0, optimize=True)
    flat[0].save(raw, "GIF", save_all=True, **more)
    size = raw.getbuffer().nbytes
    if size > LARGEST:
        raise ValueError(f"{path.name}: {size:,} bytes, at most {LARGEST:,}: take fewer frames")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw.getvalue())
    return size


def main(name: str = "boosting") -> int:
    if name not in SHOTS:
        sys.exit(f"{name!r}: choose one of {list(SHOTS)}")
    torch.set_num_threads(1)
    path = DOCS / ("film.gif" if name == "boosting" else f"film_{name}.gif")
    print(f"{path.name}: {write(list(pictures(SHOTS[name])), path):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
