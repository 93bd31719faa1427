"""A process that compiles kernels into Triton's cache, where who launches them finds them.

It is told which GPU they are for, and asks for none itself; so it starts without PyTorch. See
:mod:`.compiling`, which starts it.

On standard input come lines of JSON: first the target (backend, architecture, threads of a warp),
then for each kernel its module, its name and what Triton says it is to be compiled for. Each is
answered with 1, or with 0 where it cannot be compiled: whoever launches it hears why.
"""

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

MODULES = ("norms", "pointwise", "depthwise", "depthwise_backward", "stem", "finish")
"""Where the kernels are."""


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
    triton.runtime.driver.set_active(KnownTarget(*json.loads(sys.stdin.readline())))
    digests()
    for line in sys.stdin:
        print(int(_compile(*json.loads(line))), file=answers, flush=True)


def _compile(module: str, name: str, specialisation: str) -> bool:
    """Whether a kernel could be compiled, into the cache."""
    try:
        getattr(import_module(module), name).preload(specialisation)
    except Exception:  # there is no list of what may be wrong
        return False
    return True


def digests() -> list[str]:
    """What Triton's cache knows the sources of this package's kernels by.

    In Triton 3.6 they depend on the order in which they are first asked for. So each process that
    shares the cache asks for all of them in one order, before it compiles any.
    """
    package = __name__.rpartition(".")[0]
    modules = [import_module(f"{package}.{name}") for name in MODULES]
    kernels = [value for module in modules for value in vars(module).values()]
    return [kernel.cache_key for kernel in kernels if isinstance(kernel, triton.JITFunction)]
