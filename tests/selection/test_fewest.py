"The fewest-labels recipe: labels counted, questions, resuming, oracles that fail or cannot tell"

import copy

import pytest
import torch

from deffi_lab.core import train
from deffi_lab.core.machine import threads
from deffi_lab.core.pool import Pool
from deffi_lab.core.run import Run
from deffi_lab.core.step import make_generator
from deffi_lab.core.store import load_state, save_state
from deffi_lab.data.images import mnist
from deffi_lab.methods.selection.fewest import FewestKnobs, FewestLabels, doubtful_cover
from deffi_lab.nets.contrast import Encoder, reference_encoder

SCHEDULE = (10, 20, 40)
TOTALS = [6, 10, 15, 20, 32, 40]  # first, the schedule, lead and later of `method` below


@pytest.fixture(scope="module")
def data():
    return mnist()


def truth(data, n: int = 1000):
    return lambda i: data.y[:n][i]


def method(
    data,
    oracle=None,
    n: int = 1000,
    seed: int = 0,
    encoder=None,
    schedule=SCHEDULE,
    bf16=None,
    **more,
) -> FewestLabels:
    knobs = FewestKnobs(
        **(
            {
                "first": 6,
                "query": 5,
                "lead": 20,
                "later": 12,
                "among": 400,
                "train_steps": 12,
                "batch": 32,
            }
            | more
        )
    )
    pool = Pool(data.x[:n], oracle or truth(data, n), 10)
    encoder = encoder or Encoder(width=4, dims=32, out=8, generator=make_generator(3)).eval()
    return FewestLabels(
        pool,
        encoder,
        data.x_test[:500],
        data.y_test[:500],
        knobs,
        seed,
        schedule=schedule,
        truth=data.y[:n],
        bf16=bf16,
    )


def end(m: FewestLabels) -> FewestLabels:
    for _ in m:
        pass
    return m


def rounds(m: FewestLabels, n: int) -> FewestLabels:
    "`n` whole rounds"
    for step in m:
        if m.at_boundary:
            n -= 1
        if not n:
            return m


def test_a_named_precision_does_not_depend_on_the_processor(data, monkeypatch):
    named, left = {}, {}
    for fast in (False, True):
        monkeypatch.setattr(train, "bf16_is_fast", lambda device, fast=fast: fast)
        for bf16, out in ((False, named), (None, left)):
            with threads(1):
                m = end(method(data, schedule=(20,), bf16=bf16))
            out[fast] = torch.cat([p.detach().flatten() for p in m.net.parameters()])
    assert torch.equal(named[False], named[True]) and torch.equal(named[False], left[False])
    assert not torch.equal(left[False], left[True])


def equal(a: FewestLabels, b: FewestLabels) -> bool:
    return torch.equal(a.order, b.order) and a.curve == b.curve and a.spread == b.spread


@pytest.fixture(scope="module")
def whole(data):
    return end(method(data))


def test_each_label_is_counted_once_and_networks_are_measured_at_the_schedule(data):
    asked = []

    def oracle(i):
        asked.extend(i.tolist())
        return data.y[i]

    m = method(data, oracle)
    steps = list(m)
    assert asked == m.order.tolist() and len(set(asked)) == 40 == m.pool.asked == len(
        m.pool.labelled_indices
    )
    assert (
        [n for n, _ in m.curve] == list(SCHEDULE)
        and [n for n, _ in m.spread] == TOTALS
        and m.finished
    )
    assert all(0 <= a <= 1 for _, a in m.curve + m.spread)
    assert [s.index for s in steps] == list(range(1, len(steps) + 1))
    assert (
        sum(s.phase == "train" for s in steps) == 12 + 12 + 9 + 9
    )  # at 10, 20 (it leads from here), 32, 40
    assert [s.metrics["accuracy"] for s in steps if "accuracy" in s.metrics] == [
        a for _, a in m.curve
    ]
    assert {"graph", "query", "spread", "train", "evaluate", "look"} == {s.phase for s in steps}
    assert list(m) == []  # it has ended


