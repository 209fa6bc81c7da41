"Sweeps: every executor gives the same ledger, and whatever breaks leaves it whole"

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
import rounds
import torch
from rounds import BUDGETS, content, go, nearest_mean, plan

from deffi_lab.core.ledger import Key, Ledger, Point
from deffi_lab.study.sweep import Report, Sweep, Task, check_budgets, tasks, units

here = Path(__file__).resolve().parents[1]
spawn = get_context("spawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "l"
    go(path)
    return content(path)


def test_a_study_in_this_process(tmp_path, whole):
    with Ledger(tmp_path / "l", "test") as ledger:
        report = Sweep(nearest_mean, plan(), ledger).run(progress=False)
        assert (report.done, report.skipped, report.failed) == (40, 0, 0)
        assert [p.labels for p in ledger.points(Key("digits", "far", 0, 3))] == list(BUDGETS)
        again = Sweep(nearest_mean, plan(), ledger).run(progress=False)
        assert (again.done, again.skipped) == (0, 40)
    values = [v for _, n, v, *_ in whole if n == 160]
    assert len(whole) == 40 and min(values) > 0.45 and len(set(values)) > 4


def elsewhere(task: Task, last: list) -> list:
    "Points of a round that names its machine"
    return [replace(p, machine={"device": "Card 7"}) for p in nearest_mean(task, last)]


def in_a_worker(task: Task, last: list) -> list:
    "Computes on as many threads as no other process here"
    torch.set_num_threads(7)
    return nearest_mean(task, last)


def test_a_point_names_the_machine_of_its_worker(tmp_path):
    for round, name in ((elsewhere, "named"), (in_a_worker, "worker")):
        with Ledger(tmp_path / name, "test") as ledger:
            make = lambda: ProcessPoolExecutor(1, spawn)
            Sweep(round, plan(2), ledger).run(make if name == "worker" else None, progress=False)
            ((record, n),) = ledger.machines()
            assert n == 20
            if name == "named":
                assert record == {"device": "Card 7"}
            else:
                assert record["threads"] == 7 != torch.get_num_threads()


def test_groups_do_not_change_the_numbers(tmp_path, whole):
    with Ledger(tmp_path / "l", "test") as ledger:
        Sweep(nearest_mean, plan(group=4), ledger).run(progress=False)
    assert content(tmp_path / "l") == whole


@pytest.mark.parametrize(
    "make",
    [lambda: ProcessPoolExecutor(2, spawn), lambda: ThreadPoolExecutor(3)],
    ids=["processes", "threads"],
)
@pytest.mark.parametrize("given", ["executor", "function"])
def test_an_executor_gives_the_same_ledger(tmp_path, whole, make, given):
    if given == "function":
        go(tmp_path / "l", executor=make)
    else:
        with make() as executor:
            go(tmp_path / "l", executor=executor)
            assert executor.submit(abs, -1).result() == 1  # one that was lent is left open
    assert content(tmp_path / "l") == whole


def dask():
    return pytest.importorskip("distributed", reason="pip install deffi_lab[dask]")


def test_a_dask_cluster_gives_the_same_ledger(tmp_path, whole):
    distributed = dask()
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert (
            len(
                {
                    w["pid"] if "pid" in w else w["nanny"]
                    for w in client.scheduler_info()["workers"].values()
                }
            )
            == 2
        )
        go(tmp_path / "l", executor=client.get_executor())
    assert content(tmp_path / "l") == whole


def test_a_dask_scheduler_of_its_own_gives_the_same_ledger(tmp_path, whole):
    distributed = dask()
    scheduler = tmp_path / "scheduler.json"
    env = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--no-jupyter",
        "--scheduler-file",
        str(scheduler),
    ]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--scheduler-file",
        str(scheduler),
        "--nthreads",
        "1",
        "--host",
        "127.0.0.1",
        "--no-dashboard",
        "--no-nanny",
        "--local-directory",
        str(tmp_path),
    ]
    quiet = dict(env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [subprocess.Popen(c, **quiet) for c in (command, worker, worker)]
    try:
        with distributed.Client(scheduler_file=str(scheduler), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            go(tmp_path / "l", executor=client.get_executor())
    finally:
        for p in reversed(started):
            p.kill()
        for p in started:
            p.wait(20)
    assert content(tmp_path / "l") == whole


@pytest.mark.parametrize(
    "round", [rounds.breaking, rounds.breaking_whole], ids=["one seed", "its whole group"]
)
def test_a_method_that_raises_on_one_seed_stops_nobody_else(tmp_path, whole, round):
    with Ledger(tmp_path / "l", "test") as ledger:
        report = Sweep(round, plan(), ledger).run(progress=False)
        ((key, labels, text),) = ledger.failures()
        assert (
            key == Key("digits", "far", 0, 1)
            and labels == 40
            and "a bug in the method" in text
            and "Traceback" in text
            or round is rounds.breaking
            and "a bug in the method" in text
        )
        assert report.failed == 1 and report.done == 37
        assert [p.labels for p in ledger.points(key)] == [10, 20]
        Sweep(nearest_mean, plan(), ledger).run(progress=False)  # mended
        assert ledger.failures() == []
    assert content(tmp_path / "l") == whole


@pytest.mark.parametrize("given", ["executor", "function"])
def test_a_lost_worker_costs_nothing(tmp_path, whole, monkeypatch, given):
    monkeypatch.setenv("DEADLY_MARK", str(tmp_path / "mark"))
    make = lambda: ProcessPoolExecutor(2, spawn)
    with pytest.warns(RuntimeWarning, match="lost a worker"):
        go(tmp_path / "l", rounds.deadly, make if given == "function" else make())
    assert (tmp_path / "mark").exists() and content(tmp_path / "l") == whole


@pytest.mark.parametrize("n", [0, 2])
def test_ctrl_c_stops_cleanly_and_the_rest_is_done_later(tmp_path, n):
    path = tmp_path / "l"
    child = subprocess.Popen(
        [sys.executable, str(here / "rounds.py"), str(path), str(n)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in child.stdout:
        if line.strip().isdigit() and int(line) >= 12:
            break
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: all of them
    out, err = child.communicate(timeout=30)
    assert child.returncode != 0 and "KeyboardInterrupt" in err
    deadline = time.time() + 10
    while (
        any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
        and time.time() < deadline
    ):
        time.sleep(0.1)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    with Ledger(path, "test") as ledger:
        had = len(ledger)
        assert 12 <= had < 400
        report = Sweep(nearest_mean, plan(40, 2), ledger).run(progress=False)
        assert report.skipped == had and report.done == 400 - had and not ledger.failures()


def test_progress_tells_what_is_left(tmp_path, capsys):
    reports = []
    with Ledger(tmp_path / "l", "test") as ledger:
        Sweep(nearest_mean, plan(), ledger).run(progress=lambda *a: reports.append(a))
    assert [s[0] for s in reports] == list(range(2, 41, 2)) and {s[1] for s in reports} == {40}
    assert reports[-1][2] == 0 and all(s[2] > 0 for s in reports[:-1])
    with Ledger(tmp_path / "m", "test") as ledger:
        Sweep(nearest_mean, plan(), ledger).run()
    assert "40/40" in capsys.readouterr().err


def test_seeds_that_stand_apart_are_not_run_as_one(tmp_path):
    task = Task("digits", "random", 0, BUDGETS, (0, 1, 2))
    with Ledger(tmp_path / "l", "test") as ledger:
        ledger.add(task.key(1), Point(10, 0.1))
        got = units(task, ledger)
        assert [(u.task.seeds, u.goal, u.weight) for u in got] == [((0, 2), 10, 5), ((1,), 20, 4)]
        for n in BUDGETS[1:]:
            ledger.add(task.key(1), Point(n, 0.2))
        assert [u.task.seeds for u in units(task, ledger)] == [(0, 2)]


def test_a_budget_that_a_run_has_passed_by_is_refused(tmp_path):
    with Ledger(tmp_path / "l", "test") as ledger:
        Sweep(nearest_mean, plan(), ledger).run(progress=False)
        more = tasks(["digits"], ["far"], (*BUDGETS[:2], 30, *BUDGETS[2:]), seeds=range(2))
        with pytest.raises(
            ValueError, match="budget=30.*up to 160 labels without it.*another study"
        ):
            Sweep(nearest_mean, more, ledger).run(progress=False)


def test_a_round_that_returns_too_little_is_a_failure(tmp_path):
    with Ledger(tmp_path / "l", "test") as ledger:
        report = Sweep(lambda task, last: [], plan(), ledger).run(progress=False)
        assert (
            report == Report(0, 0, 8, report.seconds) and "0 points for" in ledger.failures()[0][2]
        )


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(budgets=(0, 5)), r"budget=0: at least one label is needed \(1..the pool\)"),
        (dict(budgets=()), "at least one is needed"),
        (dict(budgets=(5, 5)), "must rise"),
        (dict(budgets=(9, 5)), "must rise"),
        (dict(queries=(-1,)), "query=-1"),
        (dict(queries=(11,)), "query=11: only 10 labels"),
        (dict(seeds=()), "at least one of each"),
        (dict(methods=()), "at least one of each"),
        (dict(group=0), "group=0"),
        (dict(seeds=(1, 1)), "each once"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        tasks(
            **{**dict(data=["digits"], methods=["random"], budgets=(10, 20), seeds=range(2)), **how}
        )


def test_a_budget_above_the_pool_is_refused(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        with pytest.raises(ValueError, match=r"budget=160: the pool has 100 samples \(1..100\)"):
            Sweep(nearest_mean, plan(), ledger, {"digits": 100})
        with pytest.raises(ValueError, match="nothing to run"):
            Sweep(nearest_mean, [], ledger)
    assert check_budgets([1, 2], 1, 2) == (1, 2)
