"A race moves whoever has spent least, measures all alike, and can be killed and taken up"

import time
from dataclasses import dataclass

import pytest
import torch
from helpers import Knobs, Regress

from deffi_lab.core.knobs import knob
from deffi_lab.core.run import Run
from deffi_lab.core.step import Step
from deffi_lab.methods.common.race import Race, Spent, after
from deffi_lab.methods.latent.chart import LandmarkChart, PlaneChart, blend


class Clock:
    "A clock that is turned by hand"

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class PaidKnobs(Knobs):
    rounds: int = knob(6, 0, 1000)
    width: int = knob(16, 1, 64)


class Paid(Regress):
    "The same net; a step takes `seconds` of the clock and counts `cost` operations"

    def __init__(self, clock: Clock, seconds: float = 1.0, cost: float = 1.0, rounds: int = 6):
        self.clock, self.step_seconds, self.cost, self.resets = clock, seconds, cost, -1
        super().__init__(rounds, seed=3)
        self.knobs = PaidKnobs(rounds=rounds)

    @property
    def work(self) -> float:
        return self.cost * self.index

    def reset(self):
        super().reset()
        self.resets += 1

    def __iter__(self):
        self.rounds = self.knobs.rounds
        for step in super().__iter__():
            self.clock.now += self.step_seconds
            yield step
            self.rounds = self.knobs.rounds


def error(name, lane) -> dict:
    "Mean squared error on unseen points, in two pieces"
    x = torch.linspace(-1, 1, 64).view(16, 4)
    parts = []
    for half in x.split(8):
        with torch.no_grad():
            parts.append((lane.net(half)[:, 0] - half.sum(1).sin()).square())
        yield
    return {"error": float(torch.cat(parts).mean()), "parts": [len(p) for p in parts]}


def paid(spent: str, seconds=(1.0, 4.0), cost=(2.0, 1.0), **more) -> tuple[Race, Clock]:
    "Two lanes, the second of them slower and less costly, on one clock"
    clock = Clock()
    lanes = {n: Paid(clock, s, c) for n, s, c in zip("ab", seconds, cost)}
    return Race(lanes, spent, clock=clock, **more), clock


def moves(steps) -> str:
    "The lane of each training step"
    return "".join(s.phase[0] for s in steps if s.phase.endswith("learn"))


def lanes():
    return {"a": Regress(6, seed=1), "b": Regress(4, seed=2)}


def test_each_lane_runs_as_it_would_alone():
    race = Race(lanes())
    steps = list(race)
    for name, m in lanes().items():
        alone = [s.metrics["loss"] for s in m]
        assert [s.metrics[f"{name} loss"] for s in steps if f"{name} loss" in s.metrics] == alone
    assert [s.phase.split(":")[0] for s in steps[:9]] == list("aaabbbaaa")
    assert [s.index for s in steps] == list(range(1, 31))


@pytest.mark.parametrize("n", [3, 6, 12, 24, 27])
def test_saved_at_any_boundary_it_ends_the_same(tmp_path, n):
    whole = Run(Race(lanes()))
    rest = []
    whole.on_frame = lambda s: rest.append(s.metrics)
    whole.run()
    run = Run(Race(lanes())).run(n)
    run.save(tmp_path / "s")
    other = Run(Race(lanes()))
    seen = []
    other.load(tmp_path / "s")
    other.on_frame = lambda s: seen.append(s.metrics)
    other.run()
    assert seen == rest[n:]


def test_shared_knobs_are_taken_over():
    race = Race(lanes(), shared=("lr",))
    race.knobs.lr = 0.3
    list(race)
    assert race.lanes["b"].knobs.lr == 0.3


def test_other_lanes_are_refused():
    with pytest.raises(ValueError, match="make the race with the same names"):
        Race(lanes()).load_state_dict(Race({"c": Regress(1)}).state_dict())


@pytest.mark.parametrize(
    "spent, order, spare",
    [
        # rounds of three steps: 3 and 12 seconds, 6 and 3 operations
        ("turns", "aaabbb" * 6, None),
        ("seconds", "aaabbb" + "aaa" * 4 + "bbb" + "aaa" + "bbb" * 4, 12.0),
        ("work", "aaabbb" + "bbb" + "aaabbb" * 1 + "bbb" + "aaabbb" + "bbb" + "aaa" * 3, 6.0),
    ],
)
def test_whoever_has_spent_least_moves(spent, order, spare):
    race, clock = paid(spent)
    steps = list(race)
    assert moves(steps) == order
    assert clock.now == sum(s.seconds for s in race.spent.values()) == 18 * 1.0 + 18 * 4.0
    assert race.spent == {"a": Spent(6, 18.0, 36.0), "b": Spent(6, 72.0, 18.0)}
    assert race.due() is None and race.ended == {"a", "b"}
    race, _ = paid(spent)
    for step in race:
        if race.at_boundary and not race.ended and spare:
            a, b = (getattr(race.spent[n], spent) for n in "ab")
            assert abs(a - b) <= spare, "nobody is ahead by more than one round"


