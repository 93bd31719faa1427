"""Whether a network is still what it was, so that a call prepared for it may be made again."""

from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.network.coverage import is_watched


class NetworkState:
    """All that :mod:`.coverage` asks of ``features`` for input ``x``, and where their tensors are.

    Comparing two states takes a fraction of the time that asking again takes. Modules and tensors
    are compared as objects: others with the same numbers get gradients of their own.
    """

    def __init__(self, features: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
        parts = list(features.children())
        first_and_last = [
            module for part in (*parts[:1], *parts[-1:]) for module in part.children()
        ]
        self._values: list[Any] = [x.shape, x.device, x.requires_grad, dtype]
        self._values.append(is_watched(*parts, *first_and_last))
        self._objects: list[Any] = []
        self._add(features)

    def is_same(self, other: "NetworkState") -> bool:
        """Whether nothing has changed."""
        return (
            len(self._objects) == len(other._objects)
            and all(map(is_, self._objects, other._objects))
            and self._values == other._values
        )

    def _add(self, module: nn.Module) -> None:
        held = vars(module)
        self._objects += (module, type(module))
        self._values.append(held["training"])
        if isinstance(module, nn.Conv2d):
            self._values += (module.stride, module.padding, module.dilation, module.groups)
            self._values.append(module.padding_mode)
        elif isinstance(module, nn.BatchNorm2d):
            self._values += (module.eps, module.momentum, module.affine)
            self._values.append(module.track_running_stats)
        else:
            self._values.append(held.get("has_shortcut"))
        for tensor in (*held["_parameters"].values(), *held["_buffers"].values()):
            self._objects.append(tensor)
            if tensor is not None:
                self._values += (tensor.data_ptr(), tensor.numel(), tensor.requires_grad)
        for part in held["_modules"].values():
            self._objects.append(part)
            if part is not None:
                self._add(part)
