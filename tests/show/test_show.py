"""Scenes, frames, the gate, and the printed and exported pictures, without a browser."""

import base64
import json
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import Button

from deffi_lab.core.run import Run
from deffi_lab.core.step import Step
from deffi_lab.show.controls import error_html, status_html
from deffi_lab.show.lab import Lab
from deffi_lab.show.render.canvas import Gate, SceneCanvas, decode, encode
from deffi_lab.show.render.mpl import to_mpl
from deffi_lab.show.render.plotly import to_html, to_plotly
from deffi_lab.show.scene import (
    Curves,
    Field,
    Image,
    Line,
    Map,
    Panel,
    Paths,
    Points,
    Scene,
    Text,
    describe,
    grid,
)

rng = np.random.default_rng(0)
XY = rng.normal(size=(50, 2)).astype(np.float32)
LABEL = rng.integers(-1, 10, 50)
DIGIT = rng.integers(0, 256, (28, 28)).astype(np.uint8)


def every_layer() -> Scene:
    "One of each"
    return Scene(
        [
            Panel(
                "map",
                [
                    Map(DIGIT % 10, DIGIT, (-3, 3, -3, 3)),
                    Points(XY, LABEL, tags=True),
                    Points(XY[:3], mark="x"),
                    Paths(XY, [0, 20, 50], label=[1, 2]),
                    Field(XY, XY * 0.1),
                    Text(0, 0, "here"),
                ],
                equal=True,
            ),
            Panel(
                "curve",
                [
                    Curves([1, 10, 100], [0.1, 0.5, 0.7], "ours", [0, 0.4, 0.6], [0.2, 0.6, 0.8]),
                    Line(0.5, text="half"),
                    Line(10, axis="x"),
                ],
                xlog=True,
            ),
            Panel("digit", [Image(DIGIT)]),
        ],
        title="all",
        note="a note",
    )


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Points(np.zeros((3, 3))), r"Points.xy has shape \[3, 3\]"),
        (lambda: Points(np.array([[0, np.nan]])), "1 values that are not finite"),
        (lambda: Points(np.zeros((3, 2)), label=[1, 2]), r"\[3\] is needed"),
        (lambda: Points(np.zeros((1, 2)), label=[0.5]), "integer classes"),
        (lambda: Points(np.zeros((1, 2)), label=[300]), "-1..255"),
        (lambda: Points(np.zeros((1, 2)), color="red"), "#RRGGBB"),
        (lambda: Points(np.zeros((1, 2)), mark="+"), "mark='\\+'"),
        (lambda: Paths(np.zeros((4, 2)), [0, 3]), "must rise from 0 to the 4"),
        (lambda: Paths(np.zeros((4, 2)), [0, 3, 2, 4]), "must rise"),
        (lambda: Field(np.zeros((4, 2)), np.zeros((3, 2))), r"Field.uv has shape \[3, 2\]"),
        (lambda: Image(np.zeros((4, 4))), "uint8"),
        (lambda: Image(np.zeros((0, 4), np.uint8)), "shape"),
        (lambda: Image(DIGIT, extent=(0, 0, 0, 1)), "x0 != x1"),
        (lambda: Map(DIGIT, DIGIT[:5]), "Map.strength"),
        (lambda: Curves([1, 2], [1]), r"Curves.y has shape \[1\]"),
        (lambda: Curves([1, 2], [1, np.inf]), "not finite"),
        (lambda: Curves([1], [1], low=[0]), "both low and high"),
        (lambda: Line(float("nan")), "finite"),
        (lambda: Line(1, axis="z"), "'x' or 'y'"),
        (lambda: Panel("p", ["points"]), "not a layer"),
        (lambda: Panel("p", xlim=(1, 1)), "smaller first"),
        (lambda: Panel("p", xlim=(0, 1), xlog=True), "above 0"),
        (lambda: Scene([]), "at least one panel"),
        (lambda: Scene([Panel("p"), Panel("p")]), "not unique"),
    ],
)
def test_wrong_scenes_say_what_is_wrong(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_layers_hold_copies_and_take_tensors():
    import torch

    t = torch.zeros(4, 2, requires_grad=True)
    a = np.zeros((4, 2), np.float32)
    p, q = Points(t), Points(a)
    a += 1
    assert p.xy.dtype == np.float32 and (q.xy == 0).all(), (
        "a frame that waits must not change under way"
    )


def test_a_scene_can_be_described_in_words():
    words = describe(every_layer())
    for part in (
        "map: regions of 10 classes, 50 points in",
        "3 points",
        "2 lines",
        "50 arrows",
        "here",
    ):
        assert part in words, words
    assert "ours: 0.7 (0.6 to 0.8) at" in words
    assert encode(every_layer())[0]["words"] == words


def test_the_words_of_a_scene_stay_short():
    tiles = [Image(DIGIT) for _ in range(100)]
    many = [Curves([1], [k], f"lane {k}") for k in range(30)]
    words = describe(Scene([Panel("a", tiles), Panel("b", many), Panel("c", [Curves([], [])])]))
    assert "100 images" in words and "and 22 more" in words and "without values yet" in words
    assert len(words) < 300


def test_the_words_change_with_the_scene():
    def at(k):
        return describe(Scene([Panel("loss", [Curves(range(k), np.ones(k) / k, "loss")])]))

    assert at(4) == "loss: loss: 0.25 at x 3." and at(5) == "loss: loss: 0.2 at x 4."


def test_frames_come_back_bit_equal():
    scene = every_layer()
    head, buffers = encode(scene)
    got = decode(json.loads(json.dumps(head)), [bytes(b) for b in buffers])
    for p in scene.panels:
        for la, back in zip(p.layers, got[p.name]):
            want = {"pixels": la.rgb()[::-1]} if isinstance(la, Map) else la.arrays()
            for k, v in want.items():
                assert back[k].dtype == v.dtype and np.array_equal(back[k], v), (p.name, la.kind, k)
    assert all(isinstance(b, memoryview) for b in buffers)
    assert len(json.dumps(head)) < 20_000, "arrays must not travel as text"


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), narrow=st.booleans())
def test_panels_never_overlap(n, narrow):
    rows, cols, cells = grid(n, narrow)
    cover = np.zeros((rows, cols), int)
    for r, c, h, w in cells:
        cover[r : r + h, c : c + w] += 1
    assert len(cells) == n and cover.max() == 1 and cover.min() == 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["show", "ack", "wait", "long", "ping", "due"]), max_size=40))
