"""The state machine of a run: any order of controls from
any thread, every kind of failure, resuming bit by bit"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Regress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deffi_lab.core.history import History, Series
from deffi_lab.core.run import STATUSES, Run
from deffi_lab.core.step import Step
from deffi_lab.core.store import StoreError, load_state

BOUND = 20.0  # seconds after which a call counts as a deadlock
CONTROLS = (
    "start",
    "pause",
    "resume",
    "step",
    "stop",
    "reset",
    "save",
    "load",
    "set",
    "call",
    "wait",
)


def bounded(fn, *args):
    "Runs fn in a thread of its own; fails where it does not come back"
    box = []

    def body():
        try:
            box.append((True, fn(*args)))
        except Exception as e:
            box.append((False, e))

    t = threading.Thread(target=body, daemon=True)
    t.start()
    t.join(BOUND)
    assert not t.is_alive(), f"{fn} did not return: deadlock"
    return box[0]


def act(run, control, folder):
    if control == "step":
        return run.step(2)
    if control == "save":
        return run.save(folder / "s.safetensors", timeout=BOUND / 2)
    if control == "load":
        return run.load(folder / "first.safetensors", timeout=BOUND / 2)
    if control == "set":
        return run.set("lr", 0.02).result(BOUND / 2)
    if control == "call":
        return run.call(lambda m: m.index).result(BOUND / 2)
    if control == "wait":
        return run.wait(0.01)
    return getattr(run, control)()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(st.sampled_from(CONTROLS), max_size=8), min_size=1, max_size=3),
    st.sampled_from([4, 10**6]),
)
def test_any_order_of_controls_from_any_thread(tmp_path_factory, orders, rounds):
    folder = tmp_path_factory.mktemp("run")
    run = Run(Regress(rounds))
    run.save(folder / "first.safetensors")
    problems, seen = [], []
    run.on_status.append(seen.append)

    def person(controls):
        for c in controls:
            good, value = bounded(act, run, c, folder)
            if not good and not isinstance(value, RuntimeError):
                problems.append((c, value))

    people = [threading.Thread(target=person, args=(o,)) for o in orders]
    for t in people:
        t.start()
    for t in people:
        t.join(BOUND * 4)
        assert not t.is_alive()
    assert not problems
    assert run.status in STATUSES and set(seen) <= set(STATUSES)
    good, closed = bounded(run.close)
    assert good and closed and run.status in ("idle", "stopped", "finished")
    assert run._thread is None or not run._thread.is_alive()
    # whatever came before, the run can be reset and driven to its end, with the numbers it always
    # has
    run.reset()
    run.method.rounds, run.method.knobs.lr = 4, 1e-2
    run.method.reset()
    run.run()
    assert run.status == "finished" and run.last.index == 12
    assert run.last.metrics == Run(Regress(4)).run().last.metrics


def test_pause_is_prompt_step_is_exact_and_resume_goes_on():
    run = Run(Regress(10**6))
    run.start()
    time.sleep(0.05)
    run.pause()
    run.wait(5)
    at = run.last.index
    time.sleep(0.05)
    assert run.status == "paused" and run.last.index == at > 0
    run.step(5)
    assert run.wait(5) == "paused" and run.last.index == at + 5
    run.resume()
    time.sleep(0.05)
    assert run.last.index > at + 5 and run.status == "running"
    assert run.close() and run.status == "stopped"
    run.start()
    time.sleep(0.02)
    assert run.status == "running" and run.close()


def test_threaded_run_equals_inline_run():
    a, b = Run(Regress(7)), Run(Regress(7)).run()
    a.start()
    assert a.wait(20) == "finished"
    assert a.last == b.last
    assert all(
        np.array_equal(a.history.columns()[k], b.history.columns()[k]) for k in ("index", "loss")
    )


def test_speed_is_a_bound_and_controls_end_its_wait():
    run = Run(Regress(10**6))
    run.speed = 20
    run.start()
    time.sleep(0.5)
    run.pause()
    run.wait(5)
    assert 3 <= run.last.index <= 13
    run.speed = 0.01  # a step in a hundred seconds
    run.start()
    time.sleep(0.05)
    run.speed = 0.01
    t = time.monotonic()
    run.pause()
    run.wait(5)
    assert time.monotonic() - t < 1 and run.close()


def test_live_knob_acts_between_steps_and_a_bad_one_is_refused():
    run = Run(Regress(10**6))
    run.start()
    run.set("lr", 0.5).result(5)
    assert run.method.knobs.lr == 0.5
    with pytest.raises(ValueError, match="lr=7.*1e-05..1"):
        run.set("lr", 7).result(5)
    assert run.status == "running" and run.close()


@pytest.mark.parametrize(
    "error, word",
    [
        (ValueError("broken"), "broken"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (MemoryError("cpu"), "MemoryError"),
        (torch.OutOfMemoryError("device"), "OutOfMemoryError"),
        (SystemExit(3), "SystemExit"),
        (None, "loss=nan"),
    ],
)
@pytest.mark.parametrize("threaded", [True, False])
def test_every_failure_ends_in_failed_with_the_checkpoint_whole(tmp_path, error, word, threaded):
    path = tmp_path / "last.safetensors"
    run = Run(Regress(50, fail_at=20, error=error), checkpoint=path)
    if threaded:
        run.start()
        run.wait(20)
    else:
        with pytest.raises(type(error) if error else FloatingPointError):
            run.run()
    assert run.status == "failed" and word in run.error and "Traceback" in run.error
    saved = load_state(path)
    assert saved["method"]["index"] == 18  # the boundary before step 20
    before = path.read_bytes()
    run.start()
    run.step()
    time.sleep(0.02)
    assert run.status == "failed"  # start does not pretend
    with pytest.raises(RuntimeError, match="load the last checkpoint"):
        run.save(tmp_path / "x.safetensors")
    assert path.read_bytes() == before and not (tmp_path / "x.safetensors").exists()
    run.method.fail_at = None
    run.load(path)
    run.run()
    assert run.status == "finished" and run.error is None
    assert run.last.metrics == Run(Regress(50)).run().last.metrics


def test_reset_after_a_failure():
    run = Run(Regress(5, fail_at=4))
    run.start()
    run.wait(10)
    assert run.status == "failed"
    run.method.fail_at = None
    run.reset()
    assert run.status == "idle" and run.error is None and run.history.columns() == {}
    assert run.run().last.metrics == Run(Regress(5)).run().last.metrics


def test_a_failing_view_does_not_end_training_in_the_lab_only_here():
    run = Run(Regress(3))
    run.on_frame = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run()  # a lab catches it; a bare run tells
    assert run.status == "failed"


def test_save_in_the_middle_of_a_round_runs_on_to_its_end(tmp_path):
    run = Run(Regress(20))
    run.start()
    run.pause()
    run.wait(5)
    run.step(1 + (3 - run.method.index % 3))
    run.wait(5)
    assert not run.method.at_boundary
    run.save(tmp_path / "s.safetensors")
    assert run.method.at_boundary and run.status == "paused"
    assert load_state(tmp_path / "s.safetensors")["method"]["index"] == run.method.index
    assert run.close()


def test_stop_while_a_save_waits_says_so(tmp_path):
    m = Regress(10**6)
    run = Run(m)
    run.start()
    run.pause()
    run.wait(5)

    class Never(type(m)):
        at_boundary = property(lambda s: False, lambda s, v: None)

    m.__class__ = Never
    box = []
    t = threading.Thread(target=lambda: box.append(bounded(run.save, tmp_path / "s.safetensors")))
    t.start()
    time.sleep(0.1)
    run.stop()
    t.join(BOUND)
    assert not t.is_alive() and not box[0][0] and "nothing was saved" in str(box[0][1])
    assert not list(tmp_path.iterdir())


def test_bad_files_change_nothing(tmp_path):
    run = Run(Regress(5)).run(6)
    (tmp_path / "foreign").write_text("hello")
    for name in ("none", "foreign"):
        with pytest.raises(StoreError):
            run.load(tmp_path / name)
    with pytest.raises(StoreError):
        run.save(tmp_path / "foreign")
    with pytest.raises(StoreError):
        run.save(tmp_path / "no folder" / "x")
    assert (tmp_path / "foreign").read_text() == "hello"
    assert run.run().last.metrics == Run(Regress(5)).run().last.metrics


def test_a_name_has_one_thread():
    a = Run(Regress(10**6), name="cell")
    a.start()
    b = Run(Regress(10**6), name="cell")
    assert a.status == "stopped" and not a._thread.is_alive()
    b.start()
    assert sum(t.name == "run cell" for t in threading.enumerate()) == 1
    assert b.close()


def test_inline_run_is_refused_while_a_thread_works():
    run = Run(Regress(10**6))
    run.start()
    with pytest.raises(RuntimeError, match="stop it first"):
        run.run(1)
    assert run.close()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least one step"):
            run.run(bad)
        with pytest.raises(ValueError, match="at least one step"):
            run.step(bad)


def test_finished_can_be_awaited():
    run = Run(Regress(5))
    run.start()
    assert asyncio.run(asyncio.wait_for(run.finished(), 20)) == "finished"


CHILD = """
import json, sys; sys.path.insert(0, {tests!r})
from helpers import Regress
from deffi_lab.core.run import Run
import torch; torch.set_num_threads(1)
import time
run, path, log = Run(Regress(60), checkpoint={path!r}), {path!r}, open({log!r}, "a")
if {resume}: run.load(path)
run.on_frame = lambda s: (log.write(json.dumps([s.index, s.metrics["loss"].hex()]) + "\\n"), log.flush(),
                          time.sleep({nap}))
