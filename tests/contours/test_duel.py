"Tracer and U-Net on one clock: who goes next, scores, clicks, bad input"

import pytest
import torch

from deffi_lab.core.run import Run
from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.methods.contours.clicks import first_click
from deffi_lab.methods.contours.duel import MOST, TracingKnobs, TracingRace


@pytest.fixture(scope="module")
def hearts():
    return phantom(MOST + 3, seed=6)


def test_both_get_the_same_seconds_and_are_scored_alike(hearts):
    race = TracingRace(hearts, TracingKnobs(labels=3, agents=20), steps=400)
    steps = iter(race)
    while not (race.scores[race.UNET] and len(race.scores[race.ORBIT]) > 1):
        next(steps)
    assert race.clock["tracer"] > 0.5 and race.clock["U-Net"] > 0.5
    assert abs(race.clock["tracer"] - race.clock["U-Net"]) < 0.5 * max(race.clock.values()) + 0.5
    for name in (race.ORBIT, race.LEVEL, race.UNET):
        for seconds, mean, error in race.scores[name]:
            assert seconds > 0 and 0 <= mean <= 1 and error >= 0
    assert 0 <= race.failed <= race.tried == 3 * 32


def test_it_learns_without_touching_the_unseen(hearts):
    race = TracingRace(hearts, TracingKnobs(labels=5, agents=20), rival=False)
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
    assert race.tracer.losses == [] and all(v == [] for v in race.scores.values())
    for _, _ in zip(range(5), race):
        pass
    assert race.tracer.losses == pytest.approx(first, rel=1e-4)  # the same seed, the same weights


def test_clicks_add_up_until_forgotten(hearts):
    race = TracingRace(hearts, TracingKnobs(labels=2, agents=20), rival=False)
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


def test_a_race_taken_up_again_goes_on_alike(hearts, tmp_path):
    "Whose turn it is depends on seconds; what each learner does next does not"
    make = lambda data=hearts, rival=True: TracingRace(
        data, TracingKnobs(labels=2, agents=20), rival=rival, steps=300
    )
    first, again = make(), make()
    at = first_click(first.true[1:2], make_generator(0), 0.0)[0].tolist()
    run = Run(first)
    while not first.scores["U-Net"]:
        run.run(20)
    first.show(1)
    first.click(*at)
    run.save(tmp_path / "duel.safetensors")
    Run(again).load(tmp_path / "duel.safetensors")
    assert (
        again.scores == first.scores
        and again.clock == first.clock
        and again.shown == 1
        and again.index == first.index
    )
    assert (
        torch.equal(again.p, first.p)
        and torch.equal(again.field.f, first.field.f)
        and again.clicks == first.clicks
    )
    assert torch.equal(again.traced.mask, first.traced.mask)
    for name in ("tracer", "U-Net"):
        a, b = (
            [
                float(getattr(x, "metrics", {"loss": x})["loss"])
                for _, x in zip(range(5), race.learners[name])
            ]
            for race in (first, again)
        )
        assert a == b and len(set(a)) == 5
    state = first.state_dict()
    with pytest.raises(ValueError, match="with a U-Net: use rival=True"):
        make(rival=False).load_state_dict(state)
    with pytest.raises(ValueError, match="unseen slice 1 of .* here are 1 of"):
        make(hearts.take(range(MOST + 1))).load_state_dict(state)
    other = TracingRace(hearts, TracingKnobs(labels=2, agents=20), steps=200)
    before = [v.clone() for v in other.tracer.net.parameters()]
    with pytest.raises(ValueError, match="'steps': 300.*'steps': 200"):
        other.load_state_dict(state)
    assert all(map(torch.equal, before, other.tracer.net.parameters())), (
        "a refused state changes nothing"
    )
    with pytest.raises(ValueError, match="'images': 2.*'images': 3"):
        TracingRace(hearts, TracingKnobs(labels=3), steps=300).load_state_dict(state)


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
    assert race.p.is_cuda and 0 <= list(race.score())[-1].index
