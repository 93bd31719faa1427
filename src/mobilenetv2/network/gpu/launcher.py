"""How kernels are launched: by a plan, on this many processors; or only compiled, side by side."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import triton
from torch import Tensor

from mobilenetv2.network.gpu import compile_worker
from mobilenetv2.network.gpu.compiling import compile_ahead
from mobilenetv2.network.gpu.plans import Plan


class Launcher:
    """Launches kernels on one GPU.

    Args:
        processors: of the GPU; several programs run on each.
        most_stages: rounds of a loop whose loads may be on their way at once.
    """

    def __init__(self, processors: int, most_stages: int) -> None:
        self._processors = processors
        self._most_stages = most_stages
        self._rehearsed: list[Callable[[], Any]] | None = None
        compile_worker.digests()  # before any kernel is compiled

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, plan: Plan | None = None,
        **constants: Any,
    ) -> None:  # fmt: skip
        """Run a kernel on the GPU, as its plan says; in a rehearsal only note it."""
        if plan is not None:
            constants |= plan.options(self.depth(plan))
        if self._rehearsed is None:
            kernel[grid](*arguments, **constants)
        else:
            # Memory is not held: a kernel is compiled for what its tensors store.
            given = [one.dtype if isinstance(one, Tensor) else one for one in arguments]
            self._rehearsed.append(partial(kernel.warmup, *given, grid=grid, **constants))

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """A block in which nothing is launched; behind it all that it would have is compiled.

        Kernel by kernel, as they are first launched, one core would compile what all of them can.
        What cannot be compiled says so when it is launched. One rehearsal at a time, and no launch
        beside it.
        """
        noted = self._rehearsed = []
        try:
            yield
        finally:
            self._rehearsed = None
        with suppress(Exception):  # training can do without: kernels are compiled as they come
            compile_ahead(noted)

    def grid(
        self, plan: Plan, rows: int, of_rows: str, channels: int, of_channels: str = "CHANNELS"
    ) -> tuple[int, int]:
        """Programs that share the rows, for each block of channels, and those blocks.

        ``of_rows`` and ``of_channels`` are the plan's names of both blocks.
        """
        blocks = triton.cdiv(channels, plan.block[of_channels])
        return self.programs(plan, triton.cdiv(rows, plan.block[of_rows]), blocks), blocks

    def programs(self, plan: Plan, tiles: int, blocks: int) -> int:
        """Those that share so many tiles, for each of so many blocks of channels."""
        return max(1, min(tiles, plan.programs * self._processors // blocks))

    def depth(self, plan: Plan) -> int:
        """Rounds of a loop whose loads are on their way at once."""
        return min(plan.stages, self._most_stages)
