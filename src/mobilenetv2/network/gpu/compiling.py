"""Kernels are compiled before they are launched, on all cores, and brought to the GPU.

Triton compiles in Python, whose lock lets threads wait for each other. So where there are cores
for that, processes compile first, into Triton's cache on the disk. Whatever goes wrong with them,
threads compile the same here: processes can only spare time.
"""

import hashlib
import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import torch
import triton

import mobilenetv2
from mobilenetv2.cores import available_cores
from mobilenetv2.machine_memory import free_memory
from mobilenetv2.network.gpu import compile_worker

FEWEST_PROCESSES, MOST_PROCESSES = 6, 16
"""Each has to start first: on two cores, threads were as fast."""

MEMORY = 1 << 29
"""Bytes that must be free for each process, more than was seen to be taken."""

MOST_SECONDS = 300
"""After which a process is taken for one that hangs."""

WORKER = compile_worker.__name__

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
    processes = min(cores, MOST_PROCESSES, (free_memory() or 0) // MEMORY)
    if processes >= FEWEST_PROCESSES:
        with suppress(Exception):  # then all is left to the threads
            _fill_cache(_wanted(warm_ups), processes)
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
    found = triton.runtime.driver.active.get_current_target()
    target = json.dumps([found.backend, found.arch, found.warp_size])
    told = json.dumps([triton.__version__, target, compile_worker.digests(), wanted])
    digest = hashlib.sha256(told.encode()).hexdigest()
    mark = Path(triton.knobs.cache.dir) / f"mobilenetv2-{digest}"
    if wanted and not mark.exists() and _compile_in_processes(wanted, target, processes):
        mark.touch()


def _compile_in_processes(wanted: Sequence[Wanted], target: str, processes: int) -> int:
    """How many kernels were compiled; each process takes the next as soon as it is done with one.

    Raises:
        OSError: a process could not be started, or has ended.
    """
    left = deque(wanted)

    def work() -> int:
        compiled = 0
        with _worker() as worker:
            print(target, file=worker.stdin, flush=True)
            with suppress(IndexError):  # nothing is left
                while True:
                    print(json.dumps(left.popleft()), file=worker.stdin, flush=True)
                    answer = worker.stdout.readline()
                    if not answer:
                        raise ChildProcessError("a process that compiles has ended")
                    compiled += int(answer)
        return compiled

    with ThreadPoolExecutor(processes) as threads:
        started = [threads.submit(work) for _ in range(min(processes, len(wanted)))]
        try:
            return sum(one.result() for one in started)
        finally:
            left.clear()  # where one has failed, or the user wants to leave


@contextmanager
def _worker() -> Iterator[Any]:
    """A process of :mod:`.compile_worker`, which is gone afterwards."""
    package = str(Path(mobilenetv2.__file__).parents[1])
    # This package's place comes last, and the current folder not at all: files there are not ours.
    program = f"import sys; sys.path.append({package!r}); import {WORKER} as w; w.main()"
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = Timer(MOST_SECONDS, worker.kill)
    deadline.start()
    with worker:
        try:
            yield worker
        finally:
            deadline.cancel()
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
