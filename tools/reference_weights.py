"""Trains the nets of MNIST whose weights ship with the package; seeded, on the CPU, minutes. Only
the teacher uses labels.

    python tools/reference_weights.py          # all: VAEs with 2 and 16 latent dimensions, the
    contrastive encoder, the teacher
    python tools/reference_weights.py 2        # one (2, 16, encoder, teacher)

Writes deffi_lab/assets/{vae_mnist_<latent>,encoder_mnist,teacher_mnist}.safetensors (float16, the
teacher float32), with what was reached.
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deffi_lab.core.step import drain, make_generator
from deffi_lab.data.images import mnist, unit
from deffi_lab.methods.latent.train import LatentKnobs, TrainVAE
from deffi_lab.methods.selection.teacher import Teacher
from deffi_lab.nets.classify import predict
from deffi_lab.nets.contrast import Encoder, train_encoder
from deffi_lab.nets.vae import VAE, elbo, latents, whiten
from deffi_lab.numeric.neighbours import nearest

ASSETS = Path(__file__).resolve().parents[1] / "deffi_lab/assets"
WIDTH, SEED, BATCH, LR = 320, 0, 256, 3e-3
EPOCHS = {2: 60, 16: 30}


@torch.no_grad()
def measure(vae: VAE, x: torch.Tensor) -> dict[str, float]:
    "Test-set loss, recon and KL, nats a sample, one draw of z each from a fixed seed"
    g, total = make_generator(0), torch.zeros(3)
    for part in x.split(1000):
        x01 = unit(part)
        logits, mu, logvar = vae(x01, g)
        total += torch.stack(elbo(logits, x01, mu, logvar)) * len(part)
    return dict(zip(("loss", "recon", "kl"), (round(float(v), 3) for v in total / len(x))))


def neighbour_accuracy(vae: VAE, data, n: int = 10000, k: int = 5) -> float:
    """Share of test images whose `k` nearest of `n`
    training images (whitened latent) vote for their class"""
    z = latents(vae, data.x[:n])
    w = whiten(z)
    near = (
        torch.cdist(w.apply(latents(vae, data.x_test)), w.apply(z)).topk(k, largest=False).indices
    )
    return round(float((data.y[:n][near].mode(1).values == data.y_test).float().mean()), 4)


def train(latent: int) -> None:
    "Trains, measures, writes"
    data, began = mnist(), time.perf_counter()
    method = TrainVAE(
        data.x,
        latent=latent,
        kind="mlp",
        width=WIDTH,
        epochs=EPOCHS[latent],
        seed=SEED,
        knobs=LatentKnobs(lr=LR, batch=BATCH),
    )
    steps = EPOCHS[latent] * math.ceil(len(data.x) / BATCH)
    for step in method:
        method.knobs.lr = max(1e-5, LR * 0.5 * (1 + math.cos(math.pi * step.index / steps)))
        if method.at_boundary and round(method.epoch) % 10 == 0:
            print(latent, round(method.epoch), measure(method.vae, data.x_test), flush=True)
    half = {k: v.half().contiguous() for k, v in method.vae.state_dict().items()}
    method.vae.load_state_dict({k: v.float() for k, v in half.items()})
    record = {
        "options": method.vae.options,
        "data": "MNIST, 60,000 training images",
        "command": f"python tools/reference_weights.py {latent}",
        "seed": SEED,
        "epochs": EPOCHS[latent],
        "batch": BATCH,
        "lr": LR,
        "schedule": "cosine to 0",
        "bf16": method.bf16,
        "torch": torch.__version__,
        "test": measure(method.vae, data.x_test),
        "test_5nn_accuracy": neighbour_accuracy(method.vae, data),
    }
    out = Path(__file__).resolve().parents[1] / f"deffi_lab/assets/vae_mnist_{latent}.safetensors"
    save_file(half, out, metadata={"record": json.dumps(record)})
    print(
        out.name,
        out.stat().st_size,
        "bytes",
        record["test"],
        record["test_5nn_accuracy"],
        f"{time.perf_counter() - began:.0f} s",
    )


def train_contrast(seed: int = SEED, out: Path = ASSETS / "encoder_mnist.safetensors") -> None:
    "Trains the contrastive encoder, measures, writes"
    data, began, steps = mnist(), time.perf_counter(), 2800
    encoder = Encoder(generator=make_generator(seed))
    for step, loss in enumerate(
        train_encoder(encoder, data.x, steps=steps, generator=make_generator(seed))
    ):
        if step % 400 == 0:
            print("encoder", step, round(loss, 3), flush=True)
    half = {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in encoder.state_dict().items()
    }
    encoder.load_state_dict({k: v.float() for k, v in half.items()})
    z, far = (
        F.normalize(predict(encoder.features, x), dim=1) for x in (data.x[:10000], data.x_test)
    )
    vote = data.y[nearest(far, z, 5)[1]].mode(1).values
    record = {
        "options": encoder.options,
        "data": "MNIST, 60,000 training images, no labels",
        "steps": steps,
        "command": "python tools/reference_weights.py encoder",
        "seed": seed,
        "torch": torch.__version__,
        "test_5nn_accuracy": round(float((vote == data.y_test).float().mean()), 4),
    }
    save_file(half, out, metadata={"record": json.dumps(record)})
    print(
        out.name,
        out.stat().st_size,
        "bytes",
        record["test_5nn_accuracy"],
        f"{time.perf_counter() - began:.0f} s",
    )


def train_teacher(out: Path = ASSETS / "teacher_mnist.safetensors") -> None:
    "Trains the labelling tool on all training labels, counts its errors, writes"
    teacher, began = Teacher(mnist(), steps=1500), time.perf_counter()
    drain(teacher.prepare())
    record = {
        "options": {"channels": 1, "size": 28, "n_classes": 10, "width": teacher.WIDTH},
        "data": "MNIST, 60,000 training images and labels",
        "command": "python tools/reference_weights.py teacher",
        "steps": teacher.steps,
        "seed": teacher.seed,
        "torch": torch.__version__,
        "confidence": teacher.confidence,
        "test_error_of_answers": round(teacher.error, 4),
        "test_rejected": round(teacher.rejected, 4),
    }
    weights = {k: v.contiguous() for k, v in teacher.net.state_dict().items()}
    save_file(weights, out, metadata={"record": json.dumps(record)})
    print(out.name, out.stat().st_size, "bytes", record, f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["16", "2", "encoder", "teacher"]:
        if name == "encoder":
            train_contrast()
        elif name == "teacher":
            train_teacher()
        else:
            train(int(name))
