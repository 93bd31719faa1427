"""Random numbers keyed on (seed, epoch, picture) instead of drawn from a stream.

The same picture in the same epoch gets the same draw, whoever asks, in whatever order and on
whatever device. A resumed run, another number of workers or of processes therefore sees the same
pictures, and no random state has to be saved for the data.
"""

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): its increment, and the multipliers of its mixing function.
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def uniform(seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) for each picture.

    Args:
        seed: of the run.
        epoch: counted from 0.
        indices: int64 of shape N, the pictures' places in their set.
        count: how many independent numbers each picture needs.

    Returns:
        float32 of shape N×count, on the device of ``indices``.

    >>> a = uniform(0, 3, torch.tensor([7, 8]), 2)
    >>> b = uniform(0, 3, torch.tensor([8, 7, 9]), 2)
    >>> bool((a[0] == b[1]).all() and (a[1] == b[0]).all() and (a[0] != a[1]).all())
    True
    """
    # On the CPU: a GPU would have to wait for a number that is brought to it.
    key = int(_mix(_mix(torch.tensor(seed)) ^ epoch))
    pictures = _mix(indices ^ key)
    numbers = torch.arange(1, count + 1, device=indices.device)
    bits = _mix(pictures[:, None] + numbers * _signed(_INCREMENT))
    return _shift_right(bits, 40).float() / 2**24


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order of ``size`` pictures in one epoch: int64 of shape N, on the CPU."""
    key = int(_mix(_mix(torch.tensor(seed)) ^ ~epoch))
    return torch.randperm(size, generator=torch.Generator().manual_seed(key))


def _mix(bits: Tensor) -> Tensor:
    bits = bits + _signed(_INCREMENT)
    bits = (bits ^ _shift_right(bits, 30)) * _signed(_MULTIPLIERS[0])
    bits = (bits ^ _shift_right(bits, 27)) * _signed(_MULTIPLIERS[1])
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """A logical shift: PyTorch's own drags the sign bit along."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
