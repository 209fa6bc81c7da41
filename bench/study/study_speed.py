"""The same study, by this library and as one writes it with scikit-activeml: seconds, and the
accuracy of both.

Three methods (random, margin, entropy) on MNIST: pool of 20,000, one network (`Target`), 300
minibatches of 64, AdamW with
a cosine, shifts of two pixels, dropout 0.1. The peer is the cycle of scikit-activeml's tutorials
around its
SkorchClassifier, in as many processes. Both sides run the same part of the study
(`SEEDS` x `BUDGETS`); the whole
one (20 seeds x 10 budgets) is the same rounds more often.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from deffi_lab.core.ledger import Ledger
from deffi_lab.core.step import make_generator
from deffi_lab.data.images import mnist
from deffi_lab.nets.classify import Target, shift, train_classifier
from deffi_lab.nets.ensemble import Ensemble, train_ensemble
from deffi_lab.study.protocol import FairRound, Recipe, named_rng, world
from deffi_lab.study.sweep import Sweep, tasks

RECIPE, BUDGETS, METHODS = (
    Recipe(pool=20_000, steps=300),
    (20, 100, 300, 1000),
    ("random", "margin", "entropy"),
)
SEEDS, PEER_SEEDS = 20, 2  # each of ours counts for as much as one of theirs


class PeerNet(Target):
    "`Target` with the recipe's shifts and dropout inside, as a wrapper of classifiers needs it"

    def forward(self, x):
        if self.training:
            x = shift(x)
        return self.head(F.dropout(self.features(x), RECIPE.dropout, self.training))


def peer_classifier(seed: int):
    """scikit-activeml's wrapper around the same network,
    optimiser, schedule and number of minibatches"""
    try:
        from skactiveml.classifier import SkorchClassifier
    except ImportError as e:
        raise ImportError("this bench needs: pip install deffi_lab[active] skorch") from e
    from skorch.callbacks import LRScheduler
    from torch.utils.data import DataLoader, RandomSampler

    def batches(dataset, batch_size, **_):
        if seed_of["training"]:
            return DataLoader(
                dataset,
                batch_size,
                sampler=RandomSampler(
                    dataset, replacement=True, num_samples=RECIPE.steps * batch_size
                ),
            )
        return DataLoader(dataset, batch_size)

    seed_of = {"training": True}
    cosine = LRScheduler(
        policy=torch.optim.lr_scheduler.CosineAnnealingLR, T_max=RECIPE.steps, step_every="batch"
    )
    how = dict(
        max_epochs=1,
        train_split=None,
        verbose=0,
        batch_size=RECIPE.batch,
        optimizer=torch.optim.AdamW,
        lr=RECIPE.lr,
        optimizer__weight_decay=1e-4,
        iterator_train=batches,
        iterator_valid=DataLoader,
        iterator_valid__batch_size=1000,
        callbacks=[cosine],
    )
    return SkorchClassifier(
        PeerNet, neural_net_param_dict=how, classes=list(range(10)), random_state=seed
    )


def peer_run(method: str, seed: int) -> list[float]:
    "One run of the usual cycle: fit, measure, query, label; returns its accuracies"
    from skactiveml.pool import RandomSampling, UncertaintySampling
    from skactiveml.utils import MISSING_LABEL

    data = mnist()
    i = torch.randperm(60_000, generator=make_generator(seed))[: RECIPE.pool]
    x, truth = (data.x[i].float() / 255).numpy(), data.y[i].numpy().astype(float)
    x_test, y_test = (data.x_test.float() / 255).numpy(), data.y_test.numpy()
    y = np.full(len(x), MISSING_LABEL)
    start = torch.randperm(len(x), generator=named_rng("start", seed))[: BUDGETS[0]].numpy()
    y[start] = truth[start]
    strategy = (
        RandomSampling(random_state=seed)
        if method == "random"
        else UncertaintySampling(
            method={"margin": "margin_sampling", "entropy": "entropy"}[method], random_state=seed
        )
    )
    out = []
    for n, goal in zip(BUDGETS, (*BUDGETS[1:], None)):
        torch.manual_seed(seed)
        clf = peer_classifier(seed).fit(x, y)
        out.append(float((clf.predict(x_test) == y_test).mean()))
        if goal is None:
            break
        more = dict(clf=clf, fit_clf=False) if method != "random" else {}
        flat = x if method != "random" else x.reshape(len(x), -1)
        picks = strategy.query(X=flat, y=y, batch_size=goal - n, **more)
        y[picks] = truth[picks]
    return out


def alone() -> None:
    torch.set_num_threads(1)
    world("mnist", RECIPE, "cpu")


def nothing(_: int) -> int:
    time.sleep(0.2)
    return 0


def processor_time() -> float:
    """Seconds of the processor that this process and its workers have spent"""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children()))


def ours() -> tuple[float, dict]:
    """Seconds of the processor for our study in two worker
    processes that are up, and the final accuracies of each method"""
    plan = tasks(["mnist"], METHODS, BUDGETS, seeds=range(SEEDS), group=10)
    with (
        TemporaryDirectory() as folder,
        Ledger(Path(folder) / "l", "speed") as ledger,
        ProcessPoolExecutor(2, get_context("spawn"), alone) as executor,
    ):
        list(executor.map(nothing, range(4)))
        before = processor_time()
        Sweep(FairRound(RECIPE, "cpu"), plan, ledger).run(executor, progress=False)
        seconds, c = processor_time() - before, ledger.columns()
    last = c["labels"] == BUDGETS[-1]
    return seconds, {m: c["value"][last & (c["method"] == m)] for m in METHODS}


def peers() -> tuple[float, dict]:
    """Seconds of the processor for the usual cycle in two worker
    processes that are up, and the final accuracies"""
    plan = [(m, seed) for m in METHODS for seed in range(PEER_SEEDS)]
    with ProcessPoolExecutor(2, get_context("spawn"), alone) as executor:
        list(executor.map(nothing, range(4)))
        before = processor_time()
        curves = list(executor.map(peer_run, *zip(*plan)))
        seconds = processor_time() - before
    last = {m: [c[-1] for (name, _), c in zip(plan, curves) if name == m] for m in METHODS}
    return seconds, {m: np.array(values) for m, values in last.items()}


def passes_alone(members: int = 10, steps: int = 30) -> float:
    """Seconds a point of the networks' own passes on images that lie ready: no augmentation, no
    optimiser, no choice of labels, no ledger."""
    data = mnist()
    nets = [Target(generator=make_generator(s)) for s in range(members)]
    joined, x = Ensemble(nets).train(), data.x[: RECIPE.batch].float().div(255)
    x = x.expand(members, *x.shape).transpose(0, 1).contiguous()
    unseen = data.x_test.float() / 255
    looks = sum(m != "random" for m in METHODS) / len(METHODS) * (len(BUDGETS) - 1) / len(BUDGETS)
    images = len(unseen) + looks * RECIPE.pool  # how many a point predicts
    training, predicting = [], []
    for _ in range(3):
        t = time.process_time()
        for _ in range(steps):
            joined(x).sum().backward()
        training.append((time.process_time() - t) / steps / members * RECIPE.steps)
        t = time.process_time()
        with torch.no_grad():
            for part in unseen.split(1000):
                nets[0].eval()(part)
        predicting.append((time.process_time() - t) / len(unseen) * images)
    return min(training) + min(predicting)


def ensemble_rows(members: int = 10, steps: int = 60) -> list[dict]:
    "Ten nets as one, one after the other, and by torch.func.vmap"
    data, seeds = mnist(), range(members)
    parts = [torch.randperm(60_000, generator=make_generator(s))[:100] for s in seeds]
    x, y = [data.x[i] for i in parts], [data.y[i] for i in parts]
    made = lambda: [Target(generator=make_generator(s)) for s in seeds]
    g = lambda: [make_generator(s) for s in seeds]

    def one_by_one():
        for net, a, b, r in zip(made(), x, y, g()):
            for _ in train_classifier(net, a, b, steps=steps, lr=1e-2, generator=r, chunk=steps):
                pass

    def joined():
        for _ in train_ensemble(Ensemble(made()), x, y, g(), steps=steps):
            pass

    def mapped():
        from torch.func import functional_call, stack_module_state, vmap

        p, b = stack_module_state(made())
        p, base, r = (
            {k: v.detach().requires_grad_() for k, v in p.items()},
            Target().to("meta").train(),
            g(),
        )
        opt = torch.optim.AdamW(p.values(), lr=1e-2, weight_decay=1e-4, fused=True)
        loss = lambda p, b, x, y: F.cross_entropy(functional_call(base, (p, b), (x,)), y)
        for _ in range(steps):
            i = [torch.randint(len(a), (64,), generator=k) for a, k in zip(x, r)]
            xs = torch.stack([shift(a[j].float() / 255, k) for a, j, k in zip(x, i, r)])
            opt.zero_grad()
            vmap(loss)(p, b, xs, torch.stack([b_[j] for b_, j in zip(y, i)])).sum().backward()
            opt.step()

    spent = {f: [] for f in (one_by_one, joined, mapped)}
    for k in range(6):
        for f, into in spent.items():
            t = time.process_time()
            f()
            if k:
                into.append(time.process_time() - t)
    out = []
    for name, peer in (("ensemble_speed", one_by_one), ("ensemble_vs_vmap", mapped)):
        r = np.array(spent[peer]) / np.array(spent[joined])
        out.append(
            {
                "name": name,
                "ours": float(np.median(spent[joined])) / members,
                "unit": "s a net",
                "peer": float(np.median(spent[peer])) / members,
                "ratio": float(np.median(r)),
                "effect": "speedup",
                "interval": "range",
                "low": float(r.min()),
                "high": float(r.max()),
                "n": len(r),
                "note": f"{members} nets, {steps} minibatches of 64, 1 thread",
            }
        )
    return out


def rows() -> list[dict]:
    "One row for the study, two for the ensemble"
    seconds, reached = ours()
    peer, theirs = peers()
    peer *= SEEDS / PEER_SEEDS
    words = "; ".join(
        f"{m} {reached[m].mean():.3f} +-{2.09 * reached[m].std(ddof=1) / SEEDS**0.5:.3f} and "
        f"{theirs[m].mean():.3f} ({theirs[m].min():.3f}..{theirs[m].max():.3f})"
        for m in METHODS
    )
    points = len(METHODS) * len(BUDGETS) * SEEDS
    bare = passes_alone()
    return [
        {
            "name": "study_speed",
            "ours": seconds / points,
            "peer": peer / points,
            "unit": "CPU s a point",
            "ratio": peer / seconds,
            "effect": "speedup",
            "n": points,
            "note": f"per point, {SEEDS} seeds x {len(BUDGETS)} budgets of ours (two processes) "
            f"against {PEER_SEEDS} seeds of theirs (two processes as well, one thread each); "
            f"accuracy at 1,000 labels, ours and theirs: {words}",
        },
        {
            "name": "study_speed_limit",
            "ours": bare,
            "peer": peer / points,
            "unit": "CPU s a point",
            "ratio": peer / points / bare,
            "effect": "speedup",
            "n": 3,
            "note": "the forward and backward passes of the same networks alone, on images that "
            "lie ready: what would be left if all else cost nothing, so no study with this network "
            f"is faster; the study spends {bare / (seconds / points):.0%} of its time in them",
        },
        *ensemble_rows(),
    ]


if __name__ == "__main__":
    for row in rows():
        print(row)
