"""The same training, sooner: operations for MobileNetV2 that agree with PyTorch's but for rounding.

PyTorch trains a depthwise network at a fraction of what a CPU can do: batch norm and ReLU6 are
passes over memory of their own, forward and backward, some gradients take slow paths, and one core
waits while Python goes from part to part. With the compiled operations (`fast_ops.cpp`, by way of
:mod:`.fast_blocks`) the whole network up to the classifier is one operation; with Triton's on an
NVIDIA GPU (:mod:`.gpu`) each inverted residual is one. Without a compiler :mod:`.fast_repairs`
avoids the worst in PyTorch alone. On a CPU dropout draws its own random numbers
(:mod:`.fast_dropout`).

:func:`install` changes the class of a network's parts, and nothing else: parameters, buffers and
their names stay as they are, and :func:`remove` changes it back. Forward hooks on the parts in
``features`` fire, and for their sake these run one by one; hooks deeper inside do not.

>>> from mobilenetv2.network.mobilenetv2 import MobileNetV2
>>> network = MobileNetV2(num_classes=10, width=0.35)
>>> install(network, choose(torch.device("cpu"), "torch"))
>>> remove(network)
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mobilenetv2.errors import first_line
from mobilenetv2.network import cpp_kernels, native
from mobilenetv2.network.cpp_sgd import CppSgd
from mobilenetv2.network.fast_blocks import (
    FastConvNormActivation,
    FastInvertedResidual,
    FastMobileNetV2,
)
from mobilenetv2.network.fast_dropout import FastDropout
from mobilenetv2.network.fast_repairs import (
    RepairedConvNormActivation,
    RepairedMobileNetV2,
    SoundConvNormActivation,
)
from mobilenetv2.network.kernels import Kernels, MapShape
from mobilenetv2.network.mobilenetv2 import ConvNormActivation, InvertedResidual, MobileNetV2

Kind = Literal["cpp", "triton", "torch", "off"]
Requested = Literal["auto", "cpp", "triton", "torch", "off"]

_FAST: dict[type[nn.Module], type[nn.Module]] = {
    ConvNormActivation: FastConvNormActivation,
    InvertedResidual: FastInvertedResidual,
    MobileNetV2: FastMobileNetV2,
}
# Dropout draws the same with and without a compiler.
_CLASSES: dict[Kind, dict[type[nn.Module], type[nn.Module]]] = {
    "cpp": _FAST | {nn.Dropout: FastDropout},
    "triton": _FAST,
    "torch": {
        nn.Dropout: FastDropout,
        ConvNormActivation: RepairedConvNormActivation,
        MobileNetV2: RepairedMobileNetV2,
    },
    "off": {ConvNormActivation: SoundConvNormActivation},
}


@dataclass(frozen=True)
class FastOps:
    """Which operations train the network, and why these."""

    kind: Kind
    reason: str
    """One line for the user."""


def prepare_allocator() -> None:
    """Let glibc keep the memory that tensors free; call it before the first tensor is made.

    By default glibc returns large blocks to the kernel at every ``free``, and the next step faults
    every page in again, which halves the speed. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def choose(
    device: torch.device,
    requested: Requested,
    dtype: torch.dtype = torch.float32,
    tell: Callable[[str], None] = lambda _: None,
) -> FastOps:
    """The fastest operations that work here; compiles the C++ ones on first use.

    ``dtype`` is what activations are stored as; kernels for another one are compiled when such
    activations come, and raise then if they cannot be. ``requested`` limits the choice. Operations
    that were asked for and cannot be had give way to the next best, and the reason says so.
    ``tell`` is called with a line for the user where there is something to wait for.
    """
    if requested == "off":
        return FastOps("off", "fast operations: off, as asked")
    if device.type == "cuda" and requested in ("auto", "triton"):
        return _choose_triton(device, dtype, tell)
    if device.type != "cpu":
        return FastOps("off", f"fast operations: off, there are none of this kind for {device}")
    if requested == "triton":
        return FastOps("torch", "fast operations: PyTorch only, because Triton's are for a GPU")
    if requested == "torch":
        return FastOps("torch", "fast operations: PyTorch only, as asked")
    if cpp_kernels.must_compile(dtype):
        tell(
            "compiling the fast operations for this processor and precision, once: some ten seconds"
        )
    try:
        cpp_kernels.load(dtype)
    except (native.BuildError, OSError, AttributeError) as error:
        return FastOps("torch", f"fast operations: PyTorch only, because {error}")
    return FastOps("cpp", "fast operations: compiled C++")


def _choose_triton(
    device: torch.device, dtype: torch.dtype, tell: Callable[[str], None]
) -> FastOps:
    """Triton's kernels, if the most demanding of them can be compiled and run."""
    if dtype is not torch.bfloat16:
        return FastOps("off", "fast operations: off, those for a GPU are for bf16")
    if torch.version.hip:
        return FastOps("off", "fast operations: off, those for a GPU are for NVIDIA's")
    try:
        from mobilenetv2.network.gpu import launches  # Triton is not everywhere

        tell("the fast operations are compiled for this GPU, once: half a minute or so")
        _try_out(launches.load(dtype, device), device, dtype)
    except Exception as error:  # of Triton, of its C compiler, of the driver: there is no list
        reason = first_line(error)
        return FastOps("off", f"fast operations: off, because Triton says: {reason}")
    return FastOps("triton", "fast operations: Triton")


def _try_out(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """A product of matrices, a norm, and a depthwise convolution with its gradient."""
    norm = nn.BatchNorm2d(32).to(device)
    shape = MapShape(2, 8, 8, 32, 1, False)
    x = torch.ones(shape.out_rows, 32, dtype=dtype, device=device)
    weight = torch.ones(32, 1, 3, 3, device=device)
    y, y_norm = kernels.pointwise(x, None, torch.ones(32, 32, 1, 1, device=device), norm)
    z, z_norm = kernels.depthwise(y, y_norm, weight, shape, norm)
    gradient = kernels.backward(z, z, z_norm, True)
    kernels.depthwise_backward(z, z, z_norm, gradient, y, y_norm, weight, shape)
    torch.cuda.synchronize(device)


def sgd_of(fast_ops: FastOps, dtype: torch.dtype = torch.float32) -> CppSgd | None:
    """The step over all weights for who trains with these operations; None where it is PyTorch's.

    ``dtype`` is that of :func:`choose`.
    """
    return cpp_kernels.load(dtype).sgd if fast_ops.kind == "cpp" else None


def install(network: nn.Module, fast_ops: FastOps) -> None:
    """Let the parts of ``network`` run the fast operations from now on (in place)."""
    remove(network)
    for module in network.modules():
        if fast := _CLASSES[fast_ops.kind].get(type(module)):
            module.__class__ = fast


def remove(network: nn.Module) -> None:
    """Undo :func:`install` (in place); a network without fast operations stays as it is."""
    stock = {fast: cls for kind in _CLASSES.values() for cls, fast in kind.items()}
    for module in network.modules():
        if cls := stock.get(type(module)):
            module.__class__ = cls
