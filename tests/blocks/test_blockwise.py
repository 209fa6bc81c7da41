"""Training block by block: what is frozen, what is out of
fold, resuming, memory, bad input; the rivals on the same loop"""

from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deffi_lab.core.run import Run
from deffi_lab.core.step import make_generator
from deffi_lab.core.store import load_state
from deffi_lab.methods.blocks import train as blockwise
from deffi_lab.methods.blocks.train import (
    MODES,
    BlockKnobs,
    Phase,
    TrainBlocks,
    assign_folds,
    block_loss,
    crops,
    raised,
    reference,
    softened,
    whole_loss,
)
from deffi_lab.nets.blocks import Blocks, State, onehot, scan_loss
from deffi_lab.nets.memory import saved_bytes
from deffi_lab.numeric.regrid import pooled

SMALL = {"widths": (6, 5, 4, 4), "depth": 1, "look": 3}


@dataclass
class Scans:
    image: torch.Tensor
    label: torch.Tensor
    subject: list


def targets(n=6, size=32, dims=2, seed=0, subjects=3, levels=3):
    "Nested discs (balls) at random places, each level a little brighter in its own modality"
    g = make_generator(seed)
    at = torch.stack(torch.meshgrid(*[torch.arange(float(size))] * dims, indexing="ij"))
    centre = size * (0.35 + 0.3 * torch.rand(n, dims, generator=g))
    r = (at[None] - centre.view(n, dims, *[1] * dims)).norm(dim=1)
    label = sum((r < size * f).byte() for f in (0.3, 0.2, 0.12)[:levels])
    image = torch.stack([(label >= 2) + 0.5 * (label >= 3), (label >= 1).float()], 1) * 0.5 + 0.2
    return Scans(
        image + 0.05 * torch.randn(image.shape, generator=g),
        label,
        [f"s{i % subjects}" for i in range(n)],
    )


def made(mode="greedy", train=None, knobs=(), **kw):
    small = {} if mode == "unet" else SMALL
    return TrainBlocks(
        train or targets(),
        mode=mode,
        knobs=BlockKnobs(**{"steps": 3, "batch": 2} | dict(knobs)),
        channels=(4, 8, 8),
        **small | kw,
    )


def weights(m):
    return {k: v.clone() for k, v in m.net.state_dict().items()}


# What learns, and what does not


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_greedy_changes_one_block_at_a_time_and_never_a_finished_one(norm):
    m = made(knobs={"polish": 2}, norm=norm)
    before, phase = weights(m), None
    for step in m:
        after = weights(m)
        changed = {k.split(".")[1] for k in after if not torch.equal(before[k], after[k])}
        if step.phase == "polish":
            assert changed == {"0", "1", "2", "3"}
        elif step.phase == "done":
            assert not changed
        else:
            assert (
                changed == {str(m.active)} == {str(int(step.phase[6]) - 1)}
            )  # statistics of batches included
        before, phase = after, step.phase
    assert phase == "done" and m.active is None and m.trained == 4
    assert not m.net.training and not any(p.requires_grad for p in m.net.parameters())


def test_no_gradient_reaches_a_frozen_block():
    net, data = Blocks(**SMALL), targets()
    loss = block_loss(
        [net],
        Phase("", 2, 0, 1),
        data.image,
        onehot(data.label),
        torch.zeros(6, dtype=torch.int64),
        0.5,
    )
    loss.backward()
    have = {k for k, p in net.named_parameters() if p.grad is not None}
    assert have and all(k.split(".")[1] == "2" for k in have)


def test_whole_losses_by_hand():
    net, data = Blocks(**SMALL).eval(), targets()
    with torch.no_grad():  # a head that starts at zero says nothing yet
        for block in net.blocks:
            block.head.weight.normal_(0, 0.3, generator=make_generator(0))
    share = onehot(data.label)
    each = [scan_loss(s.logits, pooled(share, k)) for s, k in zip(net(data.image), net.scales)]
    weight = torch.tensor([1.0, 2, 4, 8]) / 15
    torch.testing.assert_close(
        whole_loss(net, data.image, share, "joint"), (torch.stack(each) * weight).sum()
    )
    torch.testing.assert_close(whole_loss(net, data.image, share, "end to end"), each[-1])
    torch.testing.assert_close(
        whole_loss(net, data.image, share, "at once"), (torch.stack(each) * weight).sum()
    )


