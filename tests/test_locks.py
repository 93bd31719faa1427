"""Locks hold for everybody who asks, also while their file comes and goes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobilenetv2.locks import one_at_a_time


def test_who_comes_when_one_leaves_waits_for_those_before(tmp_path: Path) -> None:
    """The first deletes its file, on which the second has waited; the third must not pass by."""
    lock, inside, most = tmp_path / "x.lock", 0, 0
    counting, second_waits, first_leaves = threading.Lock(), threading.Event(), threading.Event()

    def work() -> None:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        time.sleep(0.3)
        with counting:
            inside -= 1

    def first() -> None:
        with one_at_a_time(lock) as waited:
            assert not waited
            assert second_waits.wait(10)
            time.sleep(0.1)
        first_leaves.set()

    def second() -> None:
        with one_at_a_time(lock, second_waits.set) as waited:
            assert waited
            work()

    def third() -> None:
        assert first_leaves.wait(10)
        time.sleep(0.1)
        with one_at_a_time(lock):
            work()

    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(first)
        time.sleep(0.1)
        others = [pool.submit(second), pool.submit(third)]
        for done in (one, *others):
            done.result(20)
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_a_complaint_before_waiting_reaches_the_caller(tmp_path: Path) -> None:
    def complain() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    lock = tmp_path / "x.lock"
    with one_at_a_time(lock):
        with pytest.raises(BrokenPipeError), one_at_a_time(lock, complain):
            raise AssertionError("came in")
        assert lock.exists()


def test_without_a_place_for_the_lock_nobody_waits(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path / "no folder" / "x.lock") as waited:
        assert not waited