def test_the_recipe_works_with_the_shipped_encoder(data):
    m = end(
        method(
            data,
            n=2000,
            encoder=reference_encoder(),
            schedule=(10, 40),
            lead=40,
            train_steps=40,
            lr=1e-3,
        )
    )
    assert (
        m.curve[-1][1] > 0.8
        and m.spread[-1][1] > 0.8 > 0.2 < m.spread[0][1]
        and m.spread[-1][1] > m.spread[0][1]
    )


def test_the_same_seed_is_the_same_run_and_the_encoder_stays_as_it_was(data, whole):
    encoder = Encoder(width=4, dims=32, out=8, generator=make_generator(3)).eval()
    before = copy.deepcopy(encoder.state_dict())
    m = end(method(data, encoder=encoder))
    assert equal(m, whole) and all(
        torch.equal(v, before[k]) for k, v in encoder.state_dict().items()
    )
    m.reset()
    assert m.pool.asked == 0 and not m.curve and not len(m.order)
    assert equal(end(m), whole) and not torch.equal(end(method(data, seed=1)).order, whole.order)


@pytest.mark.parametrize("stop", range(1, len(TOTALS)))
def test_saved_at_any_round_and_resumed_it_ends_the_same(data, whole, tmp_path, stop):
    first = rounds(method(data), stop)
    assert len(first.order) == TOTALS[stop - 1]
    save_state(tmp_path / "state", first.state_dict())
    second = method(data, seed=0, lr=1e-2)  # knobs come from the file
    second.load_state_dict(load_state(tmp_path / "state"))
    assert second.knobs == first.knobs and second.pool.asked == TOTALS[stop - 1]
    assert equal(end(second), whole)
    for k, v in second.net.state_dict().items():
        assert torch.equal(v, whole.net.state_dict()[k])


def test_another_seed_or_pool_is_refused(data, whole):
    with pytest.raises(ValueError, match="seed=0 was saved, this method has 1"):
        method(data, seed=1).load_state_dict(whole.state_dict())
    with pytest.raises(ValueError):
        method(data, n=500).load_state_dict(whole.state_dict())


def line(*at: float) -> torch.Tensor:
    return torch.tensor(at)[:, None]


def test_doubtful_cover_prefers_doubt_and_keeps_apart():
    z = line(0, 0.1, 0.2, 10, 10.1, 10.2, 20, 20.1, 20.2)
    doubt, everything, none = torch.ones(9), torch.arange(9), torch.zeros(0, dtype=torch.int64)
    picks = doubtful_cover(z, doubt, everything, none, 3, 0.1)
    assert sorted(picks.tolist()) == [1, 4, 7]  # the middle of each heap
    doubt[6:] = 5
    assert doubtful_cover(z, doubt, everything, none, 1, 0.1).tolist() == [7]
    assert sorted(doubtful_cover(z, doubt, everything, torch.tensor([7]), 2, 0.1).tolist()) == [
        1,
        4,
    ]
    doubt[:] = 1e-6
    doubt[2] = 1
    assert doubtful_cover(z, doubt, everything, none, 1, 0.05).tolist() == [2]
    among = torch.tensor([8, 0, 5])
    assert sorted(doubtful_cover(z, torch.ones(9), among, none, 3, 0.1).tolist()) == [0, 5, 8]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}"):
            doubtful_cover(z, torch.ones(9), among, none, k, 0.1)


def test_doubtful_cover_is_greedy_by_its_formula():
    g = make_generator(0)
    z, doubt, own = (
        torch.randn(40, 3, generator=g),
        torch.rand(40, generator=g),
        torch.tensor([3, 8]),
    )
    among = torch.tensor([i for i in range(40) if i not in (3, 8)])
    c = z[among].double()
    kernel = lambda a, b: (
        -0.5 * (torch.cdist(a, b) / (0.5 * torch.cdist(c, c).median())) ** 2
    ).exp()
    best, want = kernel(c, z[own].double()).amax(1), []
    for _ in range(4):
        gain = [
            float(doubt[among].double() @ torch.maximum(best, kernel(c, c[j : j + 1])[:, 0]))
            for j in range(38)
        ]
        j = max((j for j in range(38) if int(among[j]) not in want), key=gain.__getitem__)
        want.append(int(among[j]))
        best = torch.maximum(best, kernel(c, c[j : j + 1])[:, 0])
    assert doubtful_cover(z, doubt, among, own, 4, 0.5).tolist() == want


