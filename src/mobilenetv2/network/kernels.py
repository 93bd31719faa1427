"""What a set of training kernels can do: the calls that :mod:`.fast_functions` is made of.

Feature maps are matrices, pixels × channels, contiguous. A norm is a 5 × channels tensor (mean,
inverse deviation, scale, shift, how many pixels), its gradient one of 4 × channels, whose last two
rows are the gradients of the norm's weight and bias; what the first two say is between the kernels.

There are two: :mod:`.cpp_kernels` for a CPU, :mod:`.gpu` for an NVIDIA GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STORED = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bf16"}
"""What activations may be stored as, and its name in C++."""


def stored_as(dtype: torch.dtype) -> str:
    """The compiler's flag for kernels that store activations so."""
    return f"-DSTORED={STORED[dtype]}"


class MapShape(NamedTuple):
    """What a 3×3 convolution works on; height, width and channels are those of its input.

    ``backwards``: of stride 2 around every second pixel from the last one on, not the first.
    """

    images: int
    height: int
    width: int
    channels: int
    stride: int
    backwards: bool

    @property
    def out_height(self) -> int:
        """Of what the convolution puts out."""
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Of what the convolution puts out."""
        return (self.width - 1) // self.stride + 1

    @property
    def out_rows(self) -> int:
        """Pixels that the convolution puts out, of all images."""
        return self.images * self.out_height * self.out_width


class Part(NamedTuple):
    """A convolution and the batch norm behind it, with their parameters: modules take long to ask.

    ``weight`` and ``bias`` are the norm's.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    kernel: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's kernel, the norm's weight and bias."""
        return self[2:]


class Block(NamedTuple):
    """An inverted residual: two or three parts, and the shape of its depthwise convolution."""

    parts: Sequence[Part]
    shape: MapShape
    has_shortcut: bool


class Chain(NamedTuple):
    """Parts that follow each other and run in one call; each of the three may be missing.

    ``head`` is the last 1×1 convolution, averaged over the ``height`` × ``width`` pixels of the
    last map. ``images``, ``height`` and ``width`` are those of what the last block puts out.
    """

    stem: tuple[Part, MapShape] | None
    blocks: Sequence[Block]
    head: Part | None
    images: int
    height: int
    width: int

    @property
    def parts(self) -> list[Part]:
        """All convolutions with their norms, in order."""
        parts = [self.stem[0]] if self.stem else []
        for block in self.blocks:
            parts += block.parts
        return [*parts, self.head] if self.head else parts


