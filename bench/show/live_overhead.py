"""Training steps per second of process CPU time, with a live view at 8 frames/s and headless, in
turns.

The page at the far end is played: it packs each frame as Jupyter does and sends the receipt after
20 ms.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any


def latent_training() -> tuple[Any, Callable[[Any], Any]]:
    """The latent lab as it is: a 2-D VAE on MNIST, 6,000
    places, the decoded grid, the loss, the clicked digit"""
    import numpy as np

    from deffi_lab.data.images import mnist
    from deffi_lab.labs.latent.training import LatentView
    from deffi_lab.methods.latent.train import TrainVAE

    data = mnist()
    view, losses = LatentView(data), np.c_[np.arange(2000), np.linspace(500, 150, 2000)]
    return TrainVAE(data.x, latent=2, kind="mlp", seed=0), lambda m: view.scene(m, losses)


class Page:
    """Takes frames from a canvas as Jupyter would pack
    them, and acknowledges each after `delay` seconds"""

    def __init__(self, canvas: Any, delay: float = 0.02):
        self.canvas, self.delay, self.seq, self.frames, self.bytes = canvas, delay, 0, 0, 0
        canvas.send, self.news, self.open = self.take, threading.Event(), True
        self.thread = threading.Thread(target=self.answer, daemon=True)
        self.thread.start()
        canvas._receive(None, {"kind": "hello"}, [])

    def take(self, msg: dict, buffers: list | None = None) -> None:
        if msg["kind"] != "frame":
            return
        self.bytes += len(json.dumps(msg)) + len(b"".join(buffers))
        self.seq, self.frames = msg["seq"], self.frames + 1
        self.news.set()

    def answer(self) -> None:
        while self.open:
            if not self.news.wait(0.2):
                continue
            self.news.clear()
            time.sleep(self.delay)
            self.canvas._receive(None, {"kind": "ack", "seq": self.seq}, [])


def speed(method: Any, draw: Callable, live: bool, seconds: float) -> tuple[float, int]:
    "Steps per second of process CPU time, and frames sent"
    from deffi_lab.core.run import Run
    from deffi_lab.show.lab import Lab

    run = Run(method, name="live_overhead")
    page = None
    if live:
        page = Page(Lab(run, draw).canvas)
    else:
        run.frame_due = lambda: False
    run.start()
    time.sleep(0.3)
    first, t = run.last.index if run.last else 0, time.process_time()
    time.sleep(seconds)
    cpu, done = time.process_time() - t, run.last.index - first
    run.close(30)
    if run.status == "failed":
        raise RuntimeError(run.error)
    if page is not None:
        page.open = False
    return done / cpu, page.frames if page else 0


def rows(n: int = 9, seconds: float = 4.0, make: Callable = latent_training) -> list[dict]:
    "One row: live (ours) and headless (peer); low and high are the extreme ratios of n turns"
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    method, draw = make()
    speed(method, draw, False, 1.0)
    pairs, frames = [], 0
    for i in range(n):
        order = (True, False) if i % 2 else (False, True)  # in turns, the first one alternating
        got = {live: speed(method, draw, live, seconds) for live in order}
        pairs.append((got[True][0], got[False][0]))
        frames += got[True][1]
    torch.set_num_threads(threads)
    ratios = [a / b for a, b in pairs]
    live, bare = (statistics.median(p[k] for p in pairs) for k in (0, 1))
    return [
        dict(
            name="live_overhead",
            ours=live,
            peer=bare,
            unit="steps per CPU second",
            ratio=statistics.median(ratios),
            effect="share",
            interval="range",
            low=min(ratios),
            high=max(ratios),
            n=n,
            note=f"{frames / n / (seconds + 0.3):.1f} frames/s to a page that is played; 0.95 "
            f"wanted",
        )
    ]


if __name__ == "__main__":
    print(rows(n=5))
