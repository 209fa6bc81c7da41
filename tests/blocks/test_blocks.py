"The pyramid of blocks, its loss, augmentation and scores: by hand, against MONAI, bad input, CUDA"

import math

import pytest
import torch
from monai.metrics import compute_dice

from deffi_lab.core.step import make_generator
from deffi_lab.nets.augment import augment_scans
from deffi_lab.nets.blocks import Blocks, State, onehot, scan_loss
from deffi_lab.nets.score import nested_sums, scores
from deffi_lab.numeric.regrid import pooled

SMALL = {"widths": (6, 5, 4, 4), "depth": 1, "look": 3}


def discs(n=4, size=32, dims=2):
    at = torch.stack(torch.meshgrid(*[torch.arange(float(size))] * dims, indexing="ij"))
    label = [
        sum(((at - size * (0.4 + 0.05 * i)).norm(dim=0) < size * f).byte() for f in (0.3, 0.2, 0.1))
        for i in range(n)
    ]
    return torch.stack(label)


def shaken(net, seed=0):
    "Heads that start at zero say nothing: give them weights"
    with torch.no_grad():
        for b in net.blocks:
            b.head.weight.normal_(0, 0.3, generator=make_generator(seed))
    return net


# Labels


def test_pooled_labels_are_shares_by_hand():
    label = torch.tensor([[[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 3, 3], [0, 0, 3, 3]]]).byte()
    share = pooled(onehot(label), 2)
    assert share[0, :, 0, 0].tolist() == [0.5, 0.5, 0, 0] and share[0, :, 0, 1].tolist() == [
        0,
        0,
        0.5,
        0.5,
    ]
    assert share[0, :, 1, 0].tolist() == [1, 0, 0, 0] and share[0, :, 1, 1].tolist() == [0, 0, 0, 1]
    assert nested_sums(share)[0, :, 0, 1].tolist() == [1, 1, 0.5]  # WT, TC, ET


@pytest.mark.parametrize("dims", [2, 3])
def test_pooling_keeps_sums_and_nesting(dims):
    share = onehot(discs(dims=dims))
    for scale in (1, 2, 4, 8):
        p = pooled(share, scale)
        torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
        torch.testing.assert_close(p.flatten(2).mean(2), share.flatten(2).mean(2))
        wt, tc, et = nested_sums(p).unbind(1)
        assert (wt >= tc - 1e-6).all() and (tc >= et - 1e-6).all()


