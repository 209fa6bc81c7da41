"Each idea of the contours by itself: a test that fails where the idea is taken out"

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from shapes import shapes
from test_clicks import discs
from test_duel import duel
from test_labelling import circle

from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.methods.contours.clicks import (
    ClickHint,
    click_contour,
    hand_clicks,
    next_click,
)
from deffi_lab.methods.contours.duel import MOST
from deffi_lab.methods.contours.field import FlowKnobs, LabelDynamics, consistent, make_field
from deffi_lab.methods.contours.orbits import (
    Orbit,
    busiest,
    clusters,
    disc_return_map,
    orbits,
    outline,
    return_map,
    union_mask,
)
from deffi_lab.methods.contours.pairs import PairSampler
from deffi_lab.methods.contours.tracing import closing, learnt_field, pair_loss, walk_patchwise
from deffi_lab.nets.score import dice
from deffi_lab.nets.segment import field_loss, field_target
from deffi_lab.nets.tracer import TracerNet, scale_space
from deffi_lab.numeric.distance import signed_distance


def loop(x, y, side, turn=1, residual=0.0):
    "A closed orbit along a square, from x towards y where `turn` is 1"
    p = torch.tensor([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])
    return Orbit(p if turn > 0 else p.flip(0), 4 * side, 0.5, residual, True, "closed")


# The walk
def test_the_knob_of_noise_keeps_agents_off_the_boundary():
    def away(noise):
        method = LabelDynamics(shapes()["disc"], FlowKnobs(agents=300, noise=noise), seed=2)
        return list(islice(method, 60))[-1].metrics["distance"]

    assert away(0.0) < 0.1 and away(0.6) > 0.4


def test_agents_walk_on_a_distance_that_was_smoothed():
    mask = shapes()["square"]
    for smooth in (0.0, 1.2):
        method = LabelDynamics(mask, FlowKnobs(agents=1), smooth=smooth)
        assert torch.equal(method.phi, signed_distance(mask, smooth=smooth))
    assert not torch.equal(method.phi, signed_distance(mask))


@pytest.mark.parametrize("omega", [1.0, -1.0])
def test_a_return_crosses_the_section_the_way_it_left(omega):
    "With `near` beyond the diameter only the sense of crossing tells a half turn from a whole one"
    R, k = 40.0, 0.004
    c, f = circle(R, 128, k=k, omega=omega)
    s = torch.tensor([-8.0, 5.0, 9.0])
    place, normal = torch.tensor([c + R, c]), torch.tensor([1.0, 0.0])
    back = return_map(f[0], place, normal, s, turn=omega, near=500.0)
    torch.testing.assert_close(back, disc_return_map(s, R, k, omega), atol=0.02, rtol=0)


def test_a_thin_shape_is_not_closed_by_half_a_turn():
    "Its other side lies within the reach of the section and is crossed the other way"
    y, x = torch.meshgrid(torch.arange(48.0) - 24, torch.arange(96.0) - 48, indexing="ij")
    phi = torch.hypot((x.abs() - 30).clamp(min=0), y) - 4.0
    f = make_field(phi[None], k=0.5).f[0]
    orbit = orbits(f, torch.tensor([[48.0, 29.0]]), reach=20.0)[0]
    assert orbit.closed and orbit.length == pytest.approx(2 * 60 + 8 * math.pi, rel=0.05)


def test_a_strict_tolerance_takes_more_turns():
    c, f = circle(60, 192, k=0.002)
    ends = [
        orbits(f[0], torch.tensor([[c + 75, c]]), tol=t, reach=20.0, transient=0)[0]
        for t in (1.0, 0.01)
    ]
    off = [float(((o.points - c).norm(dim=1) - 60).abs().max()) for o in ends]
    assert off[1] < 0.02 < 0.1 < off[0] and ends[1].residual < 0.01


def test_slow_returns_are_not_closed_while_more_than_the_tolerance_is_left():
    "A turn takes off a fifth only: where two returns are half a pixel apart, two pixels are left"
    c, f = circle(60, 192, k=math.log(1.25) / (2 * math.pi * 60))
    how = dict(tol=0.5, reach=20.0, transient=0, limit=5e4)
    orbit = orbits(f[0], torch.tensor([[c + 70, c]]), **how)[0]
    assert orbit.closed and orbit.residual < 0.5
    assert float((orbit.points - c).norm(dim=1).mean()) - 60 < 0.6


def test_the_watched_orbit_closes_when_its_returns_agree():
    method = LabelDynamics(shapes()["disc"], FlowKnobs(k=0.005, agents=1), seed=1)
    method.place(64.0, 108.0)
    open_yet = 0
    for _ in islice(method, 2000):
        gap = abs(method.returns[-1] - method.returns[-2]) if len(method.returns) > 1 else math.inf
        assert (method.orbit is not None) == (gap < 0.05)
        open_yet += 0.05 < gap < math.inf
    assert open_yet and method.orbit.residual < 0.05


