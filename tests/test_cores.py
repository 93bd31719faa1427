import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilenetv2 import cores


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.fixture
def busy_neighbour() -> Iterator[None]:
    """Another program that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"],
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    yield
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="containers are Linux's")
@pytest.mark.parametrize(
    ("quota", "cores_left"),
    [("max 100000", 8), ("150000 100000", 2), ("20000 100000", 1), ("6400000 100000", 8),
     ("nonsense", 8), ("", 8), ("1 0", 8)],
)  # fmt: skip
def test_a_container_has_the_cores_that_it_may_use(
    quota: str, cores_left: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "GROUP", tmp_path)
    assert cores.available_cores() == 8
    (tmp_path / "cpu.max").write_text(quota)
    assert cores.available_cores() == cores_left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what others use")
def test_a_busy_neighbour_is_seen(busy_neighbour: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    monkeypatch.setattr(cores, "WINDOW", 0.5)
    assert cores.used_by_others() > 0.3
    cores.share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no such call")
def test_own_work_waiting_and_guests_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "cpu  1000 200 300 9000 50 10 20 30 500 50\ncpu0 1 2 3 4\n"
    monkeypatch.setattr(Path, "read_text", lambda _: line)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(os, "times", lambda: os.times_result((2.0, 1.0, 7.0, 7.0, 99.0)))
    assert cores._others_seconds() == pytest.approx(15.6 - 3.0)


@pytest.mark.parametrize("text", ["", "nonsense", "cpu 1 2"])
def test_what_cannot_be_known_is_taken_as_busy(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert cores.used_by_others() == float("inf")


@pytest.mark.parametrize(
    ("load", "others", "expected"),
    [(1.9, 0.0, None), (0.1, 1.0, None), (1.9, 1.0, "passive"), (1.9, float("inf"), "passive")],
)
def test_both_the_past_minute_and_this_moment_must_be_busy(
    load: float, others: float, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(cores, "used_by_others", lambda: others)
    cores.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    monkeypatch.setattr(cores, "used_by_others", lambda: 2.0)
    cores.share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such setting there")
def test_only_cores_that_may_be_used_count() -> None:
    allowed = os.sched_getaffinity(0)
    assert cores.available_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores.available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
