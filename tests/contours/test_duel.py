"Tracer and U-Net on one clock: who goes next, scores, clicks, bad input"

from itertools import count

import pytest
import torch

from deffi_lab.core.run import Run
from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.methods.contours.clicks import first_click
from deffi_lab.methods.contours.duel import MOST, TracingKnobs, TracingRace


def duel(hearts, labels=2, agents=20, step: float = 0.1, **how) -> TracingRace:
    "A race on a clock of its own: each step takes `step` seconds, however busy the machine is"
    ticks = count()
    knobs = TracingKnobs(labels=labels, agents=agents)
    return TracingRace(hearts, knobs, clock=lambda: step * next(ticks), **how)


@pytest.fixture(scope="module")
def hearts():
    return phantom(MOST + 3, seed=6)


def test_both_get_the_same_seconds_and_are_scored_alike(hearts):
    race = duel(hearts, labels=3, steps=400, step=0.25)
    assert race.unclosed == (0, 0)
    steps = iter(race)
    while len(race.scores["U-Net"]) < 2:
        next(steps)
        seconds = [s.seconds for s in race.spent.values()]
        assert max(seconds) - min(seconds) <= 0.25, "nobody is ahead by more than a step"
    assert seconds == [2.0, 2.0]
    for name in (race.ORBIT, race.LEVEL, race.UNET):
        assert [t for t, _, _ in race.curves[name]] == [1.0, 2.0]
        assert all(0 <= mean <= 1 and error >= 0 for _, mean, error in race.curves[name])
    failed, tried = race.unclosed
    assert 0 <= failed <= tried == 3 * 32


def test_the_rival_ends_with_its_schedule_and_is_measured_once_more(hearts):
    race = duel(hearts, steps=3)
    for step in race:
        if race.spent["tracer"].turns == 6:
            break
    assert race.ended == {"U-Net"} and race.spent["U-Net"].turns == 3
    assert len(race.scores["U-Net"]) == 1, "it has ended before its first measurement was due"


def test_it_learns_without_touching_the_unseen(hearts):
    race = duel(hearts, labels=5, rival=False)
    seen = [bytes(x.numpy().tobytes()) for x in race.train.image]
    assert (
        not any(bytes(x.numpy().tobytes()) in seen for x in race.unseen.image)
        and len(race.train) == 5
    )
    run = Run(race, name="duel").run(200)
    assert (
        run.status in ("paused", "idle", "finished")
        and race.tracer.losses[-1] < 0.8 * race.tracer.losses[0]
    )
    first = race.tracer.losses[:5]
    race.reset()
    assert race.tracer.losses == [] and all(v == [] for v in race.curves.values())
    for _, _ in zip(range(5), race):
        pass
    assert race.tracer.losses == pytest.approx(first, rel=1e-4)  # the same seed, the same weights


def test_clicks_add_up_until_forgotten(hearts):
    race = duel(hearts, rival=False)
    at = first_click(race.true[:1], make_generator(0), 0.0)[0]
    race.field = type(race.field)(
        race.field.f, race.true[:1], torch.stack(torch.gradient(race.true[0]))[[1, 0]][None]
    )  # a tracer that knows the truth
    race.click(*at.tolist())
    assert race.traced.closed and race.overlap() > 0.9 and len(race.clicks) == 1
    race.click(*first_click(race.true[:1], make_generator(1), 0.0)[0].tolist())
    assert len(race.clicks) == 2 and race.overlap() > 0.9
    with pytest.raises(ValueError, match="outside the image"):
        race.click(500.0, 3.0)
    assert (
        len(race.clicks) == 2 and race.traced.closed
    )  # a click beside the picture changes nothing
    race.look()
    race.show(1)
    assert race.clicks == [] and race.traced is None and race.shown == 1


@pytest.mark.parametrize("n", [5, 23])
def test_a_race_taken_up_again_ends_alike(hearts, tmp_path, n):
    make = lambda: duel(hearts, steps=12, step=0.25)
    at = first_click(make().true[1:2], make_generator(0), 0.0)[0].tolist()

    def on(run: Run, steps: int) -> list:
        out = []
        run.on_frame = lambda s: out.append((s.index, s.phase, s.metrics))
        run.run(steps)
        return out

    run = Run(make())
    run.run(n)
    while not run.method.at_boundary:
        run.run(1)
    run.method.show(1)
    run.method.click(*at)
    run.save(tmp_path / "duel.safetensors")
    again = Run(make())
    again.load(tmp_path / "duel.safetensors")
    a, b = run.method, again.method
    assert torch.equal(a.traced.mask, b.traced.mask) and b.shown == 1 and b.clicks == a.clicks
    assert on(run, 25) == on(again, 25)
    assert a.scores == b.scores and a.spent == b.spent and a.curves["U-Net"]
    assert torch.equal(a.p, b.p) and torch.equal(a.field.f, b.field.f)
    assert all(map(torch.equal, a.trails, b.trails)) and len(a.trails) == len(b.trails) > 4


def test_a_state_of_another_race_is_refused_and_changes_nothing(hearts):
    race = duel(hearts, steps=300)
    for _ in zip(range(4), race):
        pass
    race.show(1)
    state = race.state_dict()
    with pytest.raises(ValueError, match="with a U-Net: use rival=True"):
        duel(hearts, rival=False).load_state_dict(state)
    with pytest.raises(ValueError, match="unseen slice 1 of .* here are 1 of"):
        duel(hearts.take(range(MOST + 1)), steps=300).load_state_dict(state)
    other = duel(hearts, steps=200)
    before = [v.clone() for lane in other.lanes.values() for v in lane.net.parameters()]
    with pytest.raises(ValueError, match="'steps': 300.*'steps': 200"):
        other.load_state_dict(state)
    after = [v for lane in other.lanes.values() for v in lane.net.parameters()]
    assert all(map(torch.equal, before, after)) and other.shown == 0 and other.index == 0
    with pytest.raises(ValueError, match="2.*3"):
        duel(hearts, labels=3, steps=300).load_state_dict(state)
    old = {"tracer": {}, "unet": {}, "clock": {"tracer": 1.0}}
    with pytest.raises(ValueError, match="saved by an older version"):
        other.load_state_dict(old)


def test_too_few_slices_are_refused(hearts):
    with pytest.raises(ValueError, match=f"20 slices: {MOST + 1} at least"):
        TracingRace(hearts.take(range(20)))
    with pytest.raises(ValueError, match="labels=0"):
        TracingRace(hearts, TracingKnobs(labels=0))


@pytest.mark.cuda
def test_on_a_gpu(hearts):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    race = TracingRace(hearts.to("cuda"), TracingKnobs(labels=3, agents=20), steps=100)
    for _ in zip(range(60), race):
        pass
    race.click(*first_click(race.true[:1], make_generator(0, "cuda"), 0.0)[0].tolist())
    race.show(1)
    assert race.p.is_cuda and 0 < list(race.score(race.UNET))[-1].index