def test_at_once_has_the_gradients_of_each_block_alone():
    net, data = Blocks(**SMALL).eval(), targets()
    share, none = onehot(data.label), torch.zeros(6, dtype=torch.int64)
    whole_loss(net, data.image, share, "at once").backward()
    for b in range(4):
        got = [p.grad.clone() for p in net.blocks[b].parameters()]
        other = Blocks(**SMALL).eval()
        block_loss([other], Phase("", b, 0, 1), data.image, share, none).backward()
        for g, p in zip(got, other.blocks[b].parameters()):
            torch.testing.assert_close(g, p.grad * 2.0**b / 15)


@pytest.mark.parametrize("mode", MODES)
def test_all_ways_learn_nested_discs(mode):
    train, test = targets(12, seed=1), targets(8, seed=2)
    m = made(mode, train, {"steps": 60 if mode == "greedy" else 120, "batch": 4, "lr": 1e-2})
    for _ in m:
        pass
    result = m.measure(test)
    assert result.dice.shape == ((1 if mode == "unet" else 4), 8, 3)
    assert float(result.dice[-1].mean()) > 0.75, (mode, result.dice.mean(1))
    assert float(result.sensitivity[-1].nanmean()) > 0.7


def test_three_dimensions():
    m = made(
        train=targets(3, 16, dims=3),
        knobs={"polish": 1},
        scales=(4, 2, 1),
        widths=(4, 4, 4),
        folds=3,
        tile=8,
    )
    assert [s.phase for s in m][-1] == "done"
    assert [tuple(p.shape[2:]) for p in m.predict(m.train.image)] == [(4,) * 3, (8,) * 3, (16,) * 3]
    assert m.measure(targets(2, 16, dims=3)).dice.shape == (3, 2, 3)


