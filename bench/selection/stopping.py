"""What it costs to follow the advice to stop: MNIST, 20 seeds, a linear classifier on the shipped
VAE's latents.

50 random labels a round up to 3,000; the stop set is 1,000 images that are never labelled. Best is
the smallest
budget within half a percent of the run's last accuracy.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.stopping import Stopper, StoppingKnobs, regret
from deffi_lab.nets.vae import latents, reference_vae
from deffi_lab.study.intervals import estimate

SEEDS, BUDGETS = 20, list(range(50, 3001, 50))


def runs():
    "(logits on the stop set, test accuracies) of each seed"
    data, vae = mnist(), reference_vae(16)
    z, z_test = (latents(vae, x) for x in (data.x, data.x_test))
    for seed in range(SEEDS):
        order = torch.randperm(len(z), generator=make_generator(seed))
        watched, order = order[:1000], order[1000:]
        outs, acc = [], []
        for n in BUDGETS:
            net = LogisticRegression(max_iter=500).fit(z[order[:n]], data.y[order[:n]])
            outs.append(torch.tensor(net.decision_function(z[watched])))
            acc.append(float(net.score(z_test, data.y_test)))
        yield outs, acc


def rows():
    "Regret in labels of kappa at 0.99 (the published threshold) and 0.98, against never stopping"
    stops = {0.99: [], 0.98: []}
    for outs, acc in runs():
        for agreement, into in stops.items():
            s = Stopper(StoppingKnobs(agreement=agreement))
            stop = next((n for n, o in zip(BUDGETS, outs) if s.update(o).stop), None)
            into.append((regret(BUDGETS, acc, stop), regret(BUDGETS, acc, None)))
    for agreement, pairs in stops.items():
        ours, never = np.array([r.labels for r, _ in pairs]), np.array([r.labels for _, r in pairs])
        e = estimate(np.abs(ours))
        saved, lost = np.mean([r.saved for r, _ in pairs]), np.mean([r.accuracy for r, _ in pairs])
        name = "stopping_regret" if agreement == 0.99 else f"stopping_regret_{agreement}"
        yield dict(
            name=name,
            ours=float(np.abs(ours).mean()),
            peer=float(never.mean()),
            unit="labels off the best point",
            ratio=float(never.mean() / max(np.abs(ours).mean(), 1e-9)),
            effect="speedup",
            interval="ci95",
            low=float(never.mean() / e.high),
            high=float(never.mean() / max(e.low, 1e-9)),
            n=len(pairs),
            note=f"mean {ours.mean():+.0f} labels against best, {saved:.0f} of {BUDGETS[-1]} "
            f"saved, accuracy lost "
            f"{lost:.4f}, advice in {sum(r.advised for r, _ in pairs)} of {len(pairs)}; "
            "peer: never stopping",
        )


if __name__ == "__main__":
    for row in rows():
        print(row)
