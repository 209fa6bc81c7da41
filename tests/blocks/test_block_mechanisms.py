"Each idea of training by blocks by itself: a test that fails where the idea is taken out"

import math

import pytest
import torch
from test_blockrace import discs, small
from test_blocks import shaken
from test_blockwise import SMALL, made, targets

from deffi_lab.core.step import make_generator
from deffi_lab.methods.blocks import train as blockwise
from deffi_lab.methods.blocks.train import Phase, block_loss, reference, rise_and_fall, softened
from deffi_lab.nets.blocks import Blocks, State, onehot, scan_loss
from deffi_lab.nets.score import scores
from deffi_lab.numeric.regrid import pooled


def picture(n=2, size=32):
    return torch.rand(n, 2, size, size, generator=make_generator(0))


# What goes up
def test_a_block_sees_the_map_from_below_besides_adding_to_it():
    net = shaken(Blocks(**SMALL, carry=0)).eval()
    a, b = (torch.randn(2, 4, 8, 8, generator=make_generator(k)) for k in (1, 2))
    none = torch.zeros(2, 0, 8, 8)
    with torch.no_grad():
        added = [net.over(1, picture(), State(x, none)).logits - x for x in (a, b)]
    assert not torch.allclose(*added, atol=1e-3), "the correction depends on what it corrects"


def test_features_go_up_except_where_references_are_out_of_fold():
    assert made().net.carry == 8
    assert {net.carry for net in made(folds=3).nets} == {0}


def test_a_block_learns_over_the_reference_of_each_scans_fold():
    nets = [shaken(Blocks(**SMALL, carry=0), k).eval() for k in range(3)]
    data, fold = targets(), torch.tensor([1, 2, 2, 1, 1, 2])
    share = onehot(data.label)
    got = block_loss(nets, Phase("", 1, 0, 1), data.image, share, fold)
    below = nets[0].lifted(1, reference(nets, 1, data.image, fold))
    want = scan_loss(nets[0].over(1, data.image, below).logits, pooled(share, 4))
    torch.testing.assert_close(got, want)
    own = block_loss(nets, Phase("", 1, 0, 1), data.image, share, 0 * fold)
    assert abs(float((own - got).detach())) > 1e-3


def test_each_scan_of_a_batch_brings_its_fold(monkeypatch):
    monkeypatch.setattr(blockwise, "augment_scans", lambda image, share, rng: (image, share))
    m = made(folds=3)
    for phase in (m.phases[0], m.phases[1]):
        for _ in range(5):
            image, _, fold, _ = m.draw(phase, m.generator)
            same = (image[:, None] == m.train.image[None]).flatten(2).all(2)
            assert torch.equal(fold, m.fold[same.int().argmax(1)])
            assert (fold > 0).all() and not (fold == phase.chain).any()


def test_the_knob_softens_the_reference_while_a_block_learns():
    m = made()
    shaken(m.net)
    data, none = m.train, torch.zeros(6, dtype=torch.int64)

    def loss(soften):
        m.knobs.soften = soften
        how = dict(generator=make_generator(0))
        return float(m.loss(m.nets, m.phases[1], data.image, onehot(data.label), none, **how))

    plain = block_loss(m.nets, m.phases[1], data.image, onehot(data.label), none)
    with torch.no_grad():
        assert loss(0.0) == pytest.approx(float(plain), rel=1e-6)
        assert abs(loss(0.8) - float(plain)) > 1e-3


def test_softening_disturbs_each_map_smoothly():
    below = State(torch.zeros(50, 4, 16, 16), torch.zeros(50, 0, 16, 16))
    spread = {}
    for amount in (0.2, 0.8):
        noise = softened(below, amount, make_generator(0)).logits
        spread[amount] = float(noise.std())
        step = float((noise[..., 1:] - noise[..., :-1]).std())
        assert step < 0.8 * spread[amount], "smooth: neighbours are disturbed alike"
    assert spread[0.8] == pytest.approx(4 * spread[0.2], rel=1e-4) and 0.4 < spread[0.8] < 1.6


