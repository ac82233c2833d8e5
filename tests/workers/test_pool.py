"""Real processes of a real Ray on this machine."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deepzero_apps.workers import Pool, Where, WorkersLost
from deepzero_apps.workers.where import Connection
from tests.workers.objects import Counter, refused

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    connection = Connection(Where(3))
    with Pool(Counter, Where(2)) as pool:
        yield pool
    assert ray.is_initialized()  # a pool leaves a Ray that it found
    connection.close()
    assert not ray.is_initialized()


def test_every_call_is_answered_once(pool: Pool) -> None:
    answers = dict(pool.ask("double", [(x,) for x in range(50)]))

    assert answers == {x: 2 * x for x in range(50)}
    assert pool.waiting == 0


def test_answers_come_as_they_are_ready(pool: Pool) -> None:
    slow = pool.put("slowly", 1.0, 1.0)
    quick = pool.put("slowly", 2.0, 0.0)

    assert [pool.take(), pool.take()] == [(quick, 2.0), (slow, 1.0)]


def test_two_workers_are_two_processes_of_one_thread_each(pool: Pool) -> None:
    calls = [pool.put("slowly", 0.0, 0.3), pool.put("slowly", 0.0, 0.3)]
    for _ in calls:
        pool.take()

    processes = pool.processes()
    assert len(set(processes)) == 2
    assert os.getpid() not in processes


def test_shared_value_arrives_whole(pool: Pool) -> None:
    shared = pool.share(np.arange(1000.0))

    answers = dict(pool.ask("total", [(shared, 1.0), (shared, 2.0)]))

    assert answers == {0: 499_500.0, 1: 999_000.0}  # n (n - 1) / 2


def test_error_of_a_worker_comes_out_as_it_is(pool: Pool) -> None:
    with pytest.raises(LookupError, match="no such thing"):
        list(pool.ask("refuse", [("no such thing",)] * 5))

    assert pool.waiting == 0  # the others are forgotten
    assert dict(pool.ask("double", [(1,)])) == {0: 2}


def test_worker_whose_work_leaves_the_program_stays_and_says_so(pool: Pool) -> None:
    before = pool.lost

    with pytest.raises(ValueError, match=r"left the program \(SystemExit: no more licenses\)"):
        list(pool.ask("leave", [()]))

    assert pool.lost == before
    assert dict(pool.ask("double", [(1,)])) == {0: 2}


def test_abandoned_calls_answer_nobody(pool: Pool) -> None:
    list(pool.ask("double", [(1,)]))  # somebody is there, and at work when it is abandoned
    for _ in range(6):
        pool.put("slowly", 9.0, 0.1)
    pool.abandon()

    assert pool.waiting == 0
    assert dict(pool.ask("double", [(4,)])) == {0: 8}


def test_warning_of_a_worker_is_passed_on_once(pool: Pool) -> None:
    with pytest.warns(UserWarning, match="slow graph") as seen:
        list(pool.ask("warn", [("slow graph",)] * 4))

    assert len(seen) == 1


def test_take_without_a_call_is_refused(pool: Pool) -> None:
    with pytest.raises(LookupError, match="no call is waiting"):
        pool.take()


def test_killed_worker_is_replaced_and_its_call_made_again(pool: Pool, tmp_path: Path) -> None:
    before = pool.lost
    list(pool.ask("double", [(1,)] * 4))
    for process in pool.processes():
        os.kill(process, signal.SIGKILL)

    assert dict(pool.ask("double", [(x,) for x in range(8)])) == {x: 2 * x for x in range(8)}
    assert dict(pool.ask("die_once", [(str(tmp_path / "flag"),)])) == {0: "survived"}
    assert pool.lost >= before + 2


def test_whoever_pays_hears_of_a_call_that_is_made_again(pool: Pool, tmp_path: Path) -> None:
    heard: list[int] = []
    pool.again = heard.append
    first = pool.put("die_once", str(tmp_path / "once"))
    assert pool.take() == (first, "survived")
    assert heard == [first]

    def refuse(number: int) -> None:
        raise OverflowError(f"no money for {number}")

    pool.again = refuse
    second = pool.put("die_once", str(tmp_path / "never"))
    with pytest.raises(OverflowError, match=f"no money for {second}"):
        pool.take()
    pool.again = None
    assert pool.waiting == 0


def test_call_that_kills_every_worker_ends_with_its_name(pool: Pool) -> None:
    with pytest.raises(WorkersLost, match="a call of die, got 8 that died"):
        list(pool.ask("die", [()]))


def test_object_that_cannot_be_made_says_why(pool: Pool) -> None:  # noqa: ARG001 - its Ray
    with Pool(refused, Where(1)) as empty, pytest.raises(ValueError, match="no data on this ma"):
        list(empty.ask("double", [(1,)]))


def test_pool_without_room_says_so(pool: Pool) -> None:  # noqa: ARG001 - its Ray
    with (
        Pool(Counter, Where(1, threads=64), patience=0.5) as crowded,
        pytest.raises(WorkersLost, match="must have room in the cluster, got none within"),
    ):
        list(crowded.ask("double", [(1,)]))


def test_counts_are_checked() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Where(0)
    with pytest.raises(ValueError, match="cluster must be auto"):
        Where(cluster=" ")