def test_points_that_are_all_equal_can_be_chosen_from():
    picks = doubtful_cover(
        torch.zeros(10, 2), torch.ones(10), torch.arange(10), torch.tensor([0]), 3, 0.5
    )
    assert len(set(picks.tolist())) == 3


def test_run_drives_it_saves_and_loads(data, whole, tmp_path):
    run = Run(method(data), checkpoint=tmp_path / "run").run()
    assert run.status == "finished" and equal(run.method, whole) and (tmp_path / "run").exists()
    part = Run(method(data))
    part.start()
    part.save(tmp_path / "part")
    part.close()
    other = Run(method(data))
    other.load(tmp_path / "part")
    assert len(other.method.order) < 40
    other.run()
    assert equal(other.method, whole)


def test_an_oracle_that_fails_is_reported_and_the_round_can_be_asked_again(data, whole):
    broken = [True]

    def oracle(i):
        if len(i) == 12 and broken:
            raise OSError("the line is dead")
        return data.y[i]

    run = Run(method(data, oracle))
    run.start()
    assert run.wait(60) == "failed" and "the line is dead" in run.error
    m = run.method
    assert m.pool.asked == 20 == len(m.order) and m.curve == whole.curve[:2]
    broken.clear()
    end(m)
    assert torch.equal(m.order, whole.order) and m.curve == whole.curve
    with pytest.raises(OSError):
        Run(method(data, lambda i: (_ for _ in ()).throw(OSError("no")))).run()


def test_samples_that_nobody_can_tell_are_counted_and_not_learnt_from(data):
    unclear = lambda i: torch.where(i % 3 == 0, -1, data.y[i])
    m = end(method(data, unclear, schedule=(10, 20)))
    assert (
        len(m.order) == 20
        and (m.order % 3 != 0).all()
        and m.pool.asked == 20 + int(m.pool.rejected.sum())
    )
    assert m.pool.rejected.any() and m.curve[-1][0] == m.pool.asked and len(m.curve) == 2
    with pytest.raises(ValueError, match="no label was given"):
        end(method(data, lambda i: torch.full_like(i, -1)))


def test_a_pool_can_be_bought_to_its_last_sample(data):
    m = end(method(data, n=60, schedule=(20, 60), train_steps=2))
    assert sorted(m.order.tolist()) == list(range(60)) and [n for n, _ in m.curve] == [20, 60]


def test_every_candidate_has_a_score_and_the_labelled_have_none(data):
    m, seen = method(data), set()
    for step in m:
        if step.phase != "query":
            continue
        own = set(m.order.tolist())
        scores, picks = m.selection.scores, set(m.selection.indices.tolist())
        assert picks == own - seen and torch.isfinite(scores[list(picks)]).all()
        assert set(torch.isnan(scores).nonzero()[:, 0].tolist()) == seen
        seen = own
    assert len(seen) == 40


@pytest.mark.parametrize(
    "schedule, match",
    [
        ((), "must rise"),
        ((20, 10), "must rise"),
        ((0, 5), "at least 1"),
        ((5, 5), "must rise"),
        ((5, 2000), "the pool has 1000 samples"),
    ],
)
def test_a_bad_schedule_is_refused(data, schedule, match):
    with pytest.raises(ValueError, match=match):
        method(data, schedule=schedule)


@pytest.mark.parametrize(
    "knob, value", [("first", 0), ("query", -1), ("train_steps", 0), ("lr", float("nan"))]
)
def test_bad_knobs_are_refused(data, knob, value):
    with pytest.raises(ValueError, match=knob):
        method(data, **{knob: value})


@pytest.mark.cuda
def test_it_runs_and_resumes_on_a_gpu(data):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moved = data.to("cuda")

    def make():
        return method(moved, encoder=reference_encoder("cuda"))

    a, b = end(make()), make()
    b.load_state_dict(rounds(make(), 4).state_dict())
    end(b)
    assert len(a.order) == len(b.order) == 40 == a.pool.asked and torch.equal(
        a.order[:20], b.order[:20]
    )
    here = end(method(data, encoder=reference_encoder(), schedule=(6,)))
    assert a.net[0][0].weight.is_cuda and a.spread[0][1] > here.spread[0][1] - 0.2
