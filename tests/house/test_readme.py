"The ten lines of README run as they stand, on a user's own arrays"

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = rng.integers(0, 60, (240, 16, 16), np.uint8)
    for k in range(3):
        x[y == k, 5 * k : 5 * k + 5] += 150  # three kinds of stripes
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    exec(code.replace(".run(2000)", ".run(40)"), {})
    out = capsys.readouterr().out
    curve = eval(out.strip().splitlines()[-1], {})
    assert [n for n, _ in curve][:2] == [40, 70] and curve[-1][1] > 0.9, curve
