"""How much memory there is, in containers too, from files as Linux writes them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenetv2 import machine_memory
from mobilenetv2.config import CacheConfig
from mobilenetv2.data.picture_cache import memory_limit
from mobilenetv2.machine_memory import free_memory, usable_memory

GIB = 1 << 30
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone says so")
MakeLinux = Callable[[dict[str, str]], None]


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeLinux:
    """A machine of 64 GiB, half of them free, whose kernel says what a test gives."""
    machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", machine.__getitem__)
    monkeypatch.setattr(machine_memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(
        machine_memory, "Path", lambda name: tmp_path / str(name).replace("/", "", 1)
    )
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def make(files: dict[str, str]) -> None:
        for name, text in {"proc/meminfo": f"MemAvailable: {32 << 20} kB\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def group(
    folder: str, limit: int | str, used: int, of_files: int, version: int = 2
) -> dict[str, str]:
    """The files of a control group; sizes in GiB, ``of_files`` for what is remembered of files."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
             2: ("memory.max", "memory.current", "")}[version]  # fmt: skip
    half = of_files * GIB // 2
    stat = f"anon 5\n{names[2]}inactive_file {half}\n{names[2]}active_file {half}\nslab 7\n"
    limit = limit if isinstance(limit, str) else str(limit * GIB)
    return {
        f"groups/{folder}{names[0]}": f"{limit}\n",
        f"groups/{folder}{names[1]}": f"{used * GIB}\n",
        f"groups/{folder}memory.stat": stat,
    }


def test_without_groups_it_is_the_machines(linux: MakeLinux) -> None:
    linux({})
    assert (usable_memory(), free_memory()) == (64 * GIB, 32 * GIB)


def test_files_that_a_container_has_read_do_not_take_its_memory(linux: MakeLinux) -> None:
    linux({"proc/self/cgroup": "0::/\n", **group("", 8, 7, of_files=6)})
    assert (usable_memory(), free_memory()) == (8 * GIB, 7 * GIB)


def test_the_narrowest_of_nested_groups_counts(linux: MakeLinux) -> None:
    """As under Slurm; and a group without a limit limits nothing."""
    linux(
        {
            "proc/self/cgroup": "0::/jobs/7/step\n",
            **group("jobs/7/step/", "max", 1, of_files=0),
            **group("jobs/7/", 4, 3, of_files=0),
            **group("jobs/", 16, 14, of_files=0),
        }
    )
    assert (usable_memory(), free_memory()) == (4 * GIB, 1 * GIB)


def test_the_first_version_of_groups(linux: MakeLinux) -> None:
    """A container is told its path outside, and sees its own group as the root."""
    linux(
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/1234\n0::/\n",
            **group("memory/", 2, 1, of_files=0, version=1),
        }
    )
    assert (usable_memory(), free_memory()) == (2 * GIB, 1 * GIB)


@pytest.mark.parametrize("missing", ["memory.stat", "memory.max", "memory.current"])
def test_a_group_that_says_too_little_is_passed_over(
    linux: MakeLinux, tmp_path: Path, missing: str
) -> None:
    linux({"proc/self/cgroup": "0::/\n", **group("", 8, 7, of_files=6)})
    (tmp_path / "groups" / missing).unlink()
    assert (usable_memory(), free_memory()) == (64 * GIB, 32 * GIB)


def test_where_nobody_says(
    linux: MakeLinux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free_memory() is None
    monkeypatch.delattr(os, "sysconf")
    assert usable_memory() is None
    assert memory_limit(CacheConfig()) == 2 * GIB


def test_processes_of_a_machine_share_what_pictures_may_take(
    linux: MakeLinux, monkeypatch: pytest.MonkeyPatch
) -> None:
    linux({"proc/self/cgroup": "0::/\n", **group("", 8, 7, of_files=6)})
    assert memory_limit(CacheConfig()) == 2 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert memory_limit(CacheConfig()) == GIB / 4
    assert memory_limit(CacheConfig(memory_limit=3.0)) == 3 * GIB, "what was asked for"


@on_linux
def test_this_machine() -> None:
    free, usable = free_memory(), usable_memory()
    assert free is not None
    assert usable is not None
    assert 0 < free <= usable < 1 << 50
