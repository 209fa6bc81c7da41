"""Words that every floor uses: the bill is always
right, knobs refuse, the person's answers count once"""

import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deffi_lab.core.knobs import check_knobs, knob, knob_specs, set_knob
from deffi_lab.core.pool import PersonOracle, Pool
from deffi_lab.core.step import make_generator, pick_device


def pool(n=30, truth=None):
    truth = torch.arange(n) % 3 if truth is None else truth
    return Pool(torch.zeros(n, 1, 2, 2), lambda i: truth[i], 3)


@given(st.lists(st.lists(st.integers(-3, 34), max_size=6), max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_bill_counts_every_label_once(batches):
    p, known = pool(), set()
    for b in batches:
        good = len(set(b)) == len(b) and all(0 <= i < 30 for i in b) and not known & set(b)
        if good:
            assert p.label(torch.tensor(b, dtype=torch.int64)).tolist() == [i % 3 for i in b]
            known |= set(b)
        else:
            with pytest.raises(ValueError):
                p.label(torch.tensor(b, dtype=torch.int64))
    assert p.asked == len(known) == int(p.labelled.sum())
    assert set(p.labelled_indices.tolist()) == known
    assert not (p.labelled & p.unlabelled).any() and int(p.unlabelled.sum()) == 30 - len(known)


def test_cannot_tell_is_counted_and_never_asked_again():
    p = pool(truth=torch.full((30,), -1))
    assert p.label(torch.tensor([4])).tolist() == [-1]
    assert p.asked == 1 and not p.labelled.any() and not p.unlabelled[4]
    with pytest.raises(ValueError, match="index 4 was asked for before"):
        p.label(torch.tensor([4]))
    p.count_asked(7)
    assert p.asked == 8
    q = pool()
    q.load_state_dict(p.state_dict())
    assert q.asked == 8 and not q.unlabelled[4]


@pytest.mark.parametrize(
    "answer, text",
    [([0], "1 labels for 2 indices"), ([0, 3], "classes are 0..2"), ([-2, 0], "classes are 0..2")],
)
def test_an_oracle_that_answers_wrongly_changes_nothing(answer, text):
    p = Pool(torch.zeros(5, 1), lambda i: torch.tensor(answer), 3)
    with pytest.raises(ValueError, match=text):
        p.label(torch.tensor([0, 1]))
    assert p.asked == 0 and not p.labelled.any()


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Pool(torch.zeros(0, 1), None, 2), "n >= 1"),
        (lambda: Pool(torch.zeros(3, 1), None, 1), "n_classes=1"),
        (lambda: Pool(torch.zeros(3, 1), None, 3, ["a"]), "1 names for 3 classes"),
        (lambda: pool().load_state_dict(pool(5).state_dict()), "saved labels of 5 samples"),
        (lambda: pool().count_asked(-1), "k=-1"),
    ],
)
def test_bad_pools_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_devices_and_seeds():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device='gpu'.*'cuda'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="0 CUDA devices"):
            pick_device("cuda")
    with pytest.raises(ValueError, match="seed=-1"):
        make_generator(-1)
    assert not torch.equal(*(torch.rand(4, generator=make_generator(s)) for s in (0, 1)))


@dataclass
class K:
    lr: float = knob(1e-3, 1e-5, 1e-1, scale="log", unit="1/step")
    n: int = knob(10, 1, 100, live=False)
    on: bool = knob(True)
    how: str = knob("a", choices=("a", "b"))
    plain: int = 3


@given(
    st.one_of(
        st.floats(), st.integers(-(10**6), 10**6), st.text(max_size=3), st.none(), st.booleans()
    )
)
@settings(max_examples=200, deadline=None)
def test_a_knob_never_leaves_its_range(value):
    k = K()
    for name in ("lr", "n", "on", "how"):
        try:
            set_knob(k, name, value)
        except ValueError as e:
            assert name in str(e)
    assert 1e-5 <= k.lr <= 1e-1 and 1 <= k.n <= 100 and isinstance(k.n, int) and k.how in "ab"
    assert isinstance(k.on, bool)


def test_knob_specs_say_what_a_screen_needs():
    assert [(s.name, s.kind, s.live) for s in knob_specs(K)] == [
        ("lr", "float", True),
        ("n", "int", False),
        ("on", "bool", True),
        ("how", "choice", True),
    ]
    with pytest.raises(AttributeError, match="no knob 'lx'"):
        set_knob(K(), "lx", 1)
    with pytest.raises(ValueError, match="n=500: must be in 1..100"):
        check_knobs(K(n=500))
    for bad in (
        dict(low=2, high=1),
        dict(low=0, high=1, scale="log"),
        dict(low=0, high=1, scale="cube"),
        {},
    ):
        with pytest.raises(ValueError):
            knob(0.5, **bad)


def test_answers_from_many_threads_count_once():
    p = PersonOracle()
    p.ask(list(range(50)))
    won = []

    def answer(label):
        for i in range(50):
            if p.answer(i, label):
                won.append(i)

    threads = [threading.Thread(target=answer, args=(c,)) for c in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(won) == list(range(50)) and p.ready() and set(p.take()) == set(range(50))
    p.ask([1])
    with pytest.raises(RuntimeError, match="1 questions are open"):
        p.take()
    assert not p.answer(9, 0) and p.pending == [1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pool_lives_on_its_device():
    truth = (torch.arange(30) % 3).cuda()
    p = Pool(torch.zeros(30, 1, device="cuda"), lambda i: truth[i], 3)
    p.label(torch.tensor([1, 2]))
    assert p.labelled_indices.device.type == "cuda" and p.asked == 2
