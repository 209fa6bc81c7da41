"""Clicks: where a person clicks, what a click does
to a distance and to a contour, sessions, bad input"""

import pytest
import torch

from deffi_lab.core.step import make_generator
from deffi_lab.data.heart.phantom import phantom
from deffi_lab.methods.contours.clicks import (
    ClickHint,
    at_points,
    bend,
    by_hand,
    click_channel,
    click_contour,
    first_click,
    hand_clicks,
    next_click,
    session,
    tremble,
)
from deffi_lab.nets.score import dice
from deffi_lab.numeric.distance import signed_distance


def discs(*at, size=(64, 72)):
    yy, xx = torch.meshgrid(
        torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij"
    )
    return torch.stack([((xx - x) ** 2 + (yy - y) ** 2).sqrt() - r for x, y, r in at]).amin(0)


def test_first_clicks_lie_on_the_boundary_at_all_its_places():
    phi = discs((30, 34, 14))[None].expand(400, 64, 72)
    at = first_click(phi, make_generator(0), 0.0)
    away = (at - torch.tensor([30.0, 34.0])).norm(dim=1) - 14
    assert away.abs().max() < 1.5
    assert ((at[:, 0] > 30).float().mean() - 0.5).abs() < 0.12 and (
        (at[:, 1] > 34).float().mean() - 0.5
    ).abs() < 0.12
    shaky = first_click(phi, make_generator(0), 3.0)
    assert 2 < float((shaky - at).std()) < 4


def test_the_next_click_is_where_the_contour_is_most_wrong():
    phi = discs((30, 34, 14))
    predicted = discs((38, 34, 14)) < 0  # pushed to the right: the left rim is furthest
    x, y = next_click(predicted[None], phi[None], make_generator(0), 0.0)[0].tolist()
    assert x < 20 and 28 < y < 40
    empty = torch.zeros(1, 64, 72, dtype=torch.bool)
    for m in (empty, ~empty):
        assert abs(float(at_points(phi, next_click(m, phi[None], make_generator(0), 0.0)))) < 1


def test_the_channel_of_clicks():
    at = torch.tensor(
        [[[10.0, 20.0], [40.0, 5.0]], [[7.0, 7.0], [float("nan")] * 2], [[float("nan")] * 2] * 2]
    )
    c = click_channel(at, (64, 72))
    assert (
        c.shape == (3, 1, 64, 72)
        and c[0, 0, 20, 10] == 1
        and c[0, 0, 5, 40] == 1
        and c[1, 0, 7, 7] == 1
    )
    assert (
        c[1, 0, 40, 60] < 1e-6 and not c[2].any() and not click_channel(at[:, :0], (64, 72)).any()
    )
    assert float(c[0, 0, 20, 15]) == pytest.approx(
        float(torch.exp(torch.tensor(-0.5))), abs=1e-4
    )  # one radius off


def test_hints_hold_none_to_four_clicks():
    phi = discs((30, 34, 14))[None].expand(60, 64, 72)
    c = ClickHint(jitter=0.0)(phi, make_generator(0))
    peaks = (c == 1).flatten(1).sum(1)
    assert peaks.min() == 0 and 3 <= peaks.max() <= 4 and len(peaks.unique()) >= 4
    hint = ClickHint()(
        torch.full((2, 64, 72), 9.0), make_generator(0)
    )  # the boundary was moved out of the image
    assert hint.shape == (2, 1, 64, 72) and not hint.any()


def test_bending_passes_through_the_clicks_and_leaves_the_rest():
    phi = discs((30, 34, 14))
    at = torch.tensor([[47.0, 34.0], [30.0, 17.0]])  # 3 px outside
    bent = bend(phi, at, ridge=0.0)
    torch.testing.assert_close(at_points(bent, at), torch.zeros(2), atol=1e-3, rtol=0)
    far = discs((47, 34, 0), (30, 17, 0)) > 36  # three radii from both
    assert far.any() and float((bent - phi)[far].abs().max()) < 0.15
    soft = bend(phi, at, ridge=0.3)
    assert (at_points(soft, at).abs() < at_points(phi, at).abs()).all() and (
        at_points(soft, at).abs() > 0.1
    ).all()
    assert torch.equal(bend(phi, at[:0]), phi)


def test_the_click_says_which_object():
    phi = discs((20, 32, 9), (52, 32, 9))
    for x, k in ((11.0, 0), (61.0, 1)):
        c = click_contour(phi, torch.tensor([[x, 32.0]]))
        want = discs(((20, 32, 9), (52, 32, 9))[k]) < 0
        assert c.closed and float(dice(c.mask[None], want[None])) > 0.97


def test_where_nothing_closes_it_is_said_and_the_piece_stands_in():
    flat = torch.full((64, 72), 5.0)
    c = click_contour(flat, torch.tensor([[30.0, 30.0]]))
    assert not c.closed and c.why and c.points.shape == (0, 2)
    strip = discs((30, 34, 14)) * 0 + torch.arange(72.0) - 36  # a half plane: no closed boundary
    c = click_contour(strip, torch.tensor([[36.0, 30.0]]))
    assert c.mask[:, :30].all() and not c.mask[:, 42:].any()


def test_a_session_mends_a_wrong_distance_click_by_click():
    true = discs((30, 34, 14))
    wrong = discs((32, 33, 11))
    g = make_generator(0)
    got = [
        float(dice(c.mask[None], (true < 0)[None]))
        for c in session(lambda at: (wrong, None), true, 6, g, jitter=0.3)
    ]
    start = float(dice((wrong < 0)[None], (true < 0)[None]))
    assert got[-1] > 0.95 > got[0] and got[-1] > start + 0.08
    again = session(lambda at: (wrong, None), true, 6, make_generator(0), jitter=0.3)
    assert [float(dice(c.mask[None], (true < 0)[None])) for c in again] == got


def test_more_clicks_by_hand_are_better_on_hearts():
    hearts = phantom(12, seed=5)
    phi, g = signed_distance(hearts.mask), make_generator(0)
    at = {
        n: torch.stack(
            [
                dice(by_hand(hand_clicks(p, n, g, 0.0), (96, 96))[None], m[None])[0]
                for p, m in zip(phi, hearts.mask)
            ]
        ).mean()
        for n in (3, 5, 12)
    }
    assert at[3] < at[5] < at[12] and at[12] > 0.95


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda p: first_click(torch.full((1, 8, 8), 5.0)), "slice 0 has no boundary"),
        (lambda p: bend(p, torch.tensor([[99.0, 3.0]])), "outside the image, x -0.5..71.5"),
        (lambda p: bend(p, torch.tensor([[float("nan"), 3.0]])), "outside the image"),
        (lambda p: bend(p, torch.tensor([[9.0, 3.0]]), radius=0), "radius=0"),
        (lambda p: click_contour(p, torch.zeros(0, 2)), "no click"),
        (lambda p: tremble(torch.zeros(1, 2), -1.0, None), "jitter=-1"),
        (lambda p: click_channel(torch.zeros(1, 1, 2), (4, 4), 0.0), "radius=0"),
        (lambda p: by_hand(torch.zeros(2, 2), (8, 8)), "2 clicks: 3 at least"),
        (lambda p: hand_clicks(torch.full((8, 8), 5.0), 4), "no boundary inside"),
        (lambda p: session(lambda at: (p, None), p, 0), "clicks=0"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call(discs((30, 34, 14)))
