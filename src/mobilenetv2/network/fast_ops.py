"""The same numbers, sooner: training operations for MobileNetV2 on a CPU.

PyTorch trains a depthwise network at a fraction of what a CPU can do: batch norm and ReLU6 are
passes over memory of their own, forward and backward, and some gradients take slow paths. Here a
whole inverted residual is one operation. The 1×1 convolutions are PyTorch's matrix products on the
NHWC view; everything between them is `fast_ops.cpp`, compiled on first use.

:func:`install` changes the class of a network's parts, and nothing else: parameters, buffers and
their names stay as they are, and :func:`remove` changes it back. Whatever the fast operations do
not cover (evaluation, other devices and dtypes, frozen or unusual norms, tracing and compiling)
runs through the stock code. Where a fast operation replaces a whole part, forward hooks on modules
inside that part do not fire.

>>> from mobilenetv2.network.mobilenetv2 import MobileNetV2
>>> network = MobileNetV2(num_classes=10, width=0.35)
>>> install(network, choose(torch.device("cpu"), "torch"))
>>> remove(network)
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobilenetv2.network import native
from mobilenetv2.network.mobilenetv2 import ConvNormActivation, InvertedResidual, MobileNetV2

Kind = Literal["cpp", "torch", "off"]
SOURCE = Path(__file__).with_name("fast_ops.cpp")


@dataclass(frozen=True)
class FastOps:
    """Which operations train the network, and why these."""

    kind: Kind
    reason: str
    library: str | None = None
    """The compiled library, for ``kind="cpp"``."""


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


def choose(device: torch.device, requested: Literal["auto", "cpp", "torch", "off"]) -> FastOps:
    """The fastest operations that work here; compiles the C++ ones on first use.

    ``requested`` limits the choice. Operations that were asked for and cannot be had give way to
    the next best, and the reason says so.
    """
    if requested == "off":
        return FastOps("off", "fast operations: off, as asked")
    if device.type != "cpu":
        return FastOps("off", f"fast operations: off, they are for the CPU and this is {device}")
    if requested == "torch":
        return FastOps("torch", "fast operations: PyTorch only, as asked")
    try:
        library = str(native.build(SOURCE))
        _kernels(library)
    except (native.BuildError, OSError, AttributeError) as error:
        return FastOps("torch", f"fast operations: PyTorch only, because {error}")
    return FastOps("cpp", "fast operations: compiled C++", library)


def install(network: nn.Module, fast_ops: FastOps) -> None:
    """Let the parts of ``network`` run the fast operations from now on (in place)."""
    remove(network)
    for module in network.modules():
        if fast := _FAST_CLASSES[fast_ops.kind].get(type(module)):
            module.__class__ = fast
            module.fast_ops = fast_ops  # type: ignore[assignment]


def remove(network: nn.Module) -> None:
    """Undo :func:`install` (in place); a network without fast operations stays as it is."""
    for module in network.modules():
        if "fast_ops" in vars(module):
            del module.fast_ops
            module.__class__ = type(module).__mro__[1]


# ------------------------------------------------------------------ the compiled library

_TYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2}


class _NormModule(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),
        ("running_var", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("momentum", ctypes.c_double),
    )


class _Shape(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "stride")
    )


class _Pointwise(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "in_channels", "out_channels"))


class _Kernels:
    """The functions of `fast_ops.cpp`, called with tensors.

    Feature maps are matrices, pixels × channels, contiguous. A norm is a 4 × channels tensor, as
    is its gradient; see `struct Norm` and `struct NormGradient` there.
    """

    def __init__(self, library: str) -> None:
        loaded = ctypes.CDLL(library)
        pointer, integer, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64

        def function(name: str, *arguments: Any) -> Callable[..., None]:
            found = getattr(loaded, name)
            found.argtypes, found.restype = (integer, *arguments), None
            return found  # type: ignore[no-any-return]

        self._statistics = function("norm_statistics", pointer, count, count, *(pointer,) * 2)
        self._apply = function(
            "norm_apply", pointer, count, count, pointer, integer, pointer, pointer
        )
        self._pool = function("norm_pool", pointer, count, count, count, pointer, pointer)
        self._backward = function(
            "norm_backward", pointer, count, pointer, count, count, pointer, integer, pointer
        )
        self._backward_apply = function(
            "norm_backward_apply", pointer, count, pointer, count, count, pointer, pointer,
            integer, pointer,
        )  # fmt: skip
        self._pointwise = function("pointwise_forward", *(pointer,) * 7)
        self._pointwise_backward = function(
            "pointwise_backward", pointer, count, *(pointer,) * 3, integer, *(pointer,) * 8
        )
        self._depthwise = function("depthwise_forward", *(pointer,) * 7)
        self._depthwise_backward = function("depthwise_backward", *(pointer,) * 11)

    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """The norm of ``y`` by its own statistics; the module's running statistics move."""
        rows, channels = y.shape
        norm = _per_channel(y)
        self._statistics(
            _TYPE_CODES[y.dtype], y.data_ptr(), rows, channels, _norm_module(module),
            norm.data_ptr(),
        )  # fmt: skip
        return norm

    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        """The normalised ``y``: through ReLU6, or plus ``residual``."""
        z = torch.empty_like(y)
        self._apply(
            _TYPE_CODES[y.dtype], y.data_ptr(), *y.shape, norm.data_ptr(), activate,
            _pointer(residual), z.data_ptr(),
        )  # fmt: skip
        return z

    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        """Normalised, through ReLU6, averaged over the pixels of each image."""
        rows, channels = y.shape
        pooled = y.new_empty(images, channels)
        self._pool(
            _TYPE_CODES[y.dtype], y.data_ptr(), images, rows // images, channels,
            norm.data_ptr(), pooled.data_ptr(),
        )  # fmt: skip
        return pooled

    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        """The norm's gradient.

        ``g`` has a row for each pixel, or one for each image when it comes from :meth:`pool`.
        """
        gradient = _per_channel(y)
        self._backward(
            _TYPE_CODES[y.dtype], g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), activated, gradient.data_ptr(),
        )  # fmt: skip
        return gradient

    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``y`` from ``g``, that of the normalised ``y`` after ReLU6."""
        gy = torch.empty_like(y)
        self._backward_apply(
            _TYPE_CODES[y.dtype], g.data_ptr(), len(y) // len(g), y.data_ptr(), *y.shape,
            norm.data_ptr(), gradient.data_ptr(), True, gy.data_ptr(),
        )  # fmt: skip
        return gy

    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        """The 1×1 convolution of ``x``, normalised on the way if its norm is given, and its norm."""
        y = x.new_empty(len(x), len(weight))
        y_norm = _per_channel(y)
        self._pointwise(
            _TYPE_CODES[x.dtype], x.data_ptr(), _pointer(x_norm), weight.data_ptr(),
            ctypes.byref(_Pointwise(*x.shape, len(weight))), y.data_ptr(), _norm_module(module),
            y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        gx = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.empty_like(weight) if wants_weight else None
        x_gradient = None if x_norm is None else _per_channel(x)
        self._pointwise_backward(
            _TYPE_CODES[x.dtype], g.data_ptr(), len(y) // len(g), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), activated, x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            ctypes.byref(_Pointwise(*x.shape, len(weight))), _pointer(residual), _pointer(gx),
            _pointer(weight_gradient),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient

    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: _Shape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The convolution of ``x``, normalised on the way if ``norm`` is given, and its norm."""
        y = x.new_empty(_out_rows(shape), shape.channels)
        y_norm = _per_channel(y)
        self._depthwise(
            _TYPE_CODES[x.dtype], x.data_ptr(), _pointer(norm),
            weight.data_ptr(), ctypes.byref(shape), y.data_ptr(), _norm_module(module),
            y_norm.data_ptr(),
        )  # fmt: skip
        return y, y_norm

    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: _Shape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""
        gx, weight_gradient = torch.empty_like(x), torch.empty_like(weight)
        x_gradient = None if x_norm is None else _per_channel(x)
        self._depthwise_backward(
            _TYPE_CODES[x.dtype], g.data_ptr(), y.data_ptr(), y_norm.data_ptr(),
            y_gradient.data_ptr(), x.data_ptr(), _pointer(x_norm),
            _pointer(x_gradient), weight.data_ptr(),
            ctypes.byref(shape), gx.data_ptr(), weight_gradient.data_ptr(),
        )  # fmt: skip
        return gx, weight_gradient, x_gradient