def test_seconds_are_those_of_the_steps_and_not_of_those_who_look():
    race, clock = paid("seconds", probe=error, every=after("seconds", 5.0))
    for step in race:
        clock.now += 100.0  # a picture is drawn, a person thinks
    assert race.spent["a"].seconds == 18.0 and race.spent["b"].seconds == 72.0


def test_the_clock_is_the_wall_s_unless_another_is_given():
    clock = Clock()
    race = Race({"a": Paid(clock)}, "seconds")
    began = time.perf_counter()
    list(race)
    assert 0 < race.spent["a"].seconds <= time.perf_counter() - began


def test_a_probe_measures_in_steps_of_its_own_when_it_is_due():
    race, _ = paid("seconds", probe=error, every=after("seconds", 10.0, 0.5))
    steps = list(race)
    assert [s.index for s in steps] == list(range(1, len(steps) + 1))
    at = [row.spent.seconds for row in race.scores["b"]]
    assert at == [12.0, 24.0, 36.0, 60.0, 72.0], "10 s, then half as much again, then the end"
    assert [row.spent.seconds for row in race.scores["a"]] == [12.0, 18.0]
    measured = [s for s in steps if s.phase == "b: score"]
    assert len(measured) == 3 * len(at) and [list(s.metrics) for s in measured[:3]] == [
        [],
        [],
        ["b error"],
    ]
    errors = [row.metrics["error"] for row in race.scores["b"]]
    assert errors[-1] < errors[0] and race.scores["b"][0].metrics["parts"] == [8, 8]
    alone = Paid(Clock())
    losses = [s.metrics["loss"] for s in alone]
    assert [s.metrics["b loss"] for s in steps if "b loss" in s.metrics] == losses
    plain, _ = paid("turns", probe=lambda name, lane: {"round": lane.round})
    list(plain)
    assert [r.metrics["round"] for r in plain.scores["a"]] == [1, 2, 3, 4, 5, 6]


def test_a_lane_switched_off_waits():
    race, _ = paid("turns")
    race.active["a"] = False
    assert moves(race) == "b" * 18 and race.due() is None and race.spent["a"] == Spent()
    race.active["a"] = True
    assert race.due() == "a" and moves(race) == "a" * 18


def test_a_knob_that_ends_lanes_wakes_one_that_had_ended():
    race, _ = paid("turns", shared=("rounds",), ends=("rounds",))
    race.knobs.rounds = 2
    assert moves(race) == "aaabbb" * 2 and race.due() is None
    race.knobs.rounds = 3
    assert moves(race) == "aaabbb" and race.lanes["b"].knobs.rounds == 3
    assert race.lanes["a"].resets == 0 and race.spent["b"].turns == 3
    race, _ = paid("turns", ends=("rounds",))
    race.lanes["b"].knobs.rounds = 1  # not shared: a knob of its own
    assert moves(race) == "aaabbb" + "aaa" * 5


def test_a_knob_that_resets_takes_the_lane_back_and_what_it_spent():
    race, _ = paid("turns", probe=error, resets=("width",))
    steps = iter(race)
    while race.spent["b"].turns < 4:
        next(steps)
    race.lanes["b"].knobs.width = 8
    while race.spent["b"].turns != 1:
        next(steps)
    assert race.lanes["b"].resets == 1 and race.lanes["a"].resets == 0
    rest = moves(steps)
    assert race.spent["b"] == Spent(6, 72.0, 18.0) and len(race.scores["b"]) == 6
    assert rest.startswith("bbb" * 3) and len(race.scores["a"]) == 6
    race, _ = paid("turns", shared=("width",), resets=("width",))
    list(race)
    race.knobs.width = 8
    assert moves(race) == "aaabbb" * 6, "shared: all begin anew, those that had ended too"


def test_reset_begins_anew_with_the_same_numbers_and_makes_lanes_where_a_function_does():
    race, _ = paid("seconds", probe=error)
    first = [s.metrics for s in race]
    race.reset()
    assert race.index == 0 and race.scores == {"a": [], "b": []} and race.spent["a"] == Spent()
    assert [s.metrics for s in race] == first and race.lanes["a"].resets == 1
    rounds = iter((2, 3))
    made = Race(lambda: {"a": Regress(next(rounds), seed=1)})
    lane = made.first
    assert moves(made) == "aaa" * 2
    made.reset()
    assert made.first is not lane and moves(made) == "aaa" * 3


