"""Many files in order, in as many threads as help."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenetv2.data import many_files
from mobilenetv2.data.many_files import AHEAD, SAMPLE, SMALL, in_order, threads_for


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 7 * AHEAD + 1])
def test_every_result_in_order(threads: int, count: int) -> None:
    assert list(in_order(lambda n: n * n, range(count), threads)) == [n * n for n in range(count)]


def test_several_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)  # a single thread would wait here alone
    assert len(list(in_order(lambda _: both.wait(), range(8), 2))) == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_is_begun_than_may_wait(threads: int) -> None:
    """Decoded pictures are large: a slow taker must not fill the memory."""

    class Counted(list[int]):
        def __iter__(self) -> Iterator[int]:
            for file in super().__iter__():
                begun.append(file)
                yield file

    begun: list[int] = []
    results = in_order(abs, Counted(range(10 * AHEAD)), threads)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert 0 < len(begun) <= AHEAD * threads


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_where_its_result_would(threads: int) -> None:
    results = in_order(lambda n: 1 // (n - 7), range(100), threads)
    for n in range(7):
        assert next(results) == 1 // (n - 7)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_small_files_are_for_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_files, "available_cores", lambda: 7)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(bytes(SMALL - 1))
    large.write_bytes(bytes(2 * SMALL))
    assert threads_for([small] * 1000) == 1
    assert threads_for([large] * 1000) == 7
    assert threads_for([small, large]) == 7  # their mean counts
    assert threads_for([small, tmp_path / "gone"]) == 1
    assert threads_for([tmp_path / "gone"]) == 7
    assert threads_for([]) == 7


def test_few_are_asked_for_their_size(tmp_path: Path) -> None:
    class Asked(list[Path]):
        def __getitem__(self, places: Any) -> Any:
            found = super().__getitem__(places)
            counts.append(len(found))
            return found

    counts: list[int] = []
    for count in (1, SAMPLE, 2 * SAMPLE - 1, 1000 * SAMPLE):
        threads_for(Asked([tmp_path / "gone"] * count))
    assert counts == [1, SAMPLE, SAMPLE, SAMPLE]
