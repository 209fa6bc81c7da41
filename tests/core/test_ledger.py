"The ledger: nothing lost, nothing twice, whatever happens to the process or the file"

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import content, digits, go, slow

from deffi_lab.core.ledger import APPLICATION, Key, Ledger, LedgerError, Point
from deffi_lab.core.machine import in_words, machine

fork = get_context("fork")
A = Key("mnist", "random", 0, 0)


def filled(path, n=5):
    with Ledger(path, "test", {"pool": 100}) as ledger:
        ledger.add_many(
            [
                (
                    Key("mnist", m, 0, s),
                    Point(10 * (i + 1), i / 7, 1.0, range(i), [9], {"kappa": 0.5, "said": "x"}),
                )
                for m in ("a", "b")
                for s in range(3)
                for i in range(n)
            ]
        )
    return path


def test_what_goes_in_comes_out(tmp_path):
    p = Point(3, 1 / 3, 0.5, [5, 1, 2], [4], {"kappa": 0.25, "said": "012"})
    with Ledger(tmp_path / "l") as ledger:
        ledger.add(A, p)
        (got,) = ledger.points(A)
        assert (
            got == p
            and got.value == 1 / 3
            and got.order.tolist() == [5, 1, 2]
            and got.metrics == p.metrics
        )
        assert ledger.last(A) == p and ledger.keys() == [A] and len(ledger) == 1
        assert ledger.last(Key("mnist", "random", 0, 1)) is None