@pytest.mark.parametrize("spent", ["turns", "seconds", "work"])
@pytest.mark.parametrize("n", [1, 4, 5, 11, 20, 33])
def test_killed_anywhere_it_ends_with_the_same_numbers(tmp_path, spent, n):
    how = dict(probe=error, every=after("seconds", 5.0, 0.1))
    whole = Run(paid(spent, **how)[0])
    rest = []
    whole.on_frame = lambda s: rest.append((s.index, s.phase, s.metrics))
    whole.run()
    run = Run(paid(spent, **how)[0]).run(n)
    while not run.method.at_boundary:
        run.run(1)
    run.save(tmp_path / "s")
    again, seen = Run(paid(spent, **how)[0]), []
    again.load(tmp_path / "s")
    again.on_frame = lambda s: seen.append((s.index, s.phase, s.metrics))
    again.run()
    assert seen == rest[run.last.index :] and seen
    assert again.method.scores == whole.method.scores
    assert again.method.spent == whole.method.spent


def test_a_race_in_the_midst_of_a_measurement_is_saved_after_it(tmp_path):
    race, _ = paid("turns", probe=error)
    run = Run(race).run(4)
    assert run.last.phase == "a: score" and not race.at_boundary
    run.start()
    run.save(tmp_path / "s")
    again, _ = paid("turns", probe=error)
    Run(again).load(tmp_path / "s")
    assert again.at_boundary and again.scores["a"]
    run.close()


def test_a_state_that_is_refused_changes_nothing():
    race, _ = paid("turns", probe=error)
    list(race)
    state = race.state_dict()
    other, _ = paid("turns", probe=error)
    weights = [p.clone() for p in other.lanes["a"].net.parameters()]
    state["lanes"]["b"] = {"net": {}}
    with pytest.raises((KeyError, RuntimeError)):
        other.load_state_dict(state)
    assert all(map(torch.equal, weights, other.lanes["a"].net.parameters()))
    assert other.index == 0 and other.spent["a"] == Spent() and other.due() == "a"
    old = {"lanes": {"a": {}, "b": {}}, "turn": 3, "index": 9, "done": []}
    with pytest.raises(ValueError, match="saved by an older version; reset and run again"):
        other.load_state_dict(old)


class Bare:
    "The least that a lane is: it can be iterated"

    def __iter__(self):
        yield Step(1, "once")


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: Race({}), "at least one method"),
        (lambda: Race([]), "at least one method"),
        (lambda: Race({"a": Bare()}, "money"), "spent='money': choose one of"),
        (lambda: Race([("a", Bare()), ("b", Bare()), ("a", Bare())]), "two are named 'a'"),
        (lambda: Race(dict.fromkeys("ab", Bare())), "one method stands in two lanes"),
        (lambda: Race({"a": Bare()}, "work"), "lane 'a' has no attribute `work`"),
        (lambda: Race({"a": Regress(), "b": Bare()}, shared=("lr",)), "'lr': lane 'b' has none"),
        (lambda: Race({"a": Regress()}, resets=("depth",)), "'depth': lane 'a' has none"),
        (lambda: after("euros", 1.0), "spent='euros'"),
        (lambda: after("turns", 0), "least=0"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_lane_that_cannot_be_saved_still_races():
    race = Race({"a": Bare(), "b": Bare()})
    assert [s.phase for s in race] == ["a: once", "b: once"] and race.knobs is None
    with pytest.raises(TypeError, match=r"lane 'a' has no state_dict\(\)"):
        race.state_dict()
    with pytest.raises(TypeError, match="the probe of 'a' returned None"):
        list(Race({"a": Bare()}, probe=lambda name, lane: iter(())))


def test_blend_stays_inside_and_hits_an_anchor():
    g = torch.Generator().manual_seed(0)
    anchors, values = torch.randn(50, 16, generator=g), torch.randn(50, 2, generator=g)
    out = blend(torch.randn(200, 16, generator=g), anchors, values)
    assert (out.amin(0) >= values.amin(0)).all() and (out.amax(0) <= values.amax(0)).all()
    assert torch.equal(LandmarkChart(anchors, values, k=1).place(anchors), values)
    with pytest.raises(ValueError, match="a plane chart needs 2"):
        PlaneChart().place(anchors)
    with pytest.raises(ValueError, match="50 latents and 3 places"):
        LandmarkChart(anchors, values[:3])
