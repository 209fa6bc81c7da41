"The film of README: a real run of a lab, as a small animated GIF"

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def film():
    spec = importlib.util.spec_from_file_location("film", ROOT / "tools/film.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["film"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["film"]


def test_a_film_shows_a_run_as_it_goes_on(film, tmp_path):
    """Agents move from frame to frame; the file plays, ends on a longer pause and begins again"""
    shot = film.Shot(film.contours, 12, 4, ("label",), width=4.0)
    frames = list(film.pictures(shot))
    assert len(frames) == 3
    assert len({f.tobytes() for f in frames}) == 3
    size = film.write(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0 and gif.size == frames[0].size
        gif.seek(2)
        assert gif.info["duration"] == 3000
    assert size == (tmp_path / "a.gif").stat().st_size


def test_a_film_that_is_too_large_is_not_written(film, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "LARGEST", 100)
    frames = [Image.effect_noise((40, 40), 50 + k).convert("RGB") for k in range(3)]
    with pytest.raises(ValueError, match="a.gif: .* bytes, at most 100: take fewer frames"):
        film.write(frames, tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_a_panel_is_named_in_a_shot_only_where_the_lab_has_it(film):
    """A renamed panel would leave a film empty without an error"""
    for name in ("boosting", "contours", "blocks"):
        shot = film.SHOTS[name]
        scene = shot.open().scene()
        assert {*shot.panels, *shot.views} <= {p.name for p in scene.panels}, name


def test_the_committed_film_moves_and_is_small(film):
    path = ROOT / "docs/film.gif"
    assert path.stat().st_size <= film.LARGEST
    with Image.open(path) as gif:
        assert gif.n_frames >= 20
