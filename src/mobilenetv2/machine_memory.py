"""The machine's memory: how much of it this process may use, in a container often a part, and has.

Linux alone says all of it. What the kernel only remembers of files counts as free: it gives that
back before anybody runs out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def usable_memory() -> int | None:
    """Bytes that there are for this process and all beside it; None if unknown."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
    return min([there, *(limit for limit, _ in _groups())])


def free_memory() -> int | None:
    """Bytes that may still be taken; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    return min([free, *(group_free for _, group_free in _groups())])


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, as Python, PyTorch and C++ word it.

    >>> ran_out(RuntimeError("MPS backend out of memory")), ran_out(RuntimeError("no kernel"))
    (True, False)
    """
    words = (
        "out of memory", "DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED",
        "Cannot allocate memory",
    )  # fmt: skip
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def resident_memory() -> int | None:
    """Bytes that this process holds; the peak, where only that is told; None if unknown."""
    return _own("VmRSS")


def peak_memory() -> int | None:
    """The most bytes that this process held since :func:`forget_peak`; None if unknown."""
    return _own("VmHWM")


def forget_peak() -> None:
    """Let the peak begin with what is there now; without Linux's leave it does not."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _own(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return _peak_elsewhere()
    found = (int(line.split()[1]) << 10 for line in lines if line.startswith(name))
    return next(found, None)


def _peak_elsewhere() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _groups() -> Iterator[tuple[int, int]]:
    """Of each control group with a limit that this process is in: the limit, and what is free.

    Of both versions of control groups. Seen from within a container its own group may be the root,
    whatever path it is told.
    """
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:
            top, of_limit, of_used, kind = GROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, kind = GROUPS / "memory", "total_"
            of_limit, of_used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError, KeyError):  # it has gone, or the limit is "max"
                limit, used = (int((folder / name).read_text()) for name in (of_limit, of_used))
                lines = (folder / "memory.stat").read_text().splitlines()
                stat = {name: int(value) for name, value in map(str.split, lines)}
                files = stat[f"{kind}active_file"] + stat[f"{kind}inactive_file"]
                yield limit, limit - used + files
            if folder == top:
                break