# What learns
def test_only_the_block_that_learns_keeps_gradients():
    m = made(knobs={"polish": 1})
    for phase in m.phases:
        m.enter(phase)
        wants = {k.split(".")[1] for k, p in m.net.named_parameters() if p.requires_grad}
        assert wants == (set("0123") if phase.block is None else {str(phase.block)})
        m.leave(phase)


def test_a_piece_shows_the_same_place_of_image_map_and_label(monkeypatch):
    "A net of scales 4 and 2 that shows what it is given: all three must agree on each piece"
    seen = []

    class Shown(Blocks):
        def forward(self, image, upto):
            return [State(pooled(image, 4), pooled(image, 4))]

        def lifted(self, b, below):
            return State(pooled(picture, 2), pooled(picture, 2))

        def over(self, b, image, below):
            seen.append((image, below))
            return below

    picture = torch.rand(3, 4, 32, 32, generator=make_generator(0))
    monkeypatch.setattr(blockwise, "scan_loss", lambda logits, share: (logits - share).abs().max())
    corner = torch.tensor([[0, 0], [3, 8], [8, 5]])
    none = torch.zeros(3, dtype=torch.int64)
    net, phase = Shown(scales=(4, 2), widths=(2, 2), depth=1), Phase("", 1, 0, 1)
    gap = block_loss([net], phase, picture, picture, none, tile=8, corner=corner)
    ((image, below),) = seen
    assert float(gap) < 1e-6 and image.shape == (3, 4, 16, 16)
    torch.testing.assert_close(pooled(image, 2), below.logits)
    torch.testing.assert_close(image[1], picture[1, :, 6:22, 16:32])


def test_the_polish_goes_gently_and_rates_rise_and_fall():
    m = made(knobs={"polish": 40, "steps": 40, "lr": 4e-3, "gentle": 0.25})
    assert m.phases[-1] == ("polish", None, 0, 40), "all blocks together, after the last"
    rates = []
    for phase in (m.phases[0], m.phases[-1]):
        m.enter(phase)
        rates.append([m.fit.rate])
        for _ in range(39):
            m.fit.optimiser.step()
            m.fit.schedule.step()
            rates[-1].append(m.fit.rate)
    first, polish = map(torch.tensor, rates)
    torch.testing.assert_close(polish, 0.25 * first)
    want = [4e-3 * min(1, (i + 1) / 20) * (1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)]
    torch.testing.assert_close(first, torch.tensor(want))
    assert rise_and_fall(0, 1000) == pytest.approx(1 / 20)


# The race
def test_a_race_of_blocks_measures_on_unseen_scans():
    train, unseen = discs(6), discs(3, seed=1)
    race, seen = small(train, unseen, rivals=(), labels=2), []

    def oedema_everywhere(image):
        seen.append(image)
        shares = torch.zeros(len(image), 4, *image.shape[2:])
        shares[:, 1] = 1
        return [shares]

    race.lanes["greedy"].predict = oedema_everywhere
    pieces = race.measure("greedy", race.lanes["greedy"])
    with pytest.raises(StopIteration) as end:
        while True:
            next(pieces)
    assert torch.equal(torch.cat(seen), torch.cat([unseen.image, train.image[:2]]))
    for key, label in (("dice", unseen.label), ("own", train.label[:2])):
        shares = torch.tensor([0.0, 1, 0, 0]).view(1, 4, 1, 1).expand(len(label), 4, 48, 48)
        torch.testing.assert_close(end.value.value[key], scores(shares, label).dice.mean(0)[None])


def test_rivals_learn_from_the_labels_that_were_asked_for():
    race = small(discs(6), discs(3, seed=1), labels=2, steps=2, polish=0)
    assert [len(lane.train) for lane in race.lanes.values()] == [2, 2, 2]