def test_gate_never_has_two_frames_out(orders):
    now = [0.0]
    g = Gate(fps=8, patience=2, clock=lambda: now[0])
    for o in orders:
        if o == "show" and g.free():
            waited = now[0] - g._at
            assert g.acked == g.sent or waited >= 2, "a frame went although the last was not drawn"
            g.send()
        elif o == "ack":
            g.ack(g.sent)
        elif o == "wait":
            now[0] += 0.05
        elif o == "long":
            now[0] += 3
        elif o == "ping":
            g.attach()
        elif o == "due" and g.due():
            assert now[0] - g._at >= 1 / 8
    assert g.acked <= g.sent


class FakePage:
    "The far end of a canvas: keeps what comes, answers when asked"

    def __init__(self, canvas, prompt=False):
        self.canvas, self.frames, self.prompt = canvas, [], prompt
        canvas.send = self.take

    def take(self, msg, buffers=None):
        if msg["kind"] != "frame":
            return
        self.frames.append((msg["seq"], decode(msg["scene"], buffers)))
        if self.prompt:
            self.say(kind="ack", seq=msg["seq"])

    def say(self, **msg):
        self.canvas._receive(None, msg, [])


def picture(k):
    return Scene([Panel("p", [Points(np.full((3, 2), k))])])


def test_only_the_newest_frame_follows_a_receipt():
    canvas = SceneCanvas()
    page = FakePage(canvas)
    for k in range(5):
        canvas.show(picture(k))
    assert page.frames == [] and not canvas.due(), "nobody looks"
    page.say(kind="hello")
    for k in range(5, 9):
        canvas.show(picture(k))
    assert [s for s, _ in page.frames] == [1]
    page.say(kind="ack", seq=1)
    assert [f["p"][0]["xy"][0, 0] for _, f in page.frames] == [4, 8]
    page.say(kind="ack", seq=2)
    assert len(page.frames) == 2, "nothing new: nothing sent"
    page.say(kind="hello")
    assert page.frames[-1][1]["p"][0]["xy"][0, 0] == 8, "a second view gets the picture again"