run.run()
"""  # noqa: E501


def test_killed_at_any_moment_and_resumed_ends_with_equal_bits(tmp_path):
    torch.set_num_threads(1)
    whole = {}
    run = Run(Regress(60))
    run.on_frame = lambda s: whole.update({s.index: s.metrics["loss"].hex()})
    run.run()
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    path, log = str(tmp_path / "c.safetensors"), tmp_path / "log"
    log.touch()
    for resume, kill_after in (
        (False, int(rng.integers(5, 60))),
        (True, int(rng.integers(5, 60))),
        (True, None),
    ):
        code = CHILD.format(
            tests=str(Path(__file__).parents[1]),
            path=path,
            log=str(log),
            resume=resume,
            nap=0.004 if kill_after else 0,
        )
        start = len(log.read_text().splitlines())
        child = subprocess.Popen([sys.executable, "-c", code])
        while (
            kill_after
            and child.poll() is None
            and len(log.read_text().splitlines()) < start + kill_after
        ):
            time.sleep(0.002)
        if kill_after:
            child.send_signal(signal.SIGKILL)
        child.wait(60)
    assert child.returncode == 0
    lines = [json.loads(ln) for ln in log.read_text().splitlines() if ln.endswith("]")]
    assert len(lines) >= 180 and {i for i, _ in lines} == set(
        whole
    )  # killed, gone over again, and complete
    assert all(whole[i] == loss for i, loss in lines)


def test_a_million_steps_stay_under_50_mb():
    h = History()
    h.append(Step(0, "x", {f"m{j}": 0.0 for j in range(8)}))
    tracemalloc.start()
    for i in range(1, 1_000_000):
        h.append(Step(i, "x", {"m0": float(i)}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert h.nbytes() + peak < 50e6
    p = h.series("m0")
    assert p[0, 0] == 0 and p[-1, 0] == 999_999 and 2048 <= len(p) <= 4097
    assert len(set(np.diff(p[:-1, 0]))) == 1  # evenly spaced, whatever the length


@given(st.integers(4, 40), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_a_series_keeps_first_last_and_even_spacing(size, n):
    s = Series(size)
    for i in range(n):
        s.append(i, i * 2.0)
    p = s.points()
    assert p[0, 0] == 0 and tuple(p[-1]) == (n - 1, 2.0 * (n - 1)) and len(p) <= size + 1
    assert len(set(np.diff(p[:-1, 0]))) <= 1 and (p[:, 1] == 2 * p[:, 0]).all()


def test_columns_align_metrics_that_are_measured_at_different_steps():
    h = History()
    for i in range(6):
        h.append(Step(i, "x", {"loss": float(i)} | ({"accuracy": 0.5} if i % 3 == 0 else {})))
    c = h.columns()
    assert c["index"].tolist() == list(range(6)) and np.isnan(c["accuracy"]).sum() == 4
    other = History()
    other.load_state_dict(h.state_dict())
    assert np.array_equal(other.columns()["accuracy"], c["accuracy"], equal_nan=True)