@functools.cache
def _kernels(library: str) -> _Kernels:
    return _Kernels(library)


def _real(dtype: torch.dtype) -> torch.dtype:
    """What values stored as ``dtype`` are computed in."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def _per_channel(y: Tensor) -> Tensor:
    return torch.empty(4, y.shape[1], dtype=_real(y.dtype))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _out_rows(shape: _Shape) -> int:
    stride: int = shape.stride
    return int(
        shape.images * ((shape.height - 1) // stride + 1) * ((shape.width - 1) // stride + 1)
    )


def _norm_module(module: nn.BatchNorm2d) -> Any:
    assert module.running_mean is not None
    assert module.running_var is not None
    return ctypes.byref(
        _NormModule(
            module.weight.data_ptr(), module.bias.data_ptr(), module.running_mean.data_ptr(),
            module.running_var.data_ptr(), module.eps, module.momentum,
        )
    )  # fmt: skip


# ---------------------------------------------------------------------------- operations


def _matrix(x: Tensor) -> Tensor:
    """N×C×H×W seen as pixels × channels; copies only what is not channels_last yet."""
    return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])


def _maps(matrix: Tensor, images: int, height: int, width: int) -> Tensor:
    return matrix.view(images, height, width, -1).permute(0, 3, 1, 2)


class _NormRelu6(torch.autograd.Function):
    """Batch norm and ReLU6 of a convolution's output."""

    @staticmethod
    def forward(
        ctx: Any, kernels: _Kernels, module: nn.BatchNorm2d, y: Tensor, weight: Tensor,
        bias: Tensor,
    ) -> Tensor:  # fmt: skip
        images, _, height, width = y.shape
        y = _matrix(y)
        norm = kernels.statistics(y, module)
        ctx.kernels = kernels
        ctx.save_for_backward(y, norm)
        return _maps(kernels.apply(y, norm, True, None), images, height, width)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        images, _, height, width = g.shape
        y, norm = ctx.saved_tensors
        g = _matrix(g.to(y.dtype))
        gradient = ctx.kernels.backward(g, y, norm, True)
        gy = ctx.kernels.backward_apply(g, y, norm, gradient)
        return None, None, _maps(gy, images, height, width), gradient[2], gradient[3]