def test_shares_are_shares_and_only_of_blocks_that_began():
    m = made(every=2, test=targets(3, seed=4))
    for step in m:
        predicted = m.predict(m.train.image)
        assert len(predicted) == m.trained
        for s, scale in zip(predicted, m.scales):
            assert s.shape == (6, 4, 32 // scale, 32 // scale)
            torch.testing.assert_close(s.sum(1), torch.ones_like(s[:, 0]))
    assert [len(c["dice"]) for c in m.curve] == sorted(len(c["dice"]) for c in m.curve) and m.curve[
        -1
    ]["index"] == m.index


# References


def test_folds_keep_subjects_together():
    fold = assign_folds([f"s{i % 4}" for i in range(20)], 3, make_generator(0))
    assert set(fold.tolist()) == {1, 2, 3}
    for s in range(4):
        assert len(set(fold[s::4].tolist())) == 1
    assert assign_folds(["a"] * 5, 2, make_generator(0)).bincount().tolist()[1:] in ([2, 3], [3, 2])
    assert assign_folds(["a"], 5, make_generator(0)).tolist() == [
        0
    ]  # one slice: nothing to leave out
    assert assign_folds(list("abc"), 9, make_generator(0)).max() == 3
    assert not assign_folds(list("abc"), 0, make_generator(0)).any()


def test_a_reference_never_comes_from_a_copy_that_saw_its_subject(monkeypatch):
    seen, true = [], blockwise.augment_scans
    m = made(folds=3, knobs={"steps": 8})

    def watched(image, share, g):
        which = [
            (image[j][None] == m.train.image).flatten(1).all(1).nonzero()[0, 0].item()
            for j in range(len(image))
        ]
        seen.append((m.phases[m.phase], which))
        return true(image, share, g)

    monkeypatch.setattr(blockwise, "augment_scans", watched)
    for _ in m:
        pass
    trained_on = {k: {i for p, which in seen if p.chain == k for i in which} for k in (1, 2, 3)}
    for k, rows in trained_on.items():
        assert rows and not {m.train.subject[i] for i in rows} & {
            m.train.subject[i] for i in (m.fold == k).nonzero()[:, 0]
        }
    assert {i for p, which in seen if p.chain == 0 for i in which} == set(range(6))


def test_references_come_from_the_net_of_each_scans_fold():
    nets = [Blocks(**SMALL, seed=k).eval() for k in range(3)]
    for k, net in enumerate(nets):
        for block in net.blocks:
            torch.nn.init.normal_(block.head.weight, generator=make_generator(k))
    data, fold = targets(), torch.tensor([1, 2, 2, 1, 1, 2])
    got = reference(nets, 2, data.image, fold)
    for i in range(6):
        with torch.no_grad():
            want = nets[int(fold[i])](data.image[i : i + 1], upto=2)[-1]
        torch.testing.assert_close(got.logits[i : i + 1], want.logits, rtol=1e-4, atol=1e-5)
    assert not got.logits.requires_grad
    alone = reference(nets[:1], 2, data.image, torch.zeros(6, dtype=torch.int64))
    with torch.no_grad():
        assert torch.equal(alone.logits, nets[0](data.image, upto=2)[-1].logits)


def test_softening_weakens_on_average_and_repeats():
    below = State(torch.full((400, 4, 4, 4), 3.0), torch.ones(400, 10, 4, 4))
    assert softened(below, 0.0) is below
    soft, again = (softened(below, 0.4, make_generator(0)) for _ in range(2))
    assert torch.equal(soft.logits, again.logits) and torch.equal(soft.features, again.features)
    assert float(soft.logits.mean()) == pytest.approx(3 * 0.8, abs=0.05)
    assert float(soft.features.mean()) == pytest.approx(1, abs=0.03) and set(
        soft.features.unique().tolist()
    ) == {0.0, 1.25}
    means = soft.logits.mean((1, 2, 3))
    assert float(means.min()) < 2.2 and float(means.max()) > 2.6


# Pieces


def test_crops_are_where_their_corners_say():
    x = torch.arange(2 * 3 * 6 * 8.0).view(2, 3, 6, 8)
    got = crops(x, torch.tensor([[1, 4], [2, 0]]), 4)
    assert torch.equal(got[0], x[0, :, 1:5, 4:8]) and torch.equal(got[1], x[1, :, 2:6, 0:4])


def test_a_piece_as_large_as_the_image_is_the_image():
    a, b = made(), made(tile=32)
    for _ in a:
        pass
    for _ in b:
        pass
    for k, v in weights(a).items():
        torch.testing.assert_close(v, weights(b)[k])


# Work and memory


def test_finished_blocks_stand_still_in_a_run_taken_up_again():
    first = made(norm="batch")
    for _, step in zip(range(7), first):
        pass  # two blocks are done, the third has learnt a step
    again = made(norm="batch")
    again.load_state_dict(first.state_dict())
    before = weights(again)
    next(iter(again))
    changed = {k.split(".")[1] for k, v in weights(again).items() if not torch.equal(before[k], v)}
    assert again.active == 2 and changed == {"2"} and not again.net.blocks[0].training


@pytest.mark.parametrize("mode", MODES)
def test_counted_memory_is_what_a_real_step_saves(mode, monkeypatch):
    monkeypatch.setattr(
        "deffi_lab.core.train.bf16_is_fast", lambda device: False
    )  # counted in float32
    m = made(mode, knobs={"polish": 1})
    for phase in m.phases:
        m.enter(phase)
        m.step = 0
        with saved_bytes() as s:
            m.learn(phase)
        assert s.peak == m.memory[phase.name], phase.name


def test_work_is_what_a_real_step_does():
    m = made()
    phase = m.phases[2]
    m.enter(phase)
    m.cost(phase)  # counted before, so that it is not counted along
    with FlopCounterMode(display=False) as flops:
        m.learn(phase)
    assert (
        m.work == m.cost(phase) == pytest.approx(flops.get_total_flops(), rel=1e-3)
    )  # but for augmentation


def test_a_greedy_step_keeps_less_than_a_joint_one_and_pieces_less_still():
    train = targets(4, 96)

    def peak(**kw):
        m = TrainBlocks(train, knobs=BlockKnobs(batch=4), **kw)
        return max(m.cost(p) and m.memory[p.name] for p in m.phases)

    joint = peak(mode="joint")
    assert peak() < 0.75 * joint and peak(tile=48) < 0.4 * joint
    flat = {"scales": (1, 1, 1, 1), "widths": (16, 16, 16, 16)}
    assert peak(**flat) < 0.35 * peak(mode="joint", **flat)


def test_a_budget_is_kept_by_all_modes():
    for mode in MODES:
        m = made(mode, knobs={"steps": 50, "polish": 20}, budget=4e8, tile=16)
        assert sum(m.cost(p) * p.steps for p in m.phases) == pytest.approx(4e8, rel=0.15), mode
    steps = [p.steps for p in made(knobs={"steps": 40}, pace=(4, 2, 1, 0.5)).phases]
    assert steps == [160, 80, 40, 20]


# Resuming


@pytest.mark.parametrize(
    "mode,kw", [("greedy", {"folds": 2, "knobs": {"polish": 2}}), ("joint", {}), ("unet", {})]
)
@pytest.mark.parametrize("stop", [2, 7])
def test_killed_and_resumed_ends_the_same(tmp_path, mode, kw, stop):
    def start():
        return Run(made(mode, test=targets(3, seed=5), every=2, **kw))

    whole = start()
    whole.run()
    first = start()
    done = 0
    while done < stop or not first.method.at_boundary:
        first.run(1)
        done += 1
    first.save(tmp_path / "run.safetensors")
    second = start()
    second.load(tmp_path / "run.safetensors")
    second.run()
    assert second.status == "finished", second.error
    a, b = whole.method, second.method
    for k, v in weights(a).items():
        assert torch.equal(v, weights(b)[k]), k
    assert a.losses == b.losses and a.work == b.work
    assert [c["dice"] for c in a.curve] == [c["dice"] for c in b.curve]


def test_each_block_is_saved_when_it_ends(tmp_path):
    m = made(checkpoint=tmp_path)
    for _ in m:
        pass
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == [f"phase_{k:02d}.safetensors" for k in range(1, 5)]
    other = made()
    other.load_state_dict(load_state(files[1]))
    assert other.active == 2 and other.step == 0
    for _ in other:
        pass
    assert other.losses == m.losses
    with pytest.raises(ValueError, match="same scans, mode and knobs"):
        made("joint").load_state_dict(load_state(files[1]))
    with pytest.raises(ValueError, match="another net"):
        made(widths=(6, 5, 4, 6)).load_state_dict(load_state(files[1]))


def test_reset_and_seeds():
    m = made()
    for _ in m:
        pass
    first = m.losses
    m.reset()
    assert not m.losses and m.index == 0
    for _ in m:
        pass
    assert m.losses == first
    other = made(seed=1)
    for _ in other:
        pass
    assert other.losses != first


# Bad input


def test_bad_scans_are_named():
    good = targets()
    with pytest.raises(ValueError, match=r"divided by 8.*padded\(8\)"):
        made(train=Scans(good.image[..., :30], good.label[..., :30], good.subject))
    with pytest.raises(ValueError, match="1 scan or more"):
        made(train=Scans(good.image[:0], good.label[:0], []))
    with pytest.raises(ValueError, match="one label a pixel"):
        made(train=Scans(good.image, good.label[:, :8], good.subject))
    broken = good.image.clone()
    broken[4, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="scan 4 .*not finite"):
        made(train=Scans(broken, good.label, good.subject))
    with pytest.raises(ValueError, match="levels are 0..3"):
        made(train=Scans(good.image, good.label + 2, good.subject))


@pytest.mark.parametrize(
    "kw,words",
    [
        ({"mode": "lazy"}, "choose one"),
        ({"tile": 40}, "up to 32"),
        ({"widths": (4, 4)}, r"one width \(and one depth\) a scale"),
    ],
)
def test_bad_settings_are_named(kw, words):
    with pytest.raises(ValueError, match=words):
        made(**kw)


def test_knobs_have_ranges():
    with pytest.raises(ValueError, match="lr"):
        made(knobs={"lr": 5.0})


@pytest.mark.parametrize("mode", ["greedy", "joint", "unet"])
def test_one_scan_and_absent_levels_are_defined(mode):
    lone = targets(1, levels=1)  # oedema alone: no core, nothing enhancing
    assert int(lone.label.max()) == 1
    m = made(mode, lone, folds=3)
    for _ in m:
        pass
    assert m.folds == 0 and torch.isfinite(torch.tensor(m.losses)).all()
    result = m.measure(targets(2))
    assert torch.isfinite(result.dice).all()
    nothing = Scans(lone.image, torch.zeros_like(lone.label), lone.subject)
    m = made(mode, nothing)
    for _ in m:
        pass
    assert (
        torch.isfinite(torch.tensor(m.losses)).all()
        and torch.isnan(m.measure(nothing).sensitivity).all()
    )


def test_maps_are_raised_to_the_image():
    x = torch.rand(1, 4, 4, 4)
    assert raised(x, (4, 4)) is x and raised(x, (16, 16)).shape == (1, 4, 16, 16)
    assert raised(x[..., None].expand(1, 4, 4, 4, 4), (8, 8, 8)).shape == (1, 4, 8, 8, 8)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
def test_cuda_agrees_with_cpu(mode):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data, share = targets(), None
    share = onehot(data.label)
    losses = []
    for device in ("cpu", "cuda"):
        there = Scans(data.image.to(device), data.label.to(device), data.subject)
        m = made(mode, there, {"soften": 0.0})
        fold = torch.zeros(6, dtype=torch.int64, device=device)
        losses.append(float(m.loss(m.nets, m.phases[-1], there.image, share.to(device), fold)))
        for _ in m:
            pass
        assert (
            torch.isfinite(torch.tensor(m.losses)).all()
            and m.predict(there.image)[-1].device.type == device
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
