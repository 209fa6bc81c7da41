"A race gives each lane the numbers that it would have alone, and can be killed and taken up"

import pytest
import torch
from helpers import Regress

from deffi_lab.core.run import Run
from deffi_lab.methods.common.race import Race
from deffi_lab.methods.latent.chart import LandmarkChart, PlaneChart, blend


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
    with pytest.raises(ValueError, match="at least one method"):
        Race({})


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
