"One training loop: against a loop by hand, schedules, precision, resuming, a live rate, bad input"

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from deffi_lab.core import train as train_module
from deffi_lab.core.run import Run
from deffi_lab.core.step import Step, bf16_is_fast, make_generator
from deffi_lab.core.store import load_state, save_state
from deffi_lab.core.train import Fit, cosine, full_precision, one_cycle, shares

STEPS, LR = 12, 0.02


def net(seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return made.to(dtype)


def batch(generator, n=32, dtype=torch.float32):
    x = torch.randn(n, 5, generator=generator).to(dtype)
    return x, (x[:, :3].argmax(1))


def fit(seed=0, model=None, **how):
    model = net(seed) if model is None else model
    how = {"steps": STEPS, "lr": LR, "bf16": False, "generator": make_generator(seed)} | how
    batches = how.pop("batches", batch)
    return Fit(model, lambda b: F.cross_entropy(model(b[0]), b[1]), batches, **how)


def losses(steps):
    return [step.metrics["loss"] for step in steps]


def by_hand(make_schedule=None, make_optimiser=torch.optim.AdamW, clip=None, bf16=False, **how):
    model, g, out = net().train(), make_generator(0), []
    optimiser = make_optimiser(model.parameters(), lr=LR, weight_decay=0.01, fused=True, **how)
    schedule = make_schedule and make_schedule(optimiser)
    for _ in range(STEPS):
        x, y = batch(g)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        if schedule:
            schedule.step()
        out.append(float(loss.detach()))
    return out, model


def rise(step):
    return min(1.0, (step + 1) / 5)


SCHEDULES = {
    "none": (None, None),
    "cosine": (cosine(STEPS), lambda o: CosineAnnealingLR(o, STEPS)),
    "one cycle": (
        one_cycle(STEPS, 0.3),
        lambda o: OneCycleLR(o, LR, STEPS + 1, pct_start=0.3),
    ),
    "shares": (shares(rise), lambda o: LambdaLR(o, rise)),
    "any of torch": (lambda o: StepLR(o, 4), lambda o: StepLR(o, 4)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_gives_the_losses_of_a_loop_by_hand(name):
    ours, theirs = SCHEDULES[name]
    trained = fit(schedule=ours, weight_decay=0.01)
    expected, model = by_hand(theirs)
    assert losses(trained) == expected and len(set(expected)) == STEPS
    assert all(map(torch.equal, trained.net.state_dict().values(), model.state_dict().values()))
    assert not trained.net.training


@pytest.mark.parametrize("how", [{"optimiser": "adam"}, {"clip": 0.05}])
def test_optimiser_and_clipping_are_those_of_torch(how):
    kind = {"adam": torch.optim.Adam}.get(how.get("optimiser"), torch.optim.AdamW)
    expected, _ = by_hand(make_optimiser=kind, clip=how.get("clip"))
    assert losses(fit(weight_decay=0.01, **how)) == expected != by_hand()[0]


def test_it_is_a_method_that_a_run_drives():
    run = Run(fit(chunk=5), name="fit").run(10)
    assert run.status == "finished" and run.last.index == STEPS and run.last.phase == "train"


def test_a_chunk_is_the_mean_of_its_steps():
    each, chunks = losses(fit()), list(fit(chunk=5))
    assert [s.index for s in chunks] == [5, 10, 12] and isinstance(chunks[0], Step)
    means = [sum(part) / len(part) for part in (each[:5], each[5:10], each[10:])]
    assert losses(chunks) == pytest.approx(means, rel=1e-6)


def test_more_metrics_and_a_loss_that_is_reported_otherwise():
    model = net()

    def loss(b):
        out = F.cross_entropy(model(b[0]), b[1])
        return 7 * out, {"loss": out, "norm": model[0].weight.norm()}

    step = next(iter(Fit(model, loss, batch, generator=make_generator(0), bf16=False)))
    assert step.metrics["loss"] == losses(fit(steps=1))[0] and step.metrics["norm"] > 0


# Precision
@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_only_where_it_is_fast(fast, monkeypatch):
    monkeypatch.setattr(train_module, "bf16_is_fast", lambda device: fast)
    seen = []

    def loss(b):
        out = model(b[0])
        with full_precision(b[0]):
            seen.append((out.dtype, (b[0] @ b[0].T).dtype))
        return out.float().square().mean()

    model = net()
    next(iter(Fit(model, loss, batch, generator=make_generator(0))))
    assert seen == [(torch.bfloat16 if fast else torch.float32, torch.float32)]


def test_bfloat16_gives_the_losses_of_autocast_by_hand():
    assert losses(fit(bf16=True, weight_decay=0.01)) == by_hand(bf16=True)[0]
    assert fit(bf16=None).bf16 == bf16_is_fast("cpu")


def test_float64_keeps_its_precision():
    model = net(dtype=torch.float64)
    double = fit(model=model, bf16=None, batches=lambda g: batch(g, dtype=torch.float64))
    assert not double.bf16 and losses(double) == pytest.approx(losses(fit()), rel=1e-3)
    assert model[0].weight.dtype == torch.float64
    with pytest.raises(ValueError, match="bf16=True with float64"):
        fit(model=net(dtype=torch.float64), bf16=True)


# Resuming
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["function", "list"])
def test_killed_and_resumed_with_the_same_bits(name, kind, tmp_path):
    fixed = [batch(make_generator(i)) for i in range(5)]
    how = {"schedule": SCHEDULES[name][0], "batches": batch if kind == "function" else fixed}
    straight = fit(**how)
    expected = losses(straight)
    first, second = fit(**how), fit(seed=3, **how)
    begun = losses(s for _, s in zip(range(7), first))
    save_state(tmp_path / "fit.safetensors", first.state_dict())
    losses(first)  # goes on: what was saved must not change with it
    second.load_state_dict(load_state(tmp_path / "fit.safetensors"))
    assert begun + losses(second) == expected
    pairs = zip(straight.net.state_dict().values(), second.net.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    assert second.index == STEPS and second.rate == straight.rate


def test_a_state_in_memory_stays_while_training_goes_on():
    first, second = fit(schedule=cosine(STEPS)), fit(seed=3, schedule=cosine(STEPS))
    for _ in zip(range(5), first):
        pass
    state = first.state_dict()
    rest = losses(first)
    second.load_state_dict(state)
    assert losses(second) == rest


def test_several_generators_and_bare_parameters_resume():
    def made(seed):
        w = nn.Parameter(torch.zeros(4))
        generators = [make_generator(seed), make_generator(seed + 1)]

        def draw(gs):
            return torch.stack([torch.randn(4, generator=g) for g in gs])

        return Fit([w], lambda x: (x - w).square().mean(), draw, steps=9, generator=generators)

    first, second, straight = made(0), made(5), losses(made(0))
    begun = losses(s for _, s in zip(range(4), first))
    second.load_state_dict(first.state_dict())
    assert begun + losses(second) == straight


def test_a_state_of_another_training_is_refused_and_changes_nothing():
    state = fit(schedule=cosine(STEPS)).state_dict()
    for other in (fit(), fit(schedule=cosine(9), steps=9), fit(schedule=cosine(9), generator=None)):
        before = [p.clone() for p in other.net.parameters()]
        with pytest.raises(ValueError, match="use the same"):
            other.load_state_dict(state)
        assert all(map(torch.equal, before, other.net.parameters()))
    small = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="another network"):
        fit(model=small, schedule=cosine(STEPS)).load_state_dict(state)


# A live learning rate
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_live_rate_scales_what_is_left_of_the_schedule(name):
    changed, steady = (fit(schedule=SCHEDULES[name][0]) for _ in range(2))
    rates = []
    for _ in zip(range(4), changed, steady):
        pass
    changed.lr = LR / 4
    for _ in zip(changed, steady):
        rates.append((changed.rate, steady.rate))
    assert all(a == pytest.approx(b / 4, rel=1e-9, abs=1e-12) for a, b in rates)
    assert changed.lr == LR / 4


def test_a_rate_set_to_itself_changes_no_bit():
    steady, touched = fit(schedule=one_cycle(STEPS)), fit(schedule=one_cycle(STEPS))
    out = []
    for step in touched:
        touched.lr = LR
        out.append(step.metrics["loss"])
    assert out == losses(steady)


def test_a_changed_rate_survives_a_state():
    first, second = fit(schedule=one_cycle(STEPS)), fit(schedule=one_cycle(STEPS))
    next(iter(first))
    first.lr = 0.005
    second.load_state_dict(first.state_dict())
    assert second.lr == 0.005 and losses(second) == losses(first)


# Bad input
@pytest.mark.parametrize(
    "how, words",
    [
        ({"lr": 0.0}, "lr=0.0: the learning rate is above 0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"steps": 0}, "steps=0, chunk=1: at least 1"),
        ({"chunk": 0}, "chunk=0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"optimiser": "sgd"}, "optimiser='sgd': choose one of"),
        ({"batches": []}, "batches: none left at step 1"),
        ({"batches": iter([batch(make_generator(0))])}, "none left at step 2"),
        ({"model": nn.ReLU()}, "0 parameters, none to train"),
        ({"model": nn.Linear(5, 3).requires_grad_(False)}, "2 parameters, none to train"),
    ],
)
def test_bad_input(how, words):
    with pytest.raises(ValueError, match=words):
        list(fit(**how))


def test_a_loss_must_be_one_number_of_the_parameters():
    model = net()
    with pytest.raises(ValueError, match=r"\[32\].*one number"):
        next(
            iter(Fit(model, lambda b: F.cross_entropy(model(b[0]), b[1], reduction="none"), batch))
        )
    with pytest.raises(ValueError, match="requires_grad=False"):
        next(iter(Fit(model, lambda b: b[0].mean(), batch)))


def test_a_bad_live_rate_is_refused():
    trained = fit(schedule=cosine(STEPS))
    with pytest.raises(ValueError, match="lr=0"):
        trained.lr = 0.0
    assert losses(trained) == losses(fit(schedule=cosine(STEPS)))


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_weights():
    model, count = net(), iter(range(99))

    def loss(b):
        value = F.cross_entropy(model(b[0]), b[1])
        return value * (math.nan if next(count) == 2 else 1.0)

    training = iter(Fit(model, loss, batch, lr=LR, generator=make_generator(0)))
    next(training), next(training)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="step 3: loss=nan.*lower the learning rate"):
        next(training)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_it_resumes_and_refuses_what_is_not_finite():
    def made(seed):
        model, g = net(seed).cuda(), make_generator(seed, "cuda")

        def draw(generator):
            x = torch.randn(32, 5, generator=generator, device="cuda")
            return x, x[:, :3].argmax(1)

        loss = lambda b: F.cross_entropy(model(b[0]), b[1])
        return Fit(model, loss, draw, steps=9, lr=LR, schedule=one_cycle(9), generator=g)

    first, second, straight = made(0), made(1), losses(made(0))
    begun = losses(s for _, s in zip(range(4), first))
    second.load_state_dict(first.state_dict())
    assert begun + losses(second) == straight
    model = net().cuda()
    bad = Fit(model, lambda x: model(x).mean() * math.nan, [torch.zeros(4, 5).cuda()])
    with pytest.raises(FloatingPointError, match="step 1: loss=nan"):
        next(iter(bad))