class Kernels(ABC):
    """Kernels for activations of one dtype, on one kind of device.

    A batch norm in training mode normalises by the batch's statistics, moves its running ones and
    counts the batch, as ``nn.BatchNorm2d`` does. In eval mode it is frozen: its running statistics
    count, and stay.

    Attributes:
        has_chains: whether many parts can run in one call, :meth:`chain`.
        last_calls: of networks that ran as one chain, with the state that each was in.
    """

    has_chains = False
    last_calls: MutableMapping[nn.Module, tuple[Any, "ChainCall"]]

    def rehearsal(self) -> AbstractContextManager[None]:
        """A block in which kernels that are compiled at first use are only that, all at once.

        What calls return in it holds nothing.
        """
        return nullcontext()

    @abstractmethod
    def statistics(self, y: Tensor, module: nn.BatchNorm2d) -> Tensor:
        """The norm of ``y``."""

    @abstractmethod
    def apply(self, y: Tensor, norm: Tensor, activate: bool, residual: Tensor | None) -> Tensor:
        """The normalised ``y``: through ReLU6, or plus ``residual``."""

    @abstractmethod
    def pool(self, y: Tensor, norm: Tensor, images: int) -> Tensor:
        """Normalised, through ReLU6, averaged over the pixels of each image."""

    @abstractmethod
    def backward(self, g: Tensor, y: Tensor, norm: Tensor, activated: bool) -> Tensor:
        """The norm's gradient.

        ``g`` has a row for each pixel, or one for each image when it comes from :meth:`pool`.
        """

    @abstractmethod
    def backward_apply(self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``y`` from ``g``, that of the normalised ``y`` after ReLU6."""

    @abstractmethod
    def pointwise(
        self, x: Tensor, x_norm: Tensor | None, weight: Tensor, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        """The 1×1 convolution of ``x``, normalised on the way if ``x_norm`` is given; its norm."""

    @abstractmethod
    def pointwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, activated: bool,
        x: Tensor, x_norm: Tensor | None, weight: Tensor, residual: Tensor | None,
        wants_x: bool, wants_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""

    @abstractmethod
    def depthwise(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, shape: MapShape,
        module: nn.BatchNorm2d,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The 3×3 convolution of ``x``, normalised on the way if ``norm`` is given; its norm."""

    @abstractmethod
    def depthwise_backward(
        self, g: Tensor, y: Tensor, y_norm: Tensor, y_gradient: Tensor, x: Tensor,
        x_norm: Tensor | None, weight: Tensor, shape: MapShape,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Gradients of ``x`` (masked, if ``x_norm`` is given), weight, and ``x_norm``."""

    def block(self, block: Block, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """An inverted residual of ``x``, and what :meth:`block_backward` needs to be kept."""
        *expansion, depthwise, projection = block.parts
        kept: list[Tensor] = []
        before, norm = x, None
        for part in expansion:
            before, norm = self.pointwise(x, None, part.kernel, part.norm)
            kept += [before, norm]
        y2, norm2 = self.depthwise(before, norm, depthwise.kernel, block.shape, depthwise.norm)
        y3, norm3 = self.pointwise(y2, norm2, projection.kernel, projection.norm)
        out = self.apply(y3, norm3, False, x if block.has_shortcut else None)
        return out, (*kept, y2, norm2, y3, norm3)

    def block_backward(
        self, g: Tensor, x: Tensor, kept: Sequence[Tensor], kernels: Sequence[Tensor],
        shape: MapShape, shortcut: Tensor | None, wants_x: bool, wants: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """Gradients of ``x``, and of the parts' kernels, weights and biases in order.

        ``kernels`` are those of the convolutions, of which ``wants`` says who learns; ``shortcut``
        is ``g`` again where the block has one.
        """
        *expansion, y2, norm2, y3, norm3 = kept
        g3 = self.backward(g, y3, norm3, False)
        gz2, g_kernel3, g2 = self.pointwise_backward(
            g, y3, norm3, g3, False, y2, norm2, kernels[-1], None, True, wants[-1]
        )
        assert gz2 is not None
        assert g2 is not None
        gradients: list[Tensor | None] = []
        gx: Tensor | None
        if expansion:
            y1, norm1 = expansion
            gz1, g_kernel2, g1 = self.depthwise_backward(
                gz2, y2, norm2, g2, y1, norm1, kernels[1], shape
            )
            assert g1 is not None
            gx, g_kernel1, _ = self.pointwise_backward(
                gz1, y1, norm1, g1, False, x, None, kernels[0], shortcut, wants_x, wants[0]
            )
            gradients += [g_kernel1, g1[2], g1[3]]
        else:
            gx, g_kernel2, _ = self.depthwise_backward(
                gz2, y2, norm2, g2, x, None, kernels[0], shape
            )
            if shortcut is not None:
                gx += shortcut
        gradients += [g_kernel2, g2[2], g2[3], g_kernel3, g3[2], g3[3]]
        return gx, gradients

    @abstractmethod
    def stem(
        self, x: Tensor, weight: Tensor, shape: MapShape, module: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor]:
        """The first 3×3 convolution, of pictures of any real dtype; its norm."""

    @abstractmethod
    def stem_backward(
        self, g: Tensor, y: Tensor, norm: Tensor, gradient: Tensor, x: Tensor, weight: Tensor,
        shape: MapShape,
    ) -> Tensor:  # fmt: skip
        """The gradient of the stem's weight; the pictures get none."""

    def chain(self, chain: Chain) -> "ChainCall":
        """Many parts, to be run in one call."""
        raise NotImplementedError


class ChainCall(ABC):
    """A chain that is ready to be run, as often as wanted, while its tensors stay where they are.

    Attributes:
        chain: what is run.
        parameters: kernels, weights and biases of its parts in order.
    """

    chain: Chain
    parameters: Sequence[Tensor]

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """What comes out of all parts, and what :meth:`backward` needs to be kept.

        ``x`` is a map, or pictures of a real dtype where a stem is the first part; what comes out
        is a map, or one row of features for each image behind a head.
        """

    @abstractmethod
    def backward(
        self, g: Tensor, x: Tensor, kept: Sequence[Tensor], kernels: Sequence[Tensor],
        wants_x: bool, wants: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:  # fmt: skip
        """Gradients of ``x``, and of the parameters.

        ``kernels`` are those of the convolutions, of which ``wants`` says who learns. Behind a
        head ``g`` is the gradient of the sum over each image, not of the average.
        """


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values stored as ``dtype`` are computed in."""
    return torch.float32 if dtype is torch.bfloat16 else dtype