# From orbits to a mask
def test_an_orbit_against_the_rest_is_a_hole_only_inside_a_part():
    part, hole, stray = loop(10.0, 10.0, 30.0), loop(20.0, 20.0, 8.0, -1), loop(50.0, 50.0, 6.0, -1)
    mask, contours = union_mask([part, hole, stray], (64, 64))
    assert {(c.orbit is stray, c.hole, c.used) for c in contours} == {
        (False, False, True),
        (False, True, True),
        (True, True, False),
    }
    assert not mask[24, 24] and mask[12, 12] and not mask[52, 52]
    assert int(mask.sum()) == 30 * 30 - 8 * 8


def test_of_orbits_that_agree_the_best_stands_for_all():
    best = loop(10.2, 10.0, 30.0, residual=0.001)
    assert clusters([loop(10.0, 10.0, 30.0, residual=0.5), best, loop(40.0, 10.0, 9.0)])[0] == (
        best,
        2,
    )


def test_the_busiest_orbit_is_that_of_most_agents_not_the_largest():
    f = make_field(signed_distance(shapes()["two discs"], smooth=1.0)[None]).f[0]
    left = torch.tensor([[34.0, 64.0], [30.0, 60.0], [36.0, 60.0]])
    mask = busiest(outline(f, starts=torch.cat([left, torch.tensor([[96.0, 72.0]])])))
    assert mask[64, 34] and not mask[72, 94]


def test_a_path_that_crosses_the_other_way_has_not_come_back():
    "Three quarters of a turn around a thin shape: the other side is near, and crossed backwards"
    t = torch.linspace(0, 1.5 * math.pi, 200)
    thin = torch.stack([20 + 10 * t.cos(), 20 + t.sin()], 1)
    assert [o.reason for o in closing(thin[:, None])] == ["no return"]


# Pairs and the net
def test_zoom_scales_what_is_seen_and_the_distance_alike():
    "On a ramp the step from sample to sample is the zoom, and the distance is divided by it"
    x = torch.arange(80.0).expand(60, 80)
    sampler = PairSampler(x[None, None], (x - 40)[None], size=11, scales=(1,), far=1.0, sigma=9.0)
    pairs = sampler.draw(300, make_generator(0), zoom=0.4)
    clear = (pairs.at[:, 0] > 20) & (pairs.at[:, 0] < 60)
    seen = pairs.patches[clear, 0, 5]
    zoom = seen[:, 6] - seen[:, 5]
    assert zoom.min() < 0.7 and zoom.max() > 1.4
    want = ((pairs.at[clear, 0] - 40) / zoom / 9).tanh()
    torch.testing.assert_close(pairs.target[clear, 0], want, atol=1e-3, rtol=0)


def test_gain_changes_contrast_and_brightness_of_each_patch():
    flat = torch.cat([torch.zeros(20, 20), torch.ones(20, 20)], 1)
    sampler = PairSampler(flat[None, None], (torch.arange(40.0) - 19.5).expand(1, 20, 40), size=11)
    plain, changed = (sampler.draw(200, make_generator(1), gain=g).patches for g in (0.0, 0.3))
    assert float(plain.min()) == 0 and float(plain.max()) == 1
    low, high = changed.flatten(1).amin(1), changed.flatten(1).amax(1)
    edge = plain.flatten(1).amax(1) - plain.flatten(1).amin(1) > 0.999
    contrast = (high - low)[edge].log()
    assert 0.2 < float(contrast.std()) < 0.4 and 0.1 < float(low[edge].std()) < 0.2


def test_patches_are_turned_by_up_to_the_angle_asked_for():
    phi = discs((30, 34, 14))
    sampler = PairSampler(phi[None, None], phi[None], size=11)
    angle = {}
    for turn in (0.0, 0.5, 3.14):
        way = sampler.draw(500, make_generator(0), turn=turn).heading
        angle[turn] = torch.atan2(way[:, 1], way[:, 0])
    assert not angle[0.0].any() and 0.45 < float(angle[0.5].abs().max()) <= 0.5
    assert 1.6 < float(angle[3.14].std()) < 2.0


def test_coarser_scales_are_smoothed_before_they_are_read():
    image = torch.rand(1, 1, 40, 44, generator=make_generator(0))
    levels = scale_space(image, (1, 2, 3))[0]
    assert torch.equal(levels[0], image[0, 0])
    for level, sigma in zip(levels[1:], (1.0, 1.5)):
        want = gaussian_filter(image[0, 0].numpy(), sigma, mode="nearest")
        torch.testing.assert_close(level, torch.from_numpy(want), atol=1e-4, rtol=0)


def test_the_distance_that_a_net_predicts_is_squashed():
    net = TracerNet(size=11, width=4, generator=make_generator(0))
    with torch.no_grad():
        net.head[-1].weight.mul_(1e3)
        out = net.dense(torch.rand(1, 1, 16, 16, generator=make_generator(1)))
    assert float(out[:, 0].abs().max()) <= 1 < 10 < float(out[:, 1:].abs().max())


