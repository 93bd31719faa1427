"""Kernels are compiled before they are launched, on all cores, and brought to the GPU.

Triton compiles in Python, whose lock lets threads wait for each other. So where there are cores
for that, processes compile first, into Triton's cache on the disk. Whatever goes wrong with them,
threads compile the same here: processes can only spare time.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

import mobilenetv2
from mobilenetv2.cores import available_cores
from mobilenetv2.network.gpu import compile_worker

CORES_FOR_PROCESSES = 6
"""With fewer, threads are as fast: each process has to start first."""

MOST_PROCESSES = 16
"""Each takes some hundred megabytes."""

WarmUp = Callable[[], Any]
"""Compiles a kernel for what it will be launched with, or finds it in Triton's cache."""


class Wanted(NamedTuple):
    """A kernel, and what it is to be compiled for, as Triton writes it down."""

    module: str
    name: str
    specialisation: str


def compile_ahead(warm_ups: Sequence[WarmUp]) -> None:
    """Compile kernels, and bring them to the GPU."""
    cores = available_cores()
    if cores >= CORES_FOR_PROCESSES:
        with suppress(Exception):  # then all is left to the threads
            _fill_cache(_wanted(warm_ups), min(cores, MOST_PROCESSES))
    on_this_gpu = partial(torch.cuda.set_device, torch.cuda.current_device())
    with ThreadPoolExecutor(cores, initializer=on_this_gpu) as threads:
        with triton.AsyncCompileMode(threads, ignore_errors=True):
            pending = [warm_up() for warm_up in warm_ups]
        compiled = {id(kernel): kernel for kernel in map(_finished, pending)}
        # An older Triton then compiles, in C, what launches each of them.
        list(threads.map(_load, compiled.values()))


def _wanted(warm_ups: Sequence[WarmUp]) -> list[Wanted]:
    """What these would compile, each once; nothing is compiled."""
    found: dict[Wanted, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[Wanted(fn.module, fn.name, compile["specialization_data"])] = None
        return True  # which tells Triton that nothing is left to do

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    try:
        for warm_up in warm_ups:
            warm_up()
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    return list(found)


def _fill_cache(wanted: Sequence[Wanted], processes: int) -> None:
    """Compile into Triton's cache, unless a mark there says that this was done."""
    kernels = list(dict.fromkeys((one.module, one.name) for one in wanted))
    digests = compile_worker.digests(kernels)
    target = triton.runtime.driver.active.get_current_target()
    target = (target.backend, target.arch, target.warp_size)
    told = json.dumps([triton.__version__, target, kernels, digests, wanted])
    digest = hashlib.sha256(told.encode()).hexdigest()
    mark = Path(triton.knobs.cache.dir) / f"mobilenetv2-{digest}"
    if wanted and not mark.exists():
        _compile_in_processes(wanted, json.dumps([target, kernels]), processes)
        mark.touch()


def _compile_in_processes(wanted: Sequence[Wanted], told: str, processes: int) -> None:
    """Each takes the next kernel as soon as it is done with one.

    Raises:
        OSError: a process could not be started, or has ended.
    """
    left = deque(wanted)

    def work() -> None:
        with _worker() as worker:
            print(told, file=worker.stdin, flush=True)
            with suppress(IndexError):  # nothing is left
                while True:
                    print(json.dumps(left.popleft()), file=worker.stdin, flush=True)
                    if not worker.stdout.readline():
                        raise ChildProcessError("a process that compiles has ended")

    with ThreadPoolExecutor(processes) as threads:
        started = [threads.submit(work) for _ in range(min(processes, len(wanted)))]
        try:
            for one in started:
                one.result()
        finally:
            left.clear()  # where one has failed, or the user wants to leave


@contextmanager
def _worker() -> Iterator[Any]:
    """A process of :mod:`.compile_worker`, which is gone afterwards."""
    package = str(Path(mobilenetv2.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    worker = subprocess.Popen(
        [sys.executable, "-m", compile_worker.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


def _finished(pending: Any) -> Any:
    """The compiled kernel; None where it cannot be compiled."""
    if isinstance(pending, triton.FutureKernel):
        return pending.result(ignore_errors=True)
    return pending


def _load(compiled: Any) -> None:
    """Bring a kernel to the GPU."""
    with suppress(Exception):  # which comes again with the launch
        getattr(compiled, "run", None)
