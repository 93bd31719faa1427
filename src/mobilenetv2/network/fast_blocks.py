"""The network's parts on the compiled kernels: same parameters, same numbers, fewer passes.

A network is one operation for autograd, or its inverted residuals are, and only the raw outputs of
the convolutions are kept for backward: what lies between them (norm, ReLU6 and its mask) is
computed again wherever it is read, inside the kernels: `fast_ops.cpp` for a CPU, :mod:`.gpu` for a
GPU.

Whatever the kernels do not cover runs through the stock code: evaluation, other devices and dtypes,
norms of another kind, tracing and compiling. Norms in eval mode within a network in training, as in
fine-tuning, keep their statistics.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mobilenetv2.network import cpp_kernels
from mobilenetv2.network.coverage import (
    Size,
    block_of,
    is_pointwise,
    is_watched,
    layer_of,
    size_behind,
    stem_shape,
    working_dtype,
)
from mobilenetv2.network.duplicate import duplicate
from mobilenetv2.network.fast_functions import (
    ChainFunction,
    InvertedResidualFunction,
    NormRelu6,
    PooledHead,
    Stem,
)
from mobilenetv2.network.kernels import Block, Chain, ChainCall, Kernels, MapShape, Part
from mobilenetv2.network.mobilenetv2 import ConvNormActivation, InvertedResidual, MobileNetV2
from mobilenetv2.network.network_state import NetworkState


class FastConvNormActivation(ConvNormActivation):
    """Norm and ReLU6 in two passes forward and two backward.

    The convolution is the stock one, or where kernels have their own for a first one, that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        dtype = working_dtype(input)
        part = dtype and _part(self, dtype, Size.of(input))
        if not (dtype and part):
            return cast(Tensor, super().forward(input))  # type: ignore[no-untyped-call]
        kernels = _kernels(input, dtype)
        may_be_stem = not (input.requires_grad or is_watched(part.conv))
        if may_be_stem and (shape := stem_shape(part, Size.of(input))):
            return cast(Tensor, Stem.apply(kernels, part, shape, input, *part.parameters))
        y: Tensor = part.conv(input)
        out = NormRelu6.apply(_kernels(y, y.dtype), part, y, part.weight, part.bias)
        return cast(Tensor, out)