def test_bad_labels_and_sides_are_named():
    with pytest.raises(ValueError, match="levels 0..3"):
        onehot(torch.full((1, 4, 4), 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one label at least"):
        onehot(torch.zeros(0, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cannot be divided by 8.*padded"):
        pooled(torch.zeros(1, 2, 12, 16), 8)
    with pytest.raises(ValueError, match="cannot be divided by 8"):
        Blocks(**SMALL)(torch.zeros(1, 2, 36, 36))


# Loss


def test_the_loss_is_least_at_the_label_also_for_shares():
    share = pooled(onehot(discs()), 4)
    logits = share.clamp(min=1e-6).log().requires_grad_()
    at = scan_loss(logits, share)
    entropy = -(share * share.clamp(min=1e-6).log()).sum(1).mean()
    assert float(at.detach()) == pytest.approx(float(entropy), abs=2e-3)  # Dice adds nothing there
    for seed in range(5):
        off = logits.detach() + 0.3 * torch.randn(logits.shape, generator=make_generator(seed))
        assert float(scan_loss(off, share)) > float(at.detach()) + 1e-3


def test_the_loss_is_defined_where_levels_are_absent():
    for label in (torch.zeros(2, 16, 16), torch.ones(2, 16, 16)):
        logits = torch.randn(2, 4, 16, 16, generator=make_generator(0)).requires_grad_()
        loss = scan_loss(logits, onehot(label.byte()))
        loss.backward()
        assert math.isfinite(loss.item()) and torch.isfinite(logits.grad).all()
        sure = 20 * (onehot(label.byte()) - 0.5)
        assert float(scan_loss(sure, onehot(label.byte()))) < loss.item()


# The network


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scales", [(8, 4, 2, 1), (4, 2, 1, 1), (1, 1, 1, 1)])
def test_shapes_and_zero_heads(dims, scales):
    net = Blocks(scales=scales, **SMALL, dims=dims)
    states = net(torch.rand(2, 2, *[16] * dims))
    assert [tuple(s.logits.shape) for s in states] == [(2, 4, *[16 // k] * dims) for k in scales]
    assert all(not s.logits.any() for s in states)  # nothing said before learning
    assert len(net(torch.rand(2, 2, *[16] * dims), upto=2)) == 2


def test_each_block_corrects_the_one_before():
    net, image = (
        shaken(Blocks(**SMALL)).eval(),
        torch.rand(2, 2, 32, 32, generator=make_generator(0)),
    )
    states = net(image)
    with torch.no_grad():
        net.blocks[3].head.weight.zero_()
    raised = torch.nn.functional.interpolate(states[2].logits, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(net(image)[3].logits, raised)
    below = None
    for b, want in enumerate(states[:3]):
        below = net.run(b, image, below)
        assert torch.equal(below.logits, want.logits)


def test_detached_links_stop_gradients_and_others_do_not():
    image = torch.rand(2, 2, 32, 32, generator=make_generator(0))
    for detach in (False, True):
        net = shaken(Blocks(**SMALL))
        net(image, detach=detach)[-1].logits.square().sum().backward()
        reached = {
            b
            for b in range(4)
            if any(p.grad is not None and p.grad.any() for p in net.blocks[b].parameters())
        }
        assert reached == ({3} if detach else {0, 1, 2, 3})


def test_without_carried_features_only_maps_go_up():
    net = shaken(Blocks(**SMALL, carry=0)).eval()
    image = torch.rand(1, 2, 32, 32, generator=make_generator(0))
    below = net(image, upto=1)[-1]
    a, b = (net.run(1, image, State(below.logits, f)) for f in (below.features, below.features + 9))
    assert torch.equal(a.logits, b.logits)
    wide = shaken(Blocks(**SMALL)).eval()
    a, b = (
        wide.run(1, image, State(below.logits, f)) for f in (below.features, below.features + 9)
    )
    assert not torch.equal(a.logits, b.logits)


def test_seeds_and_the_callers_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = Blocks(**SMALL, seed=1), Blocks(**SMALL, seed=1), Blocks(**SMALL, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters())]
    assert all(same) and not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters()))


@pytest.mark.parametrize(
    "kw",
    [
        {"scales": (4, 8), "widths": (4, 4)},
        {"scales": (6, 4), "widths": (4, 4)},
        {"scales": (2, 1), "widths": (4,)},
        {"scales": (), "widths": ()},
    ],
)
def test_bad_pyramids_are_named(kw):
    with pytest.raises(ValueError, match="coarse first"):
        Blocks(**kw)


def test_bad_norms_and_states_are_named():
    with pytest.raises(ValueError, match="'batch' or 'instance'"):
        Blocks(**SMALL, norm="group")
    net = Blocks(**SMALL)
    with pytest.raises(ValueError, match="the first block has none"):
        net.over(1, torch.zeros(1, 2, 16, 16))


# Augmentation


@pytest.mark.parametrize("dims", [2, 3])
def test_images_and_labels_move_together(dims):
    label = discs(3, 24, dims)
    image = torch.stack([label >= 1, label >= 2], 1).float()
    a, share = augment_scans(image, onehot(label), make_generator(0), expose=0.0)
    torch.testing.assert_close(share.sum(1), torch.ones_like(share[:, 0]))
    assert float(share.min()) >= -1e-5
    torch.testing.assert_close(
        a, nested_sums(share)[:, :2], atol=1e-4, rtol=0
    )  # the same map for both
    assert float((share - onehot(label)).abs().max()) > 0.5


def test_asked_for_nothing_augmentation_only_flips():
    label = discs(6, 24)
    image = torch.rand(6, 2, 24, 24, generator=make_generator(1))
    a, share = augment_scans(image, onehot(label), make_generator(0), 0, 0, 0, 0)
    kinds = set()
    for i in range(6):
        gaps = [float((a[i] - v).abs().max()) for v in (image[i], image[i].flip(-1))]
        kinds.add(gaps.index(min(gaps)))
        assert min(gaps) < 1e-3
    assert kinds == {0, 1}


def test_augmentation_repeats_and_names_bad_input():
    image, share = torch.rand(2, 2, 16, 16), onehot(discs(2, 16))
    a, b = (augment_scans(image, share, make_generator(3)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    with pytest.raises(ValueError, match="the same n and sides"):
        augment_scans(image, share[..., :8])
    with pytest.raises(ValueError, match="ranges of 0 or more"):
        augment_scans(image, share, zoom=-1.0)


# Scores


def test_scores_by_hand_and_against_monai():
    true, predicted = discs(4), discs(4).roll(3, -1)
    result = scores(onehot(predicted), true)
    for r in range(3):
        a, b = predicted > r, true > r
        both = (a & b).flatten(1).sum(1)
        torch.testing.assert_close(
            result.dice[:, r], 2 * both / (a.flatten(1).sum(1) + b.flatten(1).sum(1))
        )
        torch.testing.assert_close(result.sensitivity[:, r], both / b.flatten(1).sum(1))
    regions = lambda label: torch.stack([label > r for r in range(3)], 1).float()
    torch.testing.assert_close(result.dice, compute_dice(regions(predicted), regions(true)))


def test_absent_regions_are_defined():
    none, core = torch.zeros(1, 8, 8).byte(), torch.zeros(1, 8, 8).byte()
    core[0, 2:5, 2:5] = 2
    assert scores(onehot(none), none).dice.tolist() == [[1.0, 1.0, 1.0]]
    assert scores(onehot(core), none).dice.tolist() == [[0.0, 0.0, 1.0]]
    result = scores(onehot(none), core)
    assert result.dice.tolist() == [[0.0, 0.0, 1.0]]
    assert result.sensitivity[0, :2].tolist() == [0.0, 0.0] and math.isnan(result.sensitivity[0, 2])


@pytest.mark.cuda
@pytest.mark.parametrize("dims", [2, 3])
def test_cuda_agrees_with_cpu(dims):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net, label = shaken(Blocks(**SMALL, dims=dims)).eval(), discs(2, 16, dims)
    image = torch.rand(2, 2, *[16] * dims, generator=make_generator(0))
    there = Blocks(**SMALL, dims=dims).cuda().eval()
    there.load_state_dict(net.state_dict())
    for a, b in zip(net(image), there(image.cuda())):
        torch.testing.assert_close(a.logits, b.logits.cpu(), rtol=1e-3, atol=1e-3)
    share = onehot(label)
    torch.testing.assert_close(
        scan_loss(net(image)[-1].logits, share),
        scan_loss(there(image.cuda())[-1].logits, share.cuda()).cpu(),
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(
        scores(share, label).dice, scores(share.cuda(), label.cuda()).dice.cpu()
    )
