"""Several processes that do one job together, each in its own Python, started by ``torchrun``.

``torchrun`` tells each process its rank and where to find the others through environment variables.
A program that was started alone gets :data:`ALONE`, for which every method here does nothing.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mobilenetv2.errors import ConfigError
from mobilenetv2.rendezvous import fresh_store

Value = TypeVar("Value")

SMALLEST_PART = 4
"""Pictures per process, on average, below which everybody works on the whole batch: batch norm
cannot learn from a single picture."""


class Share(NamedTuple):
    """The part of a batch that one process has.

    Attributes:
        positions: int64 N, ascending places in the whole batch.
        total: pictures in the whole batch.
    """

    positions: Tensor
    total: int


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        rank: from 0; the first one alone writes and prints.
        count: how many there are.
        restarts: how often ``torchrun`` has started all of them again.
    """

    rank: int = 0
    count: int = 1
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> Share | None:
        """This process's part of a batch; None for all of it, where it is too small to divide.

        Each part is its own mirror image: what is mixed with the batch in reverse order finds its
        partner in the same part.

        >>> Processes(0, 2).share(9).positions, Processes(1, 2).share(9).positions
        (tensor([0, 1, 7, 8]), tensor([2, 3, 4, 5, 6]))
        """
        if self.count == 1 or total < SMALLEST_PART * self.count:
            return None
        pairs = (total + 1) // 2
        front = torch.arange(pairs * self.rank // self.count, pairs * (self.rank + 1) // self.count)
        return Share(torch.cat([front, total - 1 - front]).unique(), total)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's ``tensor``."""
        if self.count > 1:
            tensor = tensor.contiguous().clone()
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of everybody's ``number``."""
        if self.count == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def from_first(self, value: Value) -> Value:
        """The first process's ``value``, for everybody; what the others bring is not looked at."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, values: list[Value]) -> list[list[Value]]:
        """Everybody's ``values``, in the order of the ranks."""
        if self.count == 1:
            return [values]
        lists: list[list[Value]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, values)
        return lists

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give everybody's ``tensors`` the first process's values (in place)."""
        if self.count > 1:
            for tensor in tensors:
                values = tensor.detach().contiguous().clone()
                dist.broadcast(values, src=0)
                tensor.detach().copy_(values)


ALONE = Processes()
"""A program that was not started by ``torchrun``, or as its only process."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes, for the length of the block.

    With GPUs, each process of a machine takes one of its own as the current one.

    Raises:
        ConfigError: there are said to be others, but not where.
    """
    try:
        processes = _from_environment()
        meets = processes.count > 1 and not dist.is_initialized()
        if meets:
            backend = _backend()
            store, rank, count = next(iter(rendezvous("env://")))
            store = fresh_store(store, rank, count)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}: the other processes cannot be met "
            f"({reason}); start all of them with torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield processes
        if meets:
            dist.barrier()  # nobody leaves while another one is still listening
    finally:
        if meets:
            dist.destroy_process_group()


def processes_here() -> int:
    """How many processes of the run ``torchrun`` has started on this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def _backend() -> str:
    """What the processes talk through; takes this one's GPU, where there are some."""
    if not torch.cuda.is_available():
        return "gloo"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return "cpu:gloo,cuda:nccl"


def _from_environment() -> Processes:
    """What ``torchrun`` says; a rank that somebody left behind means nothing without a count.

    Raises:
        ValueError: it makes no sense.
    """
    rank, count, restarts = (
        int(os.environ.get(name, default))
        for name, default in (
            ("RANK", "0"), ("WORLD_SIZE", "1"), ("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    )  # fmt: skip
    if count == 1:
        return Processes(0, 1, restarts)
    if not 0 <= rank < count:
        raise ValueError(f"RANK is {rank}, WORLD_SIZE {count}")
    return Processes(rank, count, restarts)
