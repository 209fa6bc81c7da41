"A lab that shows a gain draws its control beside it, in grey and named as such"

from types import SimpleNamespace

from deffi_lab.labs.blocks.training import LANE, blockwise_lab
from deffi_lab.labs.contours.tracing import tracer_lab
from deffi_lab.labs.selection.boosting import CONTROL, BoostingView, boosting_lab
from deffi_lab.labs.selection.efficiency import EfficiencyView
from deffi_lab.methods.blocks.race import RaceKnobs
from deffi_lab.show.layers import GREY, Curves


def curves(panel) -> dict:
    return {la.name: la.color for la in panel.layers if isinstance(la, Curves)}


def test_boosting_races_against_random_choice_in_grey():
    lane = lambda: SimpleNamespace(curve=[(40, 0.7)], pool=SimpleNamespace(asked=40))
    panel = BoostingView.accuracy(None, {"boosting": lane(), CONTROL: lane()})
    assert CONTROL.startswith("control: ") and curves(panel)[CONTROL] == GREY
    assert curves(panel)["boosting"] != GREY
    assert list(boosting_lab(name="controls").run.method.lanes) == ["boosting", CONTROL]


def test_blocks_race_against_the_same_blocks_end_to_end_in_grey():
    lab = blockwise_lab(labels=2, tests=2, knobs=RaceKnobs(labels=2, steps=5, polish=1))
    lab.run.run(3)
    drawn = curves(next(p for p in lab.scene().panels if p.name == "race"))
    assert drawn["control: joint"] == GREY == LANE["joint"]
    assert [n for n, c in drawn.items() if c == GREY] == ["control: joint"]


def test_the_tracer_races_against_the_threshold_of_its_own_distance_in_grey():
    lab = tracer_lab(labels=1, rival=False, results={})
    lab.run.run(2)
    drawn = curves(next(p for p in lab.scene().panels if p.name == "dice"))
    assert drawn["control: its threshold"] == GREY
    assert [n for n, c in drawn.items() if c == GREY] == ["control: its threshold"]


def test_efficiency_draws_random_choice_in_grey():
    assert EfficiencyView(["margin", "random"]).colors["random"] == GREY
