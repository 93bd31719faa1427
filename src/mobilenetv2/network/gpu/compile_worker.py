"""A process that compiles kernels into Triton's cache, where who launches them finds them.

It is told which GPU they are for, and asks for none itself; so it starts within a fraction of a
second, without PyTorch. See :mod:`.compiling`, which starts it.

On standard input come lines of JSON: first the target (backend, architecture, threads of a warp)
and all kernels (module and name), then again and again one of these with what Triton says it is to
be compiled for. Each is answered with an empty line, also where it cannot be compiled: whoever
launches it hears why.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget


class KnownTarget:
    """Stands for Triton's driver of a GPU, as far as compiling asks for it."""

    def __init__(self, backend: str, architecture: Any, warp_size: int) -> None:
        self._target = GPUTarget(backend, architecture, warp_size)

    def get_current_target(self) -> GPUTarget:
        """The GPU that kernels are for."""
        return self._target

    def get_current_device(self) -> int:
        """Its number, on which nothing that is compiled depends."""
        return 0


def main() -> None:
    """Compile what standard input names, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this, and ends it
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # compilers may say something
    target, kernels = json.loads(sys.stdin.readline())
    triton.runtime.driver.set_active(KnownTarget(*target))
    digests(kernels)
    for line in sys.stdin:
        module, name, specialisation = json.loads(line)
        with suppress(Exception):
            _kernel(module, name).preload(specialisation)
        print(file=answers, flush=True)


def digests(kernels: Sequence[Sequence[str]]) -> list[str]:
    """What Triton's cache knows the sources of kernels by; each is named by module and name.

    In Triton 3.6 they depend on the order in which they are first asked for. So all that share a
    cache begin with this, in one order.
    """
    return [_kernel(*names).cache_key for names in kernels]


def _kernel(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


if __name__ == "__main__":
    main()
