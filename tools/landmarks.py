"""Places a few hundred MNIST images by UMAP in the latent space of the shipped 16-D VAE; seeded, on
the CPU.

python tools/landmarks.py        # writes deffi_lab/assets/landmarks_mnist_16.safetensors
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from deffi_lab.data.images import mnist
from deffi_lab.methods.latent.chart import umap_chart
from deffi_lab.nets.vae import latents, reference_vae

FIT, KEEP, SEED = 6000, 500, 0

if __name__ == "__main__":
    data = mnist()
    index = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(SEED))[:FIT]
    chart = umap_chart(latents(reference_vae(16), data.x[index]), seed=SEED)
    out = Path(__file__).resolve().parents[1] / "deffi_lab/assets/landmarks_mnist_16.safetensors"
    save_file(
        {"index": index[:KEEP].int(), "xy": chart.xy[:KEEP].contiguous()},
        out,
        metadata={
            "made_by": "tools/landmarks.py",
            "fitted": str(FIT),
            "kept": str(KEEP),
            "seed": str(SEED),
        },
    )
    print(out.name, out.stat().st_size, "bytes")