class FastInvertedResidual(InvertedResidual):
    """The block as one operation, where it is not a piece of a larger one."""

    def forward(self, x: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        dtype = working_dtype(x)
        block = dtype and _block(self, dtype, Size.of(x))
        if not (dtype and block):
            return super().forward(x)
        kernels = _kernels(x, dtype)
        if kernels.has_chains:
            return _Waiting(kernels, dtype, x, [block]).run()
        out = InvertedResidualFunction.apply(kernels, block, dtype, x, *_parameters(block.parts))
        return cast(Tensor, out)


class FastMobileNetV2(MobileNetV2):
    """All parts as one operation, where the kernels can.

    The head's activations are averaged as they are computed, and never stored.
    """

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, features N×F out, averaged over the last map."""
        may_be_fast = self.training and not is_watched(self.features)
        dtype = working_dtype(pictures) if may_be_fast else None
        if dtype is None:
            return super().pooled_features(pictures)
        kernels = _kernels(pictures, dtype)
        if kernels.has_chains and torch.is_grad_enabled():  # else nothing has to be kept
            return self._in_chains(pictures, dtype, kernels)
        *modules, head = cast(Iterable[nn.Sequential], self.features)
        x = pictures
        for module in modules:
            x = module(x)
        size = Size.of(x)
        part = _part(head, dtype, size)
        if is_watched(head, *head.children()) or not is_pointwise(part, size):
            return cast(Tensor, head(x).mean((2, 3)))
        return cast(Tensor, PooledHead.apply(kernels, part, dtype, x, *part.parameters))

    def _in_chains(self, pictures: Tensor, dtype: torch.dtype, kernels: Kernels) -> Tensor:
        state = NetworkState(self.features, pictures, dtype)
        last_state, call = kernels.last_calls.get(self, (None, None))
        if last_state is not None and call is not None and state.is_same(last_state):
            return cast(Tensor, ChainFunction.apply(call, dtype, pictures, *call.parameters))
        *modules, head = cast(Iterable[nn.Sequential], self.features)
        waiting = _Waiting(kernels, dtype, pictures)
        for module in modules:
            if not waiting.takes(module):
                waiting = _Waiting(kernels, dtype, module(waiting.run()))
        part = _part(head, dtype, waiting.size)
        if is_watched(head, *head.children()) or not is_pointwise(part, waiting.size):
            return cast(Tensor, head(waiting.run()).mean((2, 3)))
        call = waiting.call(part)
        if waiting.x is pictures:  # else other modules have to run first
            kernels.last_calls[self] = state, call
        return cast(Tensor, ChainFunction.apply(call, dtype, waiting.x, *call.parameters))


def rehearse(network: FastMobileNetV2, pictures: Tensor) -> None:
    """Compile what a training step on such pictures will launch; the network stays as it is.

    Args:
        network: in the mode that it trains in, and in the step's autocast.
        pictures: N×C×H×W; what they show does not matter.
    """
    dtype = working_dtype(pictures)
    if dtype is None or is_watched(*network.modules()):  # nobody is told of what is only tried
        return
    stand_in = cast(FastMobileNetV2, duplicate(network))
    with _kernels(pictures, dtype).rehearsal():
        features = stand_in.pooled_features(pictures)
        if features.requires_grad:
            features.backward(torch.empty_like(features))


class _Waiting:
    """Parts that wait to run in one call.

    Attributes:
        x: what the first of them gets.
        size: of what the last of them puts out.
    """

    def __init__(
        self, kernels: Kernels, dtype: torch.dtype, x: Tensor, blocks: Sequence[Block] = ()
    ) -> None:
        self._kernels, self._dtype = kernels, dtype
        self.x = x
        self._stem: tuple[nn.Module, Part, MapShape] | None = None
        self._blocks: list[Block] = []
        self.size = Size.of(x)
        for block in blocks:
            self._append(block)

    def takes(self, module: nn.Module) -> bool:
        """Whether ``module`` can run in the same call, behind them; if so it waits too."""
        if isinstance(module, FastInvertedResidual):
            return not is_watched(module) and self._takes_block(module)
        if isinstance(module, FastConvNormActivation):
            return not is_watched(module, *module) and self._takes_stem(module)
        return False

    def run(self) -> Tensor:
        """What comes out of all that waited."""
        if self._blocks:
            call = self.call()
            return cast(Tensor, ChainFunction.apply(call, self._dtype, self.x, *call.parameters))
        return cast(Tensor, self._stem[0](self.x)) if self._stem else self.x

    def call(self, head: Part | None = None) -> ChainCall:
        """All that waited, and the ``head`` if there is one, as one call."""
        images, _, height, width, _ = self.size
        stem = self._stem[1:] if self._stem else None
        return self._kernels.chain(Chain(stem, self._blocks, head, images, height, width))

    def _takes_block(self, module: FastInvertedResidual) -> bool:
        block = _block(module, self._dtype, self.size)
        # Nothing has to go backwards through frozen parts in front.
        if not block or (self._is_empty and not self._learns(block.parts)):
            return False
        self._append(block)
        return True

    def _takes_stem(self, module: FastConvNormActivation) -> bool:
        part = _part(module, self._dtype, self.size)
        if not part or not self._is_empty or self.x.requires_grad or not self._learns([part]):
            return False
        shape = stem_shape(part, self.size)
        if shape is None:
            return False
        self._stem = module, part, shape
        self.size = size_behind(shape, part.conv)
        return True

    def _append(self, block: Block) -> None:
        self._blocks.append(block)
        self.size = size_behind(block.shape, block.parts[-1].conv)

    @property
    def _is_empty(self) -> bool:
        return not self._stem and not self._blocks

    def _learns(self, parts: Iterable[Part]) -> bool:
        return self.x.requires_grad or any(p.requires_grad for p in _parameters(parts))


def _part(layer: nn.Module, dtype: torch.dtype, size: Size) -> Part | None:
    is_known = isinstance(layer, FastConvNormActivation) and layer.training
    return layer_of(layer, dtype, size) if is_known else None


def _block(module: InvertedResidual, dtype: torch.dtype, size: Size) -> Block | None:
    return block_of(module, dtype, size) if module.training else None


def _parameters(parts: Iterable[Part]) -> list[Tensor]:
    return [parameter for part in parts for parameter in part.parameters]


def _kernels(x: Tensor, dtype: torch.dtype) -> Kernels:
    """Those for the device that ``x`` lies on."""
    if x.device.type == "cpu":
        return cpp_kernels.load(dtype)
    from mobilenetv2.network.gpu import launches  # where there is no GPU, Triton may be missing

    return launches.load(dtype, x.device)
