"A row of the benches has one meaning; short names find benches and studies; studies share options"

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from deffi_lab.study.statistics import Ratio

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import run as benches  # noqa: E402
from common import EFFECTS, INTERVALS, Row, Study, arguments, ends_of, parsed  # noqa: E402

GOOD = dict(name="x", ours=2.0, peer=6.0, unit="s", effect="speedup", n=9)
FILES = sorted((BENCH / "results").glob("*-core-*.json"))


@pytest.mark.parametrize(
    "effect, ratio", [("speedup", 3.0), ("share", 1 / 3), ("difference", -4.0)]
)
def test_the_effect_says_how_ours_and_peer_become_the_value(effect, ratio):
    assert Row(**GOOD | {"effect": effect}).ratio == pytest.approx(ratio)
    assert Row(**GOOD | {"effect": effect, "ratio": ratio}).ratio == ratio
    for other in set(EFFECTS) - {effect}:
        with pytest.raises(ValueError, match=f"a {other} of 2 and 6"):
            Row(**GOOD | {"effect": other, "ratio": ratio})


def test_a_median_of_ratios_may_lie_near_the_ratio_of_medians_and_one_run_may_not():
    assert Row(**GOOD | {"ratio": 3.4}).ratio == 3.4
    for n, ratio in ((9, 3.9), (1, 3.4)):
        with pytest.raises(ValueError, match="is 3"):
            Row(**GOOD | {"ratio": ratio, "n": n})


@pytest.mark.parametrize(
    "change, what",
    [
        (dict(effect="ratio"), "choose from speedup, share, difference"),
        (dict(effect=None), "give both or neither"),
        (dict(peer=None), "give both or neither"),
        (dict(low=1.0, high=4.0), "all three or none"),
        (dict(interval="ci95"), "all three or none"),
        (dict(interval="sd", low=1.0, high=4.0), "choose from p10-p90, range, ci95"),
        (dict(interval="bound95", low=1.0, high=4.0), "one of low and high"),
        (dict(interval="bound95"), "one of low and high"),
        (dict(interval="range", low=1.0), "all three or none"),
        (dict(interval="bound95", low=3.1), "lies outside 3.1..inf"),
        (dict(interval="range", low=3.1, high=4.0), "lies outside 3.1..4"),
        (dict(n=0), "at least 1 run"),
    ],
)
def test_a_row_that_does_not_fit_together_is_refused(change, what):
    with pytest.raises(ValueError, match=what):
        Row(**GOOD | change)


def test_a_bound_has_one_end_and_an_open_ratio_none():
    pair = dict(n=20, level=0.95)
    assert ends_of(Ratio(3, 2, np.inf, bound="≥", **pair)) == dict(interval="bound95", low=2)
    assert ends_of(Ratio(0.3, 0, 0.5, bound="≤", **pair)) == dict(interval="bound95", high=0.5)
    assert ends_of(Ratio(np.nan, np.nan, np.nan, bound="?", **pair)) == {}
    assert ends_of(Ratio(3, 2, 4, **pair)) == dict(interval="ci95", low=2, high=4)
    assert Row(**GOOD | dict(interval="bound95", low=2.0)).high is None


def test_a_stamped_row_says_when_and_with_what():
    row = Row(**GOOD).stamped()
    assert row.version and len(row.date) == 10
    assert asdict(row) | {"version": "", "date": ""} == asdict(Row(**GOOD))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_was_measured_keeps_the_format(path):
    doc = json.loads(path.read_text())
    assert doc["machine"]["name"] and doc["versions"]["torch"]
    names = [r["name"] for r in doc["rows"]]
    assert len(set(names)) == len(names) > 0
    for r in doc["rows"]:
        row = Row(**r)
        assert asdict(row) == r and row.version and row.date, r["name"]
        assert row.interval in (None, *INTERVALS)


def test_short_names_find_every_bench_once():
    files = list(BENCH.glob("*/*.py"))
    assert len(benches.places()) == len(files) >= 20
    chapters = {p.parent.name for p in files} - {"studies"}
    floors = {p.name for p in (ROOT / "deffi_lab").iterdir() if p.is_dir()}
    methods = {p.name for p in (ROOT / "deffi_lab/methods").iterdir() if p.is_dir()}
    assert chapters <= floors | methods | {"house"}
    out = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), "nothing"], capture_output=True, text=True
    )
    assert out.returncode == 2 and "'neighbours'" in out.stdout and "'boosting'" in out.stdout


@pytest.mark.parametrize("name", ["boosting", "fewest", "contours", "blocks", "selection"])
def test_a_study_is_known_by_name_and_prints_what_ships(name):
    study = benches.load(name).STUDY
    assert isinstance(study, Study) and study.shipped.exists()
    assert len(study.columns()["value"]) > 100


def test_rows_of_studies_are_read_from_their_ledgers():
    rows = {
        r.name: r
        for n in ("boosting", "blocks", "contours", "fewest")
        for r in benches.load(n).rows()
    }
    old = {r["name"]: r for p in FILES for r in json.loads(p.read_text())["rows"]}
    assert len(rows) == 16
    for name, row in rows.items():
        assert isinstance(row, Row) and row.effect == old[name]["effect"], name
        assert row.interval == old[name]["interval"], name
        for key in ("ours", "peer", "ratio", "low", "high"):
            value, was = getattr(row, key), old[name][key]
            assert (value is None) == (was is None), (name, key)
            assert was is None or value == pytest.approx(was, rel=1e-5), (name, key)


def test_all_studies_have_the_same_options(capsys):
    a = parsed(arguments("", ["a", "b"], 5), ["a", "b"], ["a", "--quick", "--first", "2"])
    assert (a.parts, a.first, a.seeds, a.measure) == (["a"], 2, 3, True)
    a = parsed(arguments("", ["a", "b"], 5, labels=[7]), ["a", "b"], ["--table"])
    assert (a.parts, a.seeds, a.labels, a.measure) == (["a", "b"], 5, [7], False)
    with pytest.raises(SystemExit):
        parsed(arguments("", ["a"], 5), ["a"], ["c"])
    assert "no part 'c': choose from a" in capsys.readouterr().err