class _PooledHead(torch.autograd.Function):
    """1×1 convolution, batch norm, ReLU6 and the average over the map, which is never stored."""

    @staticmethod
    def forward(
        ctx: Any, kernels: _Kernels, module: nn.BatchNorm2d, dtype: torch.dtype, x: Tensor,
        kernel: Tensor, weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.kernels, ctx.shape = kernels, x.shape
        x = _matrix(x.to(dtype))
        y, norm = kernels.pointwise(x, None, kernel, module)
        ctx.save_for_backward(x, kernel, y, norm)
        return kernels.pool(y, norm, ctx.shape[0])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        images, _, height, width = ctx.shape
        x, kernel, y, norm = ctx.saved_tensors
        _, _, _, wants_x, wants_kernel, _, _ = ctx.needs_input_grad
        g = (g / (height * width)).to(y.dtype).contiguous()
        gradient = ctx.kernels.backward(g, y, norm, True)
        gx, g_kernel, _ = ctx.kernels.pointwise_backward(
            g, y, norm, gradient, True, x, None, kernel, None, wants_x, wants_kernel
        )
        gx = None if gx is None else _maps(gx, images, height, width)
        return None, None, None, gx, g_kernel, gradient[2], gradient[3]


class _InvertedResidual(torch.autograd.Function):
    """A whole block. Only the raw outputs of its convolutions are kept for backward.

    Inputs: the expansion's kernel (None where the block has none), weight and bias of its norm;
    the same of the depthwise convolution and of the projection.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: _Kernels, block: InvertedResidual, dtype: torch.dtype, x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        *_, depthwise, _, norm3 = block.conv
        images, _, height, width = x.shape
        kernel1, _, _, kernel2, _, _, kernel3, _, _ = parameters
        assert kernel2 is not None
        assert kernel3 is not None
        shape = _Shape(images, height, width, len(kernel2), depthwise[0].stride[0])
        x = _matrix(x.to(dtype))

        y1 = n1 = None
        if kernel1 is not None:
            y1, n1 = kernels.pointwise(x, None, kernel1, block.conv[0][1])
        y2, n2 = kernels.depthwise(x if y1 is None else y1, n1, kernel2, shape, depthwise[1])
        y3, n3 = kernels.pointwise(y2, n2, kernel3, norm3)
        out = kernels.apply(y3, n3, False, x if block.has_shortcut else None)

        ctx.kernels, ctx.shape, ctx.has_shortcut = kernels, shape, block.has_shortcut
        ctx.save_for_backward(x, kernel1, y1, n1, kernel2, y2, n2, kernel3, y3, n3)
        stride = shape.stride
        return _maps(out, images, (height - 1) // stride + 1, (width - 1) // stride + 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        kernels, shape = ctx.kernels, ctx.shape
        x, kernel1, y1, n1, kernel2, y2, n2, kernel3, y3, n3 = ctx.saved_tensors
        _, _, _, wants_x, wants_kernel1, _, _, _, _, _, wants_kernel3, _, _ = ctx.needs_input_grad
        g = _matrix(g.to(x.dtype))
        shortcut = g if ctx.has_shortcut else None

        g3 = kernels.backward(g, y3, n3, False)
        gz2, g_kernel3, g2 = kernels.pointwise_backward(
            g, y3, n3, g3, False, y2, n2, kernel3, None, True, wants_kernel3
        )
        if y1 is None:
            g_kernel1 = g1 = None
            gx, g_kernel2, _ = kernels.depthwise_backward(gz2, y2, n2, g2, x, None, kernel2, shape)
            if shortcut is not None:
                gx += shortcut
        else:
            gz1, g_kernel2, g1 = kernels.depthwise_backward(gz2, y2, n2, g2, y1, n1, kernel2, shape)
            gx, g_kernel1, _ = kernels.pointwise_backward(
                gz1, y1, n1, g1, False, x, None, kernel1, shortcut, wants_x, wants_kernel1
            )
        if gx is not None:
            gx = _maps(gx, shape.images, shape.height, shape.width)
        expansion = (None, None) if g1 is None else (g1[2], g1[3])
        return (
            None, None, None, gx,
            g_kernel1, *expansion, g_kernel2, g2[2], g2[3], g_kernel3, g3[2], g3[3],
        )  # fmt: skip


# ------------------------------------------------------------------------------ modules


def _working_dtype(x: Tensor, norms: Sequence[nn.Module]) -> torch.dtype | None:
    """The dtype that the compiled operations work in, None where the stock code has to run."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    dtype = x.dtype
    if dtype is torch.float32 and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    if dtype not in _TYPE_CODES:
        return None
    for norm in norms:
        usual = (
            type(norm) is nn.BatchNorm2d
            and norm.training
            and norm.affine
            and norm.track_running_stats
            and norm.momentum is not None
            and norm.weight.dtype is _real(dtype)
        )
        if not usual:
            return None
    return dtype


def _count_batch(norm: nn.Module) -> None:
    """As ``nn.BatchNorm2d.forward`` does."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)


class _CppConvNormActivation(ConvNormActivation):
    fast_ops: FastOps

    def forward(self, input: Tensor) -> Tensor:
        conv, norm, _ = self
        if not self.training or _working_dtype(input, [norm]) is None:
            return super().forward(input)
        y: Tensor = conv(input)
        if y.numel() <= y.shape[1]:  # one value per channel: the stock code words the error
            return super().forward(input)
        _count_batch(norm)
        z: Tensor = _NormRelu6.apply(
            _kernels(self.fast_ops.library), norm, y, norm.weight, norm.bias
        )
        return z


class _CppInvertedResidual(InvertedResidual):
    fast_ops: FastOps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        *expansion, depthwise, projection, norm3 = self.conv
        norms = [part[1] for part in (*expansion, depthwise)] + [norm3]
        dtype = _working_dtype(x, norms)
        stride = depthwise[0].stride[0]
        rows = x.shape[0] * ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
        if dtype is None or rows <= 1 or type(depthwise[0]) is not nn.Conv2d:
            return super().forward(x)
        parameters: list[Tensor | None] = [None] * 3 if not expansion else []
        for part in (*expansion, depthwise, (projection, norm3)):
            parameters += [part[0].weight, part[1].weight, part[1].bias]
        for norm in norms:
            _count_batch(norm)
        out: Tensor = _InvertedResidual.apply(
            _kernels(self.fast_ops.library), self, dtype, x, *parameters
        )
        return out


class _CppMobileNetV2(MobileNetV2):
    fast_ops: FastOps

    def pooled_features(self, pictures: Tensor) -> Tensor:
        *blocks, head = self.features
        conv, norm, _ = head
        if not self.training:
            return super().pooled_features(pictures)
        x = pictures
        for block in blocks:
            x = block(x)
        dtype = _working_dtype(x, [norm])
        if dtype is None or not head.training or x.numel() <= x.shape[1]:
            return head(x).mean((2, 3))
        _count_batch(norm)
        pooled: Tensor = _PooledHead.apply(
            _kernels(self.fast_ops.library), norm, dtype, x, conv.weight, norm.weight, norm.bias
        )
        return pooled


# ------------------------------------------------- the same classes without a compiler


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise convolution of stride 2 with another way to the gradient of its input.

    In bfloat16 PyTorch's own way takes up to 100 times as long as the forward pass. Spreading the
    gradient over a grid of zeros and convolving that with the flipped kernel gives the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, None, 2, 1, 1, len(kernel))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        gx = g_kernel = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)
            spread[:, :, ::2, ::2] = g
            gx = F.conv2d(spread, kernel.flip(2, 3), None, 1, 1, 1, len(kernel))
        if ctx.needs_input_grad[1]:
            _, g_kernel, _ = torch.ops.aten.convolution_backward(
                g, x, kernel, None, (2, 2), (1, 1), (1, 1), False, (0, 0), len(kernel),
                (False, True, False),
            )  # fmt: skip
        return gx, g_kernel


class _TorchConvNormActivation(ConvNormActivation):
    fast_ops: FastOps

    def forward(self, input: Tensor) -> Tensor:
        conv, norm, activation = self
        strided_depthwise = type(conv) is nn.Conv2d and conv.groups > 1 and conv.stride[0] == 2
        if strided_depthwise and _working_dtype(input, []) is torch.bfloat16:
            x, kernel = input.to(torch.bfloat16), conv.weight.to(torch.bfloat16)
            z: Tensor = activation(norm(_StridedDepthwise.apply(x, kernel)))
            return z
        return super().forward(input)


class _TorchMobileNetV2(MobileNetV2):
    fast_ops: FastOps

    def pooled_features(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.features(pictures)
        if features.requires_grad and _working_dtype(features, []) is not None:
            # The gradient of a mean is one value seen many times over; the norm behind it is slow
            # on that, and fast on a copy.
            features.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))
        return features.mean((2, 3))


_FAST_CLASSES: dict[Kind, dict[type[nn.Module], type[nn.Module]]] = {
    "cpp": {
        ConvNormActivation: _CppConvNormActivation,
        InvertedResidual: _CppInvertedResidual,
        MobileNetV2: _CppMobileNetV2,
    },
    "torch": {
        ConvNormActivation: _TorchConvNormActivation,
        MobileNetV2: _TorchMobileNetV2,
    },
    "off": {},
}