def test_a_commit_is_on_disk_when_add_returns(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        assert ledger._db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert ledger._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        ledger.add(A, Point(1, 0.5))
        with Ledger(tmp_path / "l", readonly=True) as other:
            assert len(other) == 1


def test_the_same_point_twice_is_one_and_another_is_refused(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        ledger.add(A, Point(1, 0.5, 1.0, [3]))
        ledger.add(A, Point(1, 0.5, 9.0, [3]))
        assert len(ledger) == 1
        for other in (
            Point(1, 0.6, 1.0, [3]),
            Point(1, 0.5, 1.0, [4]),
            Point(1, 0.5, 1.0, [3], [1]),
        ):
            with pytest.raises(LedgerError, match="at 1 labels"):
                ledger.add(A, other)
        with pytest.raises(LedgerError):
            ledger.add_many([(A, Point(2, 0.7)), (A, Point(1, 0.9))])
        assert [p.labels for p in ledger.points(A)] == [1]  # all of a transaction or nothing


def test_failures_stay_until_the_point_is_there(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        ledger.fail(A, 2, "ValueError: no")
        assert ledger.failures() == [(A, 2, "ValueError: no")]
        ledger.add(A, Point(2, 0.5))
        assert ledger.failures() == []


def test_other_settings_under_the_same_name_are_refused(tmp_path):
    filled(tmp_path / "l")
    with pytest.raises(LedgerError, match=r"pool=100, not 200.*another name"):
        Ledger(tmp_path / "l", "test", {"pool": 200})
    with pytest.raises(LedgerError, match="steps=None, not 3"):
        Ledger(tmp_path / "l", "test", {"pool": 100, "steps": 3})
    with Ledger(tmp_path / "l", "test", {"pool": 100}) as ledger:
        assert len(ledger) == 30
    with Ledger(tmp_path / "l", "other", {"pool": 200}) as ledger:
        assert len(ledger) == 0


def test_to_frame_and_columns(tmp_path):
    with Ledger(filled(tmp_path / "l"), "test") as ledger:
        frame = ledger.to_frame()
        assert list(frame.columns) == [
            "data",
            "method",
            "query",
            "seed",
            "labels",
            "value",
            "seconds",
            "kappa",
        ]
        assert len(frame) == 30 and frame.groupby("method").value.max().tolist() == [4 / 7, 4 / 7]
        assert ledger.columns()["labels"].dtype.kind == "i"


def test_the_exported_copy_is_small_whole_and_read_only(tmp_path):
    with Ledger(filled(tmp_path / "l"), "test") as ledger:
        ledger.fail(A, 7, "text")
        ledger.export(tmp_path / "small", metrics=["kappa"])
        with pytest.raises(LedgerError, match="there already"):
            ledger.export(tmp_path / "small")
        before = ledger.columns()
    raw = (tmp_path / "small").read_bytes()
    os.chmod(tmp_path / "small", 0o444)
    with Ledger(tmp_path / "small", "test", readonly=True) as small:
        assert all(
            (before[k] == v).all() for k, v in small.columns().items()
        ) and small.failures() == [(A, 7, "text")]
        assert "said" not in small.points(Key("mnist", "a", 0, 0))[0].metrics
        with pytest.raises(LedgerError, match="opened to be read"):
            small.add(A, Point(1, 0.5))
    assert (tmp_path / "small").read_bytes() == raw and not (tmp_path / "small-wal").exists()


def test_a_copy_may_hold_the_lists_of_labels(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        ledger.add(A, Point(2, 0.5, 1.0, [7, 3], [4]))
        ledger.export(tmp_path / "whole", lists=True)
        ledger.export(tmp_path / "small")
    for name, order, following in (("whole", [7, 3], [4]), ("small", [], [])):
        with Ledger(tmp_path / name, readonly=True) as copy:
            (p,) = copy.points(A)
            assert (p.order.tolist(), p.next.tolist()) == (order, following)


def back_to(version, ledger):
    "Makes a ledger what it was at schema 2, which knew no machines"
    ledger._db.execute("ALTER TABLE points DROP COLUMN machine")
    ledger._db.execute("DROP TABLE machines")
    ledger._db.execute(f"PRAGMA user_version={version}")


def test_a_ledger_without_machines_is_read_as_it_is_and_its_points_stay_unknown(tmp_path):
    path = filled(tmp_path / "l")
    with Ledger(path, "test") as ledger:
        before = ledger.columns()
        back_to(2, ledger)
    raw, key = path.read_bytes(), Key("mnist", "a", 0, 0)
    with Ledger(path, "test", readonly=True) as ledger:
        assert ledger.machines() == [({}, 30)] and ledger.points(key)[0].machine == {}
        assert all((ledger.columns()[k] == v).all() for k, v in before.items())
        ledger.export(tmp_path / "copy")
    assert path.read_bytes() == raw
    with Ledger(tmp_path / "copy", "test", readonly=True) as copy:
        assert copy.machines() == [({}, 30)]
    with Ledger(path, "test") as ledger:  # converted
        assert ledger.machines() == [({}, 30)]
        ledger.add(key, Point(60, 0.9))
        assert ledger.machines() == [({}, 30), (machine(), 1)]
        with pytest.raises(LedgerError, match="that was on: unknown; this is: .*threads"):
            ledger.add(key, Point(10, 0.123))


def test_a_point_says_what_it_was_computed_on(tmp_path):
    there = machine() | {"threads": 96, "processor": "Other 9000"}
    with Ledger(tmp_path / "l", "test") as ledger:
        ledger.add(A, Point(1, 0.5))
        ledger.add(A, Point(2, 0.5, machine=there))
        ledger.add(A, Point(3, 0.5, machine={}))
        assert [p.machine for p in ledger.points(A)] == [machine(), there, {}]
        ledger.export(tmp_path / "small")
    with Ledger(tmp_path / "small", "test", readonly=True) as small:
        assert [p.machine for p in small.points(A)] == [machine(), there, {}]
        assert sorted(n for _, n in small.machines()) == [1, 1, 1]
        assert there in [record for record, _ in small.machines()]


def test_another_result_from_another_machine_names_both_and_what_differs(tmp_path):
    here, there = machine(), machine() | {"bf16": not machine()["bf16"], "processor": "Other 9000"}
    with Ledger(tmp_path / "l", "test") as ledger:
        ledger.add(A, Point(1, 0.5))
        ledger.add(A, Point(1, 0.5, machine=there))  # the same result: no matter from where
        with pytest.raises(LedgerError) as e:
            ledger.add(A, Point(1, 0.6, machine=there))
        text = str(e.value)
        assert in_words(here) in text and in_words(there) in text
        assert "Other 9000" in text and "differ in" in text and f"bf16: {here['bf16']}" in text
        assert "threads" not in text.split("differ in")[1]
        with pytest.raises(LedgerError, match="the same words must give the same numbers"):
            ledger.add(A, Point(1, 0.6))
        assert [p.value for p in ledger.points(A)] == [0.5]


def test_a_ledger_of_the_former_schema_is_converted_with_all_its_points(tmp_path):
    with Ledger(filled(tmp_path / "l"), "test") as ledger:
        before = ledger.columns()
        back_to(2, ledger)
        ledger._db.execute("ALTER TABLE points RENAME COLUMN metrics TO told")
        ledger._db.execute("PRAGMA user_version=1")
    raw = (tmp_path / "l").read_bytes()
    with pytest.raises(LedgerError, match="schema 1, this deffi_lab reads 2 to 3; open it"):
        Ledger(tmp_path / "l", "test", readonly=True)
    assert (tmp_path / "l").read_bytes() == raw
    Ledger(tmp_path / "l", "test").close()
    with Ledger(tmp_path / "l", "test", readonly=True) as ledger:
        assert all((ledger.columns()[k] == v).all() for k, v in before.items())


@pytest.mark.parametrize(
    "spoil", ["text", "short", "cut", "garbage", "foreign", "foreign id", "newer"]
)
def test_a_bad_file_gives_one_error_and_stays_as_it_is(tmp_path, spoil):
    path = tmp_path / "l"
    if spoil in ("cut", "garbage", "newer"):
        with Ledger(filled(tmp_path / "full", 40), "test") as ledger:
            ledger.export(path)
    raw = bytearray(path.read_bytes()) if path.exists() else bytearray()
    if spoil == "text":
        raw = bytearray(b"my notes\n" * 50)
    if spoil == "short":
        raw = bytearray(b"SQLite format 3\0abc")
    if spoil == "cut":
        raw = raw[: len(raw) // 2]
    if spoil == "garbage":
        raw[4096:] = random.Random(0).randbytes(len(raw) - 4096)
    if spoil == "newer":
        raw[60:64] = (99).to_bytes(4, "big")
    if raw:
        path.write_bytes(raw)
    if "foreign" in spoil:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE birds (name TEXT)")
            if spoil == "foreign id":
                db.execute("PRAGMA application_id=7")
        db.close()
    before = path.read_bytes()
    for how in (dict(), dict(readonly=True), dict(settings={"a": 1})):
        with pytest.raises(LedgerError) as e:
            Ledger(path, "test", **how).columns()
        assert str(path) in str(e.value)
    assert path.read_bytes() == before


def test_a_missing_folder_or_file_says_so(tmp_path):
    with pytest.raises(LedgerError, match="no such folder"):
        Ledger(tmp_path / "no" / "l")
    with pytest.raises(LedgerError, match="no such file"):
        Ledger(tmp_path / "l", readonly=True)
    with pytest.raises(LedgerError, match="not a file"):
        Ledger(tmp_path)
    assert not (tmp_path / "l").exists()


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_numbers(tmp_path):
    digits()
    go(tmp_path / "whole", slow)
    rng, kills, torn, patience = random.Random(1), 0, 0, 1.0
    while kills < 24:  # as many ledgers as that takes
        path, torn, grew = tmp_path / f"torn{torn}", torn + 1, []
        while kills < 24:
            child = fork.Process(target=go, args=(path, slow))
            child.start()
            time.sleep(patience * rng.uniform(0.02, 0.2))
            ended = not child.is_alive()
            child.kill()
            child.join()
            if ended:
                break
            assert child.exitcode in (0, -signal.SIGKILL)
            kills += child.exitcode != 0
            with Ledger(path, "test") as ledger:
                grew.append(len(ledger))
            patience = 1.0 if grew[-1] else 1.3 * patience  # a busy machine needs longer to begin
        assert grew == sorted(grew)  # it never lost a point
        go(path, slow)
        assert content(path) == content(tmp_path / "whole")
    assert len(set(grew)) > 1 or torn > 1  # some were killed in the middle


def _write(path, seed, n):
    with Ledger(path, "test", {"pool": 1}) as ledger:
        for i in range(n):
            ledger.add(Key("mnist", "random", 0, seed), Point(i + 1, i / n, 0.0, range(50)))


def test_two_processes_write_at_once(tmp_path):
    both = [fork.Process(target=_write, args=(tmp_path / "l", s, 150)) for s in range(2)]
    for p in both:
        p.start()
    for p in both:
        p.join()
    assert [p.exitcode for p in both] == [0, 0]
    with Ledger(tmp_path / "l", "test") as ledger:
        assert len(ledger) == 300
        assert all(
            [p.labels for p in ledger.points(k)] == list(range(1, 151)) for k in ledger.keys()
        )


def test_importing_the_ledger_needs_neither_pandas_nor_dask():
    code = "import sys, deffi_lab.core.ledger, deffi_lab.study.sweep; print({'pandas', 'dask', 'distributed'} & set(sys.modules))"  # noqa: E501
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5), st.floats(0, 1), st.lists(st.integers(0, 2**31 - 1), max_size=4)
        ),
        max_size=8,
    )
)
def test_any_points_come_back_in_the_order_of_labels(tmp_path_factory, rows):
    first = {n: Point(n, v, 0.0, o) for n, v, o in reversed(rows)}
    with Ledger(tmp_path_factory.mktemp("l") / "l") as ledger:
        ledger.add_many([(A, p) for p in first.values()])
        assert ledger.points(A) == [first[n] for n in sorted(first)]
        assert np.array_equal(ledger.columns()["value"], [first[n].value for n in sorted(first)])


def test_our_mark_is_in_the_header(tmp_path):
    filled(tmp_path / "l")
    with sqlite3.connect(tmp_path / "l") as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION
