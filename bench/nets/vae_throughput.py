"""VAE training on one core: samples a CPU second, against the usual loop on the same net, and
against sgemm.

The usual loop: a `Dataset` whose transform makes a float tensor of each PIL image, a `DataLoader`
(batch 128, shuffled,
no workers), `binary_cross_entropy_with_logits`, Adam at its usual 1e-3. Ours: `TrainVAE` with the
batch and learning rate noted. Both
see the same number of images, in alternating slices of half an epoch; the losses on the test set
stand in the note.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import ImageSet, mnist, unit
from deffi_lab.methods.latent.train import LatentKnobs, TrainVAE
from deffi_lab.nets.vae import VAE, elbo

EPOCHS, SLICES, LATENT = 3, 6, 2
TUNED = {"mlp": LatentKnobs(lr=6e-3, batch=384), "conv": LatentKnobs()}  # same loss at equal epochs


class Digits(Dataset):
    "One PIL image and its transform at a time, as torchvision's MNIST with ToTensor does it"

    def __init__(self, data: ImageSet):
        self.x, self.y = data.x[:, 0], data.y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.x[i].numpy())
        pixels = torch.from_numpy(np.array(image, copy=True)).view(image.size[1], image.size[0], 1)
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255), int(self.y[i])


def usual(data: ImageSet, vae: VAE) -> Iterator[int]:
    "The usual training loop; yields the number of images after each minibatch"
    loader = DataLoader(
        Digits(data), batch_size=128, shuffle=True, num_workers=0, generator=make_generator(1)
    )
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3)
    while True:
        for x, _ in loader:
            mu, logvar = vae.encode(x)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
            recon = F.binary_cross_entropy_with_logits(
                vae.decode_logits(z), x, reduction="sum"
            ) / len(x)
            kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum() / len(x)
            loss = recon + kl
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            yield len(x)


def ours(method: TrainVAE) -> Iterator[int]:
    "Our method; yields the number of images after each step"
    seen = 0
    for _ in method:
        total = round(method.epoch * len(method.x))
        yield total - seen
        seen = total


def rate(loop: Iterator[int], images: int) -> float:
    "Images a second of process CPU time"
    done, began = 0, time.process_time()
    while done < images:
        done += next(loop)
    return done / (time.process_time() - began)


@torch.no_grad()
def test_loss(vae: VAE, data: ImageSet) -> float:
    "Negative ELBO on the test images, nats a sample"
    g = make_generator(0)
    losses = [
        elbo(*(lambda x, out: (out[0], x, *out[1:]))(x, vae(x, g)))[0]
        for x in map(unit, data.x_test.split(1000))
    ]
    return float(torch.stack(losses).mean())


def sgemm_peak(n: int = 1024, repeats: int = 20) -> float:
    "FLOP/s of a float32 matrix product on one core, the best of three"
    a, b, best = torch.randn(n, n), torch.randn(n, n), 0.0
    for _ in range(3):
        began = time.process_time()
        for _ in range(repeats):
            a @ b
        best = max(best, repeats * 2 * n**3 / (time.process_time() - began))
    return best


def flops_a_sample(vae: VAE) -> float:
    "FLOP of one forward and backward pass"
    x = torch.rand(64, *vae.shape)
    with FlopCounterMode(display=False) as counter:
        logits, mu, logvar = vae(x)
        elbo(logits, x, mu, logvar)[0].backward()
    return counter.get_total_flops() / len(x)


def compare(kind: str, data: ImageSet) -> tuple[dict, float, float]:
    "One row, our rate, and the net's FLOP a sample"
    method = TrainVAE(data.x, latent=LATENT, kind=kind, knobs=TUNED[kind], seed=0)
    net = VAE(**method.vae.options, generator=make_generator(0))
    loops, images = (ours(method), usual(data, net)), EPOCHS * len(data.x) // SLICES
    rates = np.array([[rate(loop, images) for loop in loops] for _ in range(SLICES)])
    ratios = rates[:, 0] / rates[:, 1]
    ours_rate, peer_rate = np.median(rates, 0)
    note = (
        f"{kind}, latent {LATENT}, width {net.options['width']}, one core, CPU time; test loss "
        f"after {EPOCHS} epochs: "
        f"ours {test_loss(method.vae, data):.1f}, usual {test_loss(net, data):.1f} nats; batch "
        f"{method.knobs.batch} and lr {method.knobs.lr:g} against 128 and 0.001; bfloat16 "
        f"products: {method.bf16}"
    )
    row = dict(
        name=f"vae_throughput_{kind}",
        ours=round(ours_rate),
        peer=round(peer_rate),
        unit="samples/s",
        ratio=round(float(np.median(ratios)), 3),
        effect="share",
        interval="range",
        low=round(float(ratios.min()), 3),
        high=round(float(ratios.max()), 3),
        n=SLICES,
        note=note,
    )
    return row, float(ours_rate), flops_a_sample(net)


def load_times(n: int = 5) -> list[float]:
    "Seconds of `mnist()` once its bytes are cached"
    mnist()
    out = []
    for _ in range(n):
        began = time.perf_counter()
        mnist()
        out.append(time.perf_counter() - began)
    return sorted(out)


def rows() -> list[dict]:
    """Throughput of the MLP and of the convolutional VAE,
    share of the sgemm peak, and loading time of MNIST"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data, out = mnist(), []
        for kind in ("mlp", "conv"):
            row, speed, flops = compare(kind, data)
            peak = sgemm_peak()
            out += [
                row,
                dict(
                    name="vae_sgemm_share" + ("" if kind == "mlp" else f"_{kind}"),
                    ours=round(speed * flops / 1e9, 1),
                    peer=round(peak / 1e9, 1),
                    unit="GFLOP/s",
                    ratio=round(speed * flops / peak, 3),
                    effect="share",
                    n=1,
                    note="share of this core's own float32 matrix product "
                    f"(1024 x 1024); {flops / 1e6:.2f} MFLOP a sample",
                ),
            ]
    finally:
        torch.set_num_threads(threads)
    times = load_times()
    return out + [
        dict(
            name="mnist_load_s",
            ours=round(times[len(times) // 2], 4),
            peer=0.5,
            unit="s",
            ratio=round(times[len(times) // 2] / 0.5, 4),
            effect="share",
            interval="range",
            low=round(times[0] / 0.5, 4),
            high=round(times[-1] / 0.5, 4),
            n=len(times),
            note="all 70,000 images resident, after first use; the bound is 0.5 s",
        )
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
