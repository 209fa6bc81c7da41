"""Setting up: the Pythons that are named, torch with and without CUDA"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "tools"))


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", root / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


python, setup_env, wheels = tool("python"), tool("setup_env"), tool("wheels")
known = python.named(root / "settings.ini")
words = [".".join(map(str, v)) for v in known]


def setting(name: str) -> str:
    lines = (root / "settings.ini").read_text().splitlines()
    return next(line.split("=", 1)[1].strip() for line in lines if line.startswith(f"{name} ="))


def test_the_named_pythons_are_the_same_everywhere():
    assert words[0] == setting("min_python")
    assert f"Python {words[0]} " in (root / "README.md").read_text()
    assert known == sorted(known) and sys.version_info[:2] in known


def test_the_workflow_runs_make_test_on_the_named_pythons():
    job = yaml.safe_load((root / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == words
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])
    assert job["env"]["CPU"] == "1"


def test_the_commit_hook_checks_what_make_test_checks():
    """Each tool that the hook runs is a line of `make lint`, and `make test` runs that first"""
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    make = (root / "Makefile").read_text()
    entries = [re.sub(r"^\.venv/bin/|--\S+", "", hook["entry"]).split() for hook in hooks]
    for tool, word in entries:
        assert re.search(rf"^\t\$\(BIN\)/{tool} {re.escape(word)}\b", make, re.M), (tool, word)
    assert re.search(r"^test: lint\b", make, re.M) and len(entries) == 3


def test_an_old_python_is_refused_and_a_new_one_warned_of():
    old, new = (3, known[0][1] - 1), (3, known[-1][1] + 1)
    refused, line = python.verdict(old, known)
    assert refused and f"3.{old[1]} is too old" in line and f"python{words[-1]}" in line
    refused, line = python.verdict(new, known)
    assert not refused and f"3.{new[1]} was not tested" in line
    assert all(python.verdict(v, known) == (False, "") for v in known)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_refuses_before_anything_is_made(tmp_path):
    """A Python that says it is old ends `make` with one line and leaves no environment behind"""
    fake = tmp_path / "python_old"
    code = (
        "import sys, runpy; sys.version_info = (3, 7, 9, 'final', 0); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    fake.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "setup", f"PYTHON={fake}", f"VENV={venv}"],
        cwd=root,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(lines) == 1 and "Python 3.7 is too old" in lines[0]
    assert not venv.exists()


def test_torch_comes_with_the_pin_alone_unless_cpu_is_asked_for():
    pin = setup_env.pinned("torch")
    assert setup_env.torch_words({}) == setup_env.torch_words({"CPU": "0"}) == [pin]
    plain = setup_env.torch_words({"CPU": "1"})
    assert plain[-3:] == ["--index-url", setup_env.CPU_INDEX, pin]
    other = setup_env.torch_words({"CPU": "1", "TORCH_CPU_INDEX": "https://mirror.example/cpu"})
    assert other[-3:] == ["--index-url", "https://mirror.example/cpu", pin]


def test_without_a_driver_one_line_says_that_cpu_exists():
    def line(environ=None, system="linux", has_driver=False, installed=False):
        return setup_env.advice(environ or {}, system, has_driver, installed)

    assert "make lab CPU=1" in line() and "\n" not in line()
    assert not line({"CPU": "1"}) and not line(system="darwin")
    assert not line(has_driver=True) and not line(installed=True)


def test_an_index_that_has_no_torch_ends_in_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(setup_env, "pip", lambda *words, capture: failed)
    with pytest.raises(SystemExit) as end:
        setup_env.install_torch({"CPU": "1", "TORCH_CPU_INDEX": "file:///nowhere"})
    line = str(end.value)
    assert "file:///nowhere" in line and "leave CPU=1 out" in line and "\n" not in line


def test_the_wheels_are_asked_for_by_a_dry_run(tmp_path):
    asked = wheels.command(["a==1", "b==2"], "3.11", tmp_path / "report.json")
    assert {"--dry-run", "--only-binary=:all:", "--no-deps"} <= set(asked)
    assert asked[-2:] == ["a==1", "b==2"] and asked[asked.index("--python-version") + 1] == "3.11"


@pytest.mark.skipif("DEFFI_LAB_ONLINE" not in os.environ, reason="set DEFFI_LAB_ONLINE=1")
@pytest.mark.parametrize("name", words)
def test_every_pin_has_a_wheel(name):
    pins = (root / "constraints.txt").read_text().split()
    assert set(pins) - wheels.have(pins, name) == set()
