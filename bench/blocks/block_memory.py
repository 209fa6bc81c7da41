"""Bytes that a training step needs at its peak: the blocks one by one against all of them at once,
and against a U-Net.

    python bench/run.py block_memory     # rows block_memory, block_memory_full
    python bench/block_memory.py         # the table: depth of the pyramid, sides, checkpointing,
    2-D and 3-D
    python bench/block_memory.py cube    # on a CUDA device: real steps on growing volumes until
    memory ends

Saved bytes are counted on real steps; the table's on tensors without values (tests hold the two
equal), so that it
takes seconds and no memory. On CUDA it is the allocator's peak of a real step, gradients and
workspaces included.
"""

import sys
from types import SimpleNamespace

import torch
from torch import nn

from deffi_lab.core.step import make_generator
from deffi_lab.methods.blocks.train import BlockKnobs, TrainBlocks, whole_loss
from deffi_lab.nets.blocks import Blocks, State, onehot, scan_loss
from deffi_lab.nets.memory import Recomputed, cuda_peak, recomputed, saved_bytes
from deffi_lab.nets.segment import unet
from deffi_lab.numeric.regrid import pooled

FULL = {"scales": (1, 1, 1, 1), "widths": (16, 16, 16, 16), "depth": 2}


def scans(n: int, side: int, dims: int = 2, device: str = "cpu") -> SimpleNamespace:
    "Random images with a ball of each level, enough to weigh a step"
    at = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * dims, indexing="ij"))
    r = (at - side / 2).norm(dim=0) / side
    label = sum((r < f).byte() for f in (0.3, 0.2, 0.1)).expand(n, *r.shape).clone()
    image = torch.rand(n, 2, *r.shape, generator=make_generator(0))
    return SimpleNamespace(
        image=image.to(device), label=label.to(device), subject=[str(i) for i in range(n)]
    )


def peaks(
    device: str = "cpu", side: int = 96, batch: int = 4, dims: int = 2, **kw
) -> dict[str, int]:
    "Bytes at the peak of one real step of each phase"
    m = TrainBlocks(scans(batch, side, dims, device), knobs=BlockKnobs(batch=batch, steps=2), **kw)
    out = {}
    for phase in m.phases:
        m.enter(phase)
        m.step = 0
        m.learn(phase)  # moments and caches are there before the step that counts
        m.fit.optimiser.zero_grad()
        with cuda_peak(device) if device == "cuda" else saved_bytes() as c:
            m.learn(phase)
        out[phase.name], m.step = c.peak, 0
    return out


def row(name: str, device: str, **kw) -> dict:
    """Greedy (the largest of its blocks) against the same
    blocks jointly; ratio: ours / peer, smaller is better"""
    tile = kw.pop("tile", 0)
    ours, joint = peaks(device, tile=tile, **kw), peaks(device, mode="joint", **kw)["joint"]
    other = peaks(device, mode="unet")["unet"]
    whole = peaks(device, **kw)
    top, mib = max(ours.values()), 2**20
    what = "allocator's peak" if device == "cuda" else "saved tensors"
    return {
        "name": name + "_cuda" * (device == "cuda"),
        "ours": top / mib,
        "peer": joint / mib,
        "unit": "MiB",
        "ratio": top / joint,
        "effect": "share",
        "n": 1,
        "note": f"{what} of a step of 4 slices of 96 x 96, largest block"
        + f", the last on pieces of {tile}²" * bool(tile)
        + f", against the same blocks jointly; blocks "
        f"{', '.join(f'{v / mib:.1f}' for v in ours.values())}"
        + (f"; without pieces {max(whole.values()) / joint:.2f} of joint" if tile else "")
        + f"; U-Net {other / mib:.1f}",
    }


def rows() -> list[dict]:
    "On this machine's CPU, and on CUDA where there is one"
    torch.set_num_threads(1)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    return [
        r
        for d in devices
        for r in (row("block_memory", d, tile=48), row("block_memory_full", d, **FULL))
    ] + cubes()


def cubes(gib: int = 3) -> list[dict]:
    "Sides of the largest cubes whose step keeps at most so many GiB, against the blocks jointly"
    three = ways(3)
    sides = {name: largest(way, gib * 2**30) for name, way in three.items()}
    peers = {
        "blocks, greedy": "blocks, joint",
        "blocks, greedy, last on pieces of half a side": "blocks, joint",
        "blocks, joint, checkpointed": "blocks, joint",
        "U-Net": "blocks, joint",
        "U-Net, checkpointed": "U-Net",
    }
    keys = ("greedy", "pieces", "joint_checkpointed", "unet", "unet_checkpointed")
    return [
        {
            "name": f"cube_{gib}_gib_{key}",
            "ours": sides[ours],
            "peer": sides[peer],
            "unit": "voxels a side",
            "effect": "share",
            "note": f"largest cube whose gradient keeps at most {gib} GiB: {ours}; peer: {peer}",
        }
        for key, (ours, peer) in zip(keys, peers.items())
    ]


# The table


