"Each mutant fits the source as it is, and the tool sees what a test notices and what it does not"

import ast
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools/mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()
ALL = TOOL.mutants()
KNOB = TOOL.Mutant(
    "patched methods get no name",
    "core/patch.py",
    "    setattr(cls, function.__name__, member)\n",
    "",
    (),
)


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m.name)
def test_each_mutant_fits_the_source_and_names_tests_that_exist(mutant):
    mutant.of((ROOT / "deffi_lab" / mutant.file).read_text())
    assert mutant.tests
    for test in mutant.tests:
        path, *names = test.split("[")[0].split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} >= set(names), test


def test_mutants_have_names_of_their_own():
    assert len({m.name for m in ALL}) == len(ALL)
    assert len({(m.file, m.find, m.put) for m in ALL}) == len(ALL)


def test_a_mutant_whose_text_is_gone_doubled_or_unchanged_is_refused():
    mutant = TOOL.Mutant("x", "a.py", "b = 1", "b = 2", ())
    assert mutant.of("a = 1\nb = 1\n") == "a = 1\nb = 2\n"
    for source, count in (("a = 1", 0), ("b = 1\nb = 1", 2)):
        with pytest.raises(ValueError, match=f"x: its text occurs {count} times in a.py"):
            mutant.of(source)
    with pytest.raises(ValueError, match="nothing is changed"):
        replace(mutant, put="b = 1").of("b = 1")
    with pytest.raises(SyntaxError):
        replace(mutant, put="b = ").of("b = 1")
    with pytest.raises(ValueError, match="no table 'nothing': choose from"):
        TOOL.mutants(["nothing"])


def test_a_copy_is_changed_and_the_package_is_not(tmp_path):
    before = (ROOT / "deffi_lab/core/patch.py").read_text()
    there = TOOL.copied(tmp_path, KNOB)
    assert (there / "core/patch.py").read_text() == KNOB.of(before)
    assert (ROOT / "deffi_lab/core/patch.py").read_text() == before
    assert (there / "assets").resolve() == ROOT / "deffi_lab/assets"


@pytest.mark.parametrize(
    "body, word",
    [
        ("assert B().one() == 1", "caught"),
        ("assert True", "missed"),
        ("import time; time.sleep(60)", "too slow"),
        ("import os; os._exit(7)", "broken"),
        ("assert nothing_of_that_name", "broken"),
    ],
)
def test_what_the_tests_say_is_read_rightly(tmp_path, body, word):
    path = tmp_path / "test_toy.py"
    path.write_text(
        "from deffi_lab.core.patch import patch\n\n"
        "class B:\n    pass\n\n"
        "@patch\ndef one(self: B):\n    return 1\n\n"
        f"def test_toy():\n    {body}\n"
    )
    toy = replace(KNOB, tests=(str(path),))
    limit = 5 if word == "too slow" else 120
    verdict = TOOL.tested(toy, True, limit)
    assert verdict.word == word and (word != "caught" or verdict.first == "test_toy.py::test_toy")
    if word == "caught":
        assert TOOL.tested(toy, False).word == "missed"