def test_a_learnt_field_takes_normals_that_fit_its_distance():
    phi = discs((30, 34, 14))[None]
    out = torch.randn(1, 3, 64, 72, generator=make_generator(0))
    out[:, 0] = (phi / 4).tanh()
    distance, field = learnt_field(out)
    assert torch.equal(field.normal, consistent(distance, out[:, 1:]))
    own = learnt_field(out, consistent=False)[1]
    torch.testing.assert_close(own.normal, F.normalize(out[:, 1:], dim=1))
    assert not torch.allclose(field.normal, own.normal, atol=0.1)


class Compass(TracerNet):
    "A net that says: on the boundary, which lies across the first axis of the patch"

    def forward(self, patches):
        return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(patches), 3)


def test_an_oriented_walk_turns_its_patches_along_the_last_step():
    "The normal lies along the heading, so each step goes a quarter turn further than the last"
    start = torch.tensor([[20.0, 20.0]])
    how = dict(steps=4, midpoint=False)
    image = torch.rand(1, 1, 40, 40, generator=make_generator(0))
    path = walk_patchwise(Compass(size=11, width=1, oriented=True), image, start, **how)[:, 0]
    steps = path[1:] - path[:-1]
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(steps, quarter, atol=1e-4, rtol=0)
    path = walk_patchwise(Compass(size=11, width=1), image, start, **how)[:, 0]
    torch.testing.assert_close(path[1:] - path[:-1], quarter[:1].expand(4, 2), atol=1e-4, rtol=0)


def test_the_loss_of_pairs_counts_distance_and_normal():
    out, target = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.zeros(2, 3)
    target[1, 1:] = torch.tensor([0.6, -0.8])
    assert float(pair_loss(out, target)) == pytest.approx(0.25 / 2 + 0.5 * (1 + 1) / 2)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6])
def test_the_loss_of_a_field_weighs_its_normals_near_the_boundary(weight):
    phi = discs((30, 34, 14))[None]
    right = field_target(phi)
    wrong = torch.cat([right[:, :1], -right[:, 1:]], 1)
    got = field_loss(wrong, phi, normal=weight, overlap=0.0)
    clear = float(right[:, 1:].square().sum(1).mean())  # the centre of the disc has no normal
    assert float(got) == pytest.approx(4 * weight * clear, abs=0.02)
    far = torch.where((phi.abs() > 15)[:, None], wrong, right)
    assert float(field_loss(far, phi, normal=weight, overlap=0.0)) < 0.25 * float(got) + 1e-6


# Clicks
@pytest.mark.parametrize("first", [0, 1])
def test_the_first_of_several_clicks_says_which_object(first):
    two = ((20, 32, 9), (52, 32, 9))
    phi = discs(*two)
    at = torch.tensor([[11.0, 32.0], [61.0, 32.0]])
    clicked = click_contour(phi, at if first == 0 else at.flip(0), radius=4.0)
    want = discs(two[first]) < 0
    assert clicked.closed and float(dice(clicked.mask[None], want[None])) > 0.95


def test_an_orbit_that_passes_far_from_the_click_is_not_taken():
    phi, at = discs((30, 34, 14)), torch.tensor([[47.0, 34.0]])
    assert click_contour(phi, at, reach=8.0).closed
    strict = click_contour(phi, at, reach=0.01)
    assert not strict.closed and strict.why.startswith("the orbit passes")


def test_every_simulated_hand_trembles():
    phi = discs((30, 34, 14))
    some = (discs((38, 34, 14)) < 0)[None].expand(200, -1, -1)
    moved = next_click(some, phi[None].expand(200, -1, -1), make_generator(0), 2.0)
    assert 1.6 < float(moved.std(0).mean()) < 2.4
    still, shaky = (hand_clicks(phi, 100, make_generator(0), j) for j in (0.0, 2.0))
    assert 1.6 < float((shaky - still).std()) < 2.4
    for jitter in (0.0, 2.0):
        hints = ClickHint(jitter=jitter)(phi[None].expand(20, -1, -1), make_generator(0))
        assert bool((hints == 1).any()) == (jitter == 0), "a trembling click is between pixels"


# The race
def test_a_tracing_race_measures_on_unseen_slices_only():
    data = phantom(MOST + 3, seed=6)
    race, seen = duel(data, rival=False), []
    by_image = {image.numpy().tobytes(): mask for image, mask in zip(data.image, data.mask)}

    class Knowing:
        "A lane that knows the right mask of each image that it is shown"

        def field(self, image):
            seen.append(image)
            mask = by_image[image[0].numpy().tobytes()]
            return make_field(signed_distance(mask, smooth=1.0)[None])

    pieces = race.measure(race.ORBIT, Knowing())
    with pytest.raises(StopIteration) as end:
        while True:
            next(pieces)
    assert torch.equal(torch.cat(seen), data.image[MOST : MOST + 3])
    assert end.value.value["dice"] > 0.95 and end.value.value["tried"] == 3 * 32
