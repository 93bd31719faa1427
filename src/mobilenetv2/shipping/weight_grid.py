"""The numbers that a quantised weight can be: one scale per output channel, levels around zero."""

import torch
from torch import Tensor


def levels_of(bits: int) -> int:
    """Levels on either side of zero: as ONNX Runtime's tool has them, so that its grid is this one.

    >>> levels_of(8), levels_of(7)
    (127, 64)
    """
    return {8: 127, 7: 64}[bits]


def round_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """The nearest weight, float32 O×…, with so many bits and one scale per output channel."""
    levels = levels_of(bits)
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-8) / levels
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -levels, levels)
