"""How long work takes, and on which machine; a timing means nothing without it."""

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mobilenetv2.errors import Mobilenetv2Error


def run_main(main: Callable[[], object]) -> None:
    """Run a program; what its user got wrong, such as a folder, ends it in words."""
    try:
        main()
    except Mobilenetv2Error as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions, ready for a report."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bool(torch.cpu._is_avx512_bf16_supported()),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def headline() -> str:
    """The same for people."""
    machine = describe()
    units = [name for name in ("bf16", "amx") if machine[name]]
    return (
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, "
        f"{machine['capability']}{' ' + ' '.join(units) if units else ''}, torch {machine['torch']}"
    )


def seconds(work: Callable[[], object]) -> float:
    """The wall time of some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
