"""Takes mechanisms out of the methods one by one, and counts those that the tests notice.

make mutants                                     # all of them
python tools/mutants.py selection study          # only these tables of tools/mutants
python tools/mutants.py --only "doubt" --jobs 1  # only mutants whose name holds these words
python tools/mutants.py --row                    # all, and the row `mutants_caught` of this machine

A table is a file tools/mutants/<chapter>.toml with one entry for each mutant:

    [[mutant]]
    name = "the recipe asks at random"            # what is taken out
    file = "methods/selection/fewest.py"          # a module, seen from deffi_lab
    find = "one or several lines of that module"  # occurs exactly once
    put = "what stands there instead"
    tests = ["tests/selection/test_fewest.py::test_name"]  # files or tests that pytest takes
    only = "words of pytest -k"                   # may be left out

Each mutant is applied to a copy of the package in a temporary folder, which the tests import in
place of the package; nothing in the working tree changes. First the tests must pass with a copy
that is as it was. A mutant is caught where a test fails. It is not caught where it cannot be
imported or names what is not there, or where its tests are not there or take too long.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TABLES = ROOT / "deffi_lab", ROOT / "tools" / "mutants"
LINKED = ("assets", "static")  # folders of the package that hold no module
LIMIT = 300  # seconds that the tests of a mutant may take
QUIET = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not browser and not cuda"]
SLIPS = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError")
WORDS = {0: "missed", 1: "caught", 124: "too slow"}  # any other return code: broken


@dataclass(frozen=True)
class Mutant:
    "One change of one module, and the tests that should notice it"

    name: str
    file: str
    find: str
    put: str
    tests: tuple[str, ...]
    only: str = ""

    def of(self, source: str) -> str:
        "The changed source; ValueError where the text is not there exactly once, or stays"
        if (count := source.count(self.find)) != 1:
            raise ValueError(f"{self.name}: its text occurs {count} times in {self.file}, not once")
        changed = source.replace(self.find, self.put)
        if changed == source:
            raise ValueError(f"{self.name}: nothing is changed")
        compile(changed, self.file, "exec")
        return changed


@dataclass(frozen=True)
class Verdict:
    "What the tests said: a word of `WORDS`, or 'broken', the first test that failed, seconds"

    word: str
    first: str
    seconds: float


def tables() -> list[str]:
    "Names of the tables"
    return sorted(p.stem for p in TABLES.glob("*.toml"))


def mutants(names: Iterable[str] = ()) -> list[Mutant]:
    "The mutants of some tables (none given: of all); ValueError for an unknown table"
    if unknown := sorted(set(names) - set(tables())):
        raise ValueError(f"no table {unknown[0]!r}: choose from {', '.join(tables())}")
    out = []
    for name in names or tables():
        for row in tomllib.loads((TABLES / f"{name}.toml").read_text("utf-8"))["mutant"]:
            out.append(Mutant(**row | {"tests": tuple(row["tests"])}))
    return out


def copied(into: Path, mutant: Mutant | None = None, package: Path = PACKAGE) -> Path:
    "A copy of the package in a folder, with a mutant applied; data and scripts are linked"
    there = into / package.name
    shutil.copytree(package, there, ignore=shutil.ignore_patterns(*LINKED))
    for name in LINKED:
        if (package / name).exists():
            (there / name).symlink_to(package / name)
    if mutant is not None:
        path = there / mutant.file
        path.write_text(mutant.of(path.read_text("utf-8")), "utf-8")
    return there


def tested(mutant: Mutant, changed: bool, limit: float = LIMIT) -> Verdict:
    "Runs the tests of a mutant on a copy of the package, changed or as it is"
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder), mutant if changed else None)
        tests = [str(ROOT / t) for t in mutant.tests]
        only = ["-k", mutant.only] if mutant.only else []
        # -P: the folder where Python starts is not searched for modules, PYTHONPATH is
        words = [sys.executable, "-P", "-m", "pytest", *QUIET, *only, *tests]
        env = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        began = time.monotonic()
        try:
            done = subprocess.run(
                words, cwd=folder, env=env, capture_output=True, text=True, timeout=limit
            )
            code, text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, text = 124, ""
        failed = re.search(r"^(?:FAILED|ERROR) \S*?([\w.]+\.py(?:::\S+)?)", text, re.M)
        first = failed[1] if failed else (text.strip().splitlines() or [""])[-1]
        slip = re.search(rf"^E +(?:\w+\.)*({'|'.join(SLIPS)})\b", text, re.M)
        word = "broken" if slip else WORDS.get(code, "broken")
        return Verdict(word, slip[1] if slip else first, time.monotonic() - began)


def judged(
    chosen: list[Mutant], changed: bool, jobs: int, limit: float
) -> Iterator[tuple[Mutant, Verdict]]:
    "Mutants and their verdicts in their order, as they come; `jobs` at once"
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(chosen, pool.map(lambda m: tested(m, changed, limit), chosen))


def arguments(words: list[str]) -> argparse.Namespace:
    "The command line"
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("tables", nargs="*", help=f"{', '.join(tables())} (nothing: all)")
    p.add_argument("--only", default="", help="mutants whose name holds these words")
    p.add_argument("--jobs", type=int, default=2, help="tests of so many mutants at once")
    p.add_argument("--limit", type=float, default=LIMIT, help="seconds for the tests of a mutant")
    p.add_argument("--row", action="store_true", help="write the row of this machine's benches")
    return p.parse_args(words)


def record(caught: int, count: int) -> None:
    "Writes the row `mutants_caught`"
    sys.path.insert(0, str(ROOT / "bench"))
    import run
    from common import Row

    note = "mechanisms taken out one by one, and those of them that a test noticed"
    run.keep([Row("mutants_caught", caught, "mechanisms", count, "share", note=note)])


def main(words: list[str]) -> int:
    "Prints the table; 1 where a mutant was not caught, 2 where tests fail without one"
    a = arguments(words)
    if a.row and (a.tables or a.only):
        print("--row counts all mutants: leave out the tables and --only")
        return 2
    chosen = [m for m in mutants(a.tables) if a.only in m.name]
    for m in chosen:
        m.of((PACKAGE / m.file).read_text("utf-8"))
    plain = list({(m.tests, m.only): m for m in chosen}.values())
    for m, v in judged(plain, False, a.jobs, a.limit):
        if v.word != "missed":
            print(f"without a mutant the tests must pass: {m.tests} {m.only}: {v.word}: {v.first}")
            return 2
    caught = 0
    for m, v in judged(chosen, True, a.jobs, a.limit):
        caught += v.word == "caught"
        print(f"{v.word:8} {v.seconds:5.0f} s  {m.name:60} {v.first}", flush=True)
    print(f"{caught} of {len(chosen)} mutants caught")
    if a.row:
        record(caught, len(chosen))
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