def test_frames_from_many_threads_arrive_whole():
    canvas = SceneCanvas()
    page = FakePage(canvas, prompt=True)
    page.say(kind="hello")

    def work(k):
        for _ in range(30):
            canvas.show(picture(k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seqs = [s for s, _ in page.frames]
    assert seqs == list(range(1, len(seqs) + 1))
    assert all((f["p"][0]["xy"] == f["p"][0]["xy"][0, 0]).all() for _, f in page.frames)


class Count:
    def __init__(self):
        self.i = 0

    def reset(self):
        self.i = 0

    def __iter__(self):
        while True:
            self.i += 1
            yield Step(self.i, "<count>", {"loss": 1.0})


def test_lab_shows_errors_and_goes_on():
    def draw(m):
        if m.i > 2:
            raise RuntimeError("<b>no picture</b>")
        return picture(m.i)

    lab = Lab(Run(Count()), draw, on_click=lambda m, panel, x, y: setattr(m, "i", int(x)))
    page = FakePage(lab.canvas, prompt=True)
    page.say(kind="hello")
    assert len(page.frames) == 1
    lab.run.run(10)
    assert lab.run.last.index == 10 and lab.run.status == "paused"
    assert "no picture" in lab.error.value and "<b>no picture" not in lab.error.value
    assert "&lt;count&gt;" in lab.bar.status.value
    page.say(kind="click", panel="p", x=1.0, y=0.0)
    assert (
        lab.run.method.i == 1
        and page.frames[-1][1]["p"][0]["xy"][0, 0] == 1
        and lab.error.value == ""
    )
    lab._refused(lab.run.call(lambda m: 1 / 0))
    assert "ZeroDivisionError" in lab.bar.status.value


def test_lab_live_thread_sends_frames_and_stops():
    lab = Lab(Run(Count(), name="show-test"), lambda m: picture(m.i), fps=50)
    page = FakePage(lab.canvas, prompt=True)
    page.say(kind="hello")
    lab.run.speed = 200
    lab.bar.start.click()
    assert not lab.run.wait(0.5) == "failed"
    lab.bar.pause.click()
    assert lab.run.wait(5) == "paused"
    at = lab.run.last.index
    assert page.frames[-1][1]["p"][0]["xy"][0, 0] == at, (
        "the picture of a paused run is its last step's"
    )
    lab.bar.step_.click()
    lab.run.wait(5)
    assert lab.run.last.index == at + 1
    lab.bar.stop.click()
    assert lab.run.close() and lab.canvas.status == "stopped" and len(page.frames) > 5


def test_page_is_answered_where_it_asks(monkeypatch):
    "A widget that last spoke in a subshell which is gone (a closed page's) still hears the page"
    from ipykernel.comm.comm import Comm

    if not hasattr(Comm, "_reply_subshell_for"):
        pytest.skip("this ipykernel sends messages where the page says")
    monkeypatch.setattr("comm.create_comm", lambda **how: Comm(show_warning=False, **how))

    def subshell(widget):
        widget.comm._reply_subshell_id = "gone"
        return widget.comm._reply_subshell_for({}, "mine")

    def all_of(widget):
        return [widget, *(w for c in getattr(widget, "children", ()) for w in all_of(c))]

    assert subshell(Button()) == "gone", "ipykernel no longer needs the cure"
    widgets = all_of(Lab(Run(Count()), lambda m: picture(m.i)).widget)
    assert len(widgets) > 8 and any(isinstance(w, SceneCanvas) for w in widgets)
    assert {subshell(w) for w in widgets} == {"mine"}


def test_status_and_error_are_escaped():
    bad = "<script>"
    assert bad not in error_html("t", bad) + status_html("failed", Step(1, bad, {bad: 1.0}), bad)


def test_html_is_self_contained_and_holds_the_data(tmp_path):
    scene = every_layer()
    page = to_html(scene, tmp_path / "scene.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=", page)
    assert '"showSendToCloud": false' in page
    figure = to_plotly(scene)
    xs = np.concatenate([t.x for t in figure.data if t.type == "scattergl"])
    assert np.isin(XY[:, 0], xs).all()
    packed = [
        base64.b64decode(json.loads(f'"{b}"')) for b in re.findall(r'"bdata":"([^"]+)"', page)
    ]
    assert XY[:3, 0].tobytes() in packed, "the file holds the points"
    assert {"half", "<b>here</b>"} <= {a.text for a in figure.layout.annotations}


def test_printed_figure_draws_every_layer(tmp_path):
    scene = every_layer()
    fig = to_mpl(scene)
    a, b, c = fig.axes
    assert (
        len(a.images) == 1
        and len(a.collections) == 4
        and any(t.get_text() == "here" for t in a.texts)
    )
    assert (len(b.lines), len(b.collections), b.get_xscale()) == (3, 1, "log") and len(
        c.images
    ) == 1
    assert not c.axison and b.get_legend().get_texts()[0].get_text() == "ours"
    fig.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000 and fig._repr_png_()[:4] == b"\x89PNG"


def test_empty_scenes_can_be_drawn():
    none = np.zeros((0, 2))
    empty = Scene(
        [
            Panel("a", [Points(none, np.zeros(0, int), tags=True), Paths(none, [0])]),
            Panel("b", [Curves([], [], "none yet")], xlog=True),
            Panel("c"),
        ]
    )
    encode(empty)
    to_plotly(empty).to_json()
    to_mpl(empty)._repr_png_()
