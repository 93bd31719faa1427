"""The cores: how many there are for this process, and whether other programs want them too."""

import math
import os
import time
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
"""Of version 2, where a container sees its own control group."""
BUSY = 0.25
"""Cores that others use, from which on sharing pays."""
WINDOW = 0.1
"""Seconds of watching what others use."""


def available_cores() -> int:
    """Cores that this process may use: fewer than the machine has where it was told so."""
    if hasattr(os, "sched_getaffinity"):
        return int(min(len(os.sched_getaffinity(0)), _container_cores()))
    return os.cpu_count() or 1


def _container_cores() -> float:
    """What a container, seen from within, may use of the cores, as whole ones; else infinity."""
    try:
        quota, period = (GROUP / "cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # there is none, or it may use all: "max"
        return math.inf


def share_cores() -> None:
    """Where others use the cores too, let threads sleep while they wait for each other.

    By default they spin, which is 1.7 times as fast alone; on a busy machine, though, a spinning
    thread keeps out the very thread that it waits for, and training gets slower by an order of
    magnitude (docs/performance.md). PyTorch's OpenMP reads the variable when it is loaded; what is
    set already stays.

    The load average costs nothing to ask. But it is a mean over a minute, and so stays high for a
    while after other work has ended: where it is high, the cores are watched for a moment.
    """
    if "OMP_WAIT_POLICY" in os.environ or not hasattr(os, "getloadavg"):
        return
    if os.getloadavg()[0] > BUSY and used_by_others() > BUSY:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def used_by_others() -> float:
    """How many cores other programs use right now; infinitely many where that cannot be known."""
    before = _others_seconds()
    started = time.perf_counter()
    time.sleep(WINDOW)
    after = _others_seconds()
    if before is None or after is None:
        return float("inf")
    return (after - before) / (time.perf_counter() - started)


def _others_seconds() -> float | None:
    """CPU seconds since boot, all cores together, without this process's own; Linux alone tells."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _idle, _waiting, *rest = map(int, line.split()[1:])
    except (OSError, ValueError):
        return None
    interrupts_and_stolen = sum(rest[:3])  # what guests use is part of user and nice
    busy = user + nice + system + interrupts_and_stolen
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - own.user - own.system