class Thrifty(nn.Module):
    """A pyramid whose blocks are each computed again
    on the way back; what goes up between them is kept"""

    def __init__(self, net: Blocks):
        super().__init__()
        self.net, self.scales = net, net.scales

    def forward(self, image: torch.Tensor, detach: bool = False) -> list[State]:
        "As the pyramid's own"
        states = []
        for b in range(len(self.net.blocks)):
            below = tuple(states[-1]) if states else ()
            states.append(
                State(
                    *recomputed(
                        lambda x, *s, b=b: tuple(self.net.run(b, x, State(*s) if s else None)),
                        image,
                        *below,
                    )
                )
            )
        return states


def thrifty_unet(net: nn.Module) -> nn.Module:
    "MONAI's U-Net with each residual unit computed again on the way back"
    from monai.networks.blocks import ResidualUnit

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualUnit):
                setattr(parent, name, Recomputed(child))
    return net


def ways(
    dims: int, tile: int = 0, scales=(8, 4, 2, 1), widths=(64, 48, 24, 16), depth=(2, 2, 1, 1)
) -> dict:
    "What is compared: functions of (image, share) that make one step's losses, one after the other"
    kw = {"scales": scales, "widths": widths, "depth": depth, "dims": dims}

    def greedy(cut: int):
        def step(image, share):
            net = Blocks(**kw).to(image.device)
            for b, k in enumerate(net.scales):
                net.zero_grad(set_to_none=True)
                with torch.no_grad():
                    below = net(image, upto=b)[-1] if b else None
                x, t, below = image, pooled(share, k), net.lifted(b, below) if b else None
                if cut and b == len(scales) - 1:
                    s = (..., *[slice(0, t.shape[-1] // 2)] * dims)
                    x, t, below = (
                        x[(..., *[slice(0, x.shape[-1] // 2)] * dims)],
                        t[s],
                        below and State(*(v[s] for v in below)),
                    )
                yield scan_loss(net.over(b, x, below).logits, t)
                del below

        return step

    def single(make, mode):
        def step(image, share):
            yield whole_loss(make().to(image.device), image, share, mode)

        return step

    net = lambda: unet(4, 2, dims=dims)
    return {
        "blocks, greedy": greedy(0),
        "blocks, greedy, last on pieces of half a side": greedy(1),
        "blocks, joint": single(lambda: Blocks(**kw), "joint"),
        "blocks, joint, checkpointed": single(lambda: Thrifty(Blocks(**kw)), "joint"),
        "U-Net": single(net, "unet"),
        "U-Net, checkpointed": single(lambda: thrifty_unet(net()), "unet"),
    }


def weigh(way, side: int, dims: int, batch: int = 1, device: str = "meta") -> int:
    "Peak bytes of a step, on tensors without values or on a device"
    image = torch.empty(batch, 2, *[side] * dims, device=device)
    share = (
        onehot(scans(batch, side, dims).label).to(device)
        if device != "meta"
        else torch.empty(batch, 4, *[side] * dims, device=device)
    )
    with cuda_peak(device) if device == "cuda" else saved_bytes() as c:
        for loss in way(image, share):
            loss.backward()
            del loss
    return c.peak


def largest(way, limit: int, dims: int = 3, top: int = 1024) -> int:
    "The side of the largest cube (a multiple of 8) whose step saves at most `limit` bytes"
    low, high = 0, top // 8
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if weigh(way, 8 * middle, dims) <= limit else (low, middle - 1)
    return 8 * low


def table() -> None:
    "Prints MiB saved for sides and numbers of blocks in 2-D and 3-D, and the largest cubes"
    for dims, sides, batch in ((2, (96, 192, 384), 4), (3, (32, 64, 96, 128), 1)):
        print(f"\n{dims}-D, MiB saved in a step of {batch}; sides {sides}")
        for name, way in ways(dims).items():
            print(
                f"  {name:48}",
                "".join(f"{weigh(way, s, dims, batch) / 2**20:10.1f}" for s in sides),
            )
    print("\nfull resolution, 96 x 96, batch 4: blocks 1, 2, 4, 8")
    for name in ("blocks, greedy", "blocks, joint", "blocks, joint, checkpointed"):
        mib = [
            weigh(ways(2, scales=(1,) * k, widths=(16,) * k, depth=2)[name], 96, 2, 4) / 2**20
            for k in (1, 2, 4, 8)
        ]
        print(f"  {name:48}", "".join(f"{v:10.1f}" for v in mib))
    for gib in (3, 16):
        for label, kw in (("pyramid", {}), ("full resolution", FULL)):
            print(f"\nlargest cube in {gib} GiB of saved tensors, {label}")
            for name, way in ways(3, **kw).items():
                print(f"  {name:48}{largest(way, gib * 2**30):6}")


def cube(limit: float = 0.9) -> None:
    """Real steps on CUDA on growing cubes, each way until
    it no longer fits into a share of the device's memory"""
    torch.cuda.set_per_process_memory_fraction(limit)
    for label, kw in (("pyramid", {}), ("full resolution", FULL)):
        for name, way in ways(3, **kw).items():
            best = (0, 0)
            for side in range(64, 1024, 32):
                try:
                    best = (side, weigh(way, side, 3, device="cuda"))
                except torch.cuda.OutOfMemoryError:
                    break
                finally:
                    torch.cuda.empty_cache()
            print(f"{label}: {name:48} {best[0]}³, {best[1] / 2**30:.1f} GiB", flush=True)


if __name__ == "__main__":
    if "cube" in sys.argv:
        cube()
    else:
        print(*rows(), sep="\n")
        table()
