"""MobileNetV2: inverted residuals and linear bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen: "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, https://arxiv.org/abs/1801.04381. The network is Table 2 of that paper; the names of the
parameters are torchvision's, so a state dict travels both ways.

Read from top to bottom: the table, the small rules (channels, strides), the block, the network.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["symmetric", "keras"]


class Stage(NamedTuple):
    """One row of Table 2: ``blocks`` inverted residuals, the first of them with ``stride``."""

    expansion: int
    channels: int
    blocks: int
    stride: int


STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
STAGES = (
    # t, c, n, s
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)

PAPER_STRIDES = (2, *(stage.stride for stage in STAGES))
"""Stride of the stem, then of each stage: 2·1·2·2·2·1·2·1, which divides the picture by 32."""

SMALLEST_LAST_MAP = 3
"""Pixels a side that the stride plan leaves to the last feature map."""


def round_channels(channels: float, multiple: int = 8) -> int:
    """The nearest multiple of ``multiple``, never more than 10 % below ``channels``.

    >>> [round_channels(c * 0.35) for c in (16, 24, 32, 64, 96, 160, 320)]
    [8, 8, 16, 24, 32, 56, 112]
    """
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * channels else rounded + multiple


def stride_plan(height: int, width: int) -> tuple[int, ...]:
    """The strides of the stem and the seven stages for pictures of ``height`` × ``width`` pixels.

    From 65 px on these are the paper's. Below that, 32-fold reduction would leave a last feature
    map of 1 × 1 or 2 × 2 and nothing for the 3 × 3 kernels to look at. The plan therefore turns
    strides into 1, the deepest first, until the last map is at least 3 × 3: the early strides stay,
    because they are what makes the network cheap.

    >>> stride_plan(224, 224)
    (2, 1, 2, 2, 2, 1, 2, 1)
    >>> stride_plan(32, 32)
    (2, 1, 2, 2, 1, 1, 1, 1)
    >>> stride_plan(8, 8)
    (2, 1, 1, 1, 1, 1, 1, 1)
    """
    strides = list(PAPER_STRIDES)
    side = min(height, width)
    if side > 64:
        return PAPER_STRIDES
    for position in reversed(range(len(strides))):
        if last_map_side(side, strides) >= SMALLEST_LAST_MAP:
            break
        strides[position] = 1
    return tuple(strides)


def last_map_side(side: int, strides: Sequence[int]) -> int:
    """Pixels that are left of ``side`` after all strides: each divides and rounds up.

    >>> last_map_side(224, PAPER_STRIDES)
    7
    """
    for stride in strides:
        side = -(-side // stride)
    return side


class KerasPaddedConv2d(nn.Conv2d):
    """A convolution that pads like Keras' MobileNetV2: an even side on the right or bottom only.

    Keras pads before a convolution of stride 2 by (0, 1) where the side is even and by (1, 1) where
    it is odd (``keras.applications.imagenet_utils.correct_pad``). PyTorch's ``padding=1`` shifts
    the grid by one pixel against that, so weights trained there need this class.

    A 3×3 kernel with zeros before its first row and column is the same shift, and a kernel is
    padded much sooner than a picture; only gradients take longer through the larger kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×⌈H/2⌉×⌈W/2⌉ out."""
        height, width = input.shape[-2:]
        if self.weight.requires_grad and torch.is_grad_enabled():
            padded = F.pad(input, padding_of(self, height, width))
            return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)
        kernel = F.pad(self.weight, (1 - width % 2, 0, 1 - height % 2, 0))
        return F.conv2d(input, kernel, self.bias, self.stride, 1, 1, self.groups)


def padding_of(layer: nn.Conv2d, height: int, width: int) -> tuple[int, int, int, int]:
    """Zeros that a convolution adds left, right, above and below features of this size.

    >>> padding_of(KerasPaddedConv2d(3, 8, 3, stride=2, padding=1), 224, 225)
    (1, 1, 0, 1)
    """
    if isinstance(layer, KerasPaddedConv2d):
        return width % 2, 1, height % 2, 1
    above, left = (int(side) for side in layer.padding)
    return left, left, above, above


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch norm, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "symmetric",
    ) -> None:
        conv_class = KerasPaddedConv2d if padding == "keras" and stride == 2 else nn.Conv2d
        super().__init__(
            conv_class(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                kernel_size // 2,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 without activation (paper, Figure 3b and Table 1)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, hidden, 1))
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, groups=hidden, padding=padding),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Features N×C×H×W in, N×C'×H'×W' out."""
        projected: Tensor = self.conv(x)
        return x + projected if self.has_shortcut else projected


class MobileNetV2(nn.Module):
    """The paper's network for pictures of any size, channels and classes.

    Args:
        num_classes: outputs of the linear classifier.
        in_channels: channels of the picture, 1 for grey and 3 for RGB.
        width: multiplier of every channel count (paper, section 4); the head never gets less than
            1280 channels.
        strides: of the stem and the seven stages; the paper's unless given. See
            :func:`stride_plan` for small pictures.
        dropout: before the classifier.
        padding: ``"symmetric"`` is PyTorch's, ``"keras"`` fits weights that Keras trained.
        norm_eps: epsilon of the batch norms; Keras trains with 1e-3.
        norm_momentum: share of the newest batch in the running statistics.
        channel_multiple: channel counts are rounded to multiples of it; 8, and 4 at width 0.1,
            where 8 would be coarser than the channels themselves.

    >>> import torch
    >>> network = MobileNetV2(num_classes=10, width=0.5)
    >>> network(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        strides: Sequence[int] = PAPER_STRIDES,
        dropout: float = 0.2,
        padding: Padding = "symmetric",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        channel_multiple: int | None = None,
    ) -> None:
        super().__init__()
        if len(strides) != len(PAPER_STRIDES) or any(stride not in (1, 2) for stride in strides):
            raise ValueError(
                f"strides are {len(PAPER_STRIDES)} numbers, each 1 or 2 (stem, then the seven "
                f"stages); got {tuple(strides)}"
            )
        multiple = channel_multiple or (4 if width <= 0.1 else 8)
        stem_stride, *stage_strides = strides

        channels = round_channels(STEM_CHANNELS * width, multiple)
        blocks: list[nn.Module] = [
            ConvNormActivation(in_channels, channels, 3, stem_stride, padding=padding)
        ]
        for stage, stage_stride in zip(STAGES, stage_strides, strict=True):
            out_channels = round_channels(stage.channels * width, multiple)
            for index in range(stage.blocks):
                stride = stage_stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out_channels, stride, stage.expansion, padding)
                )
                channels = out_channels
        self.feature_channels = round_channels(HEAD_CHANNELS * max(1.0, width), multiple)
        blocks.append(ConvNormActivation(channels, self.feature_channels, 1))

        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.feature_channels, num_classes)
        )
        self._initialise(norm_eps, norm_momentum)

    def _initialise(self, norm_eps: float, norm_momentum: float) -> None:
        """Normal weights, and shortcuts that carry all at first.

        The last norm of each block with a shortcut starts at zero, so that the block starts as the
        identity (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1): the paper says
        nothing of first weights, and short trainings get much further this way.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_eps
                module.momentum = norm_momentum
        if self.classifier[1].weight.is_meta:
            return  # no memory to fill; the draws' meta versions alone take seconds to import
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, InvertedResidual) and module.has_shortcut:
                last_norm = module.conv[-1]
                assert isinstance(last_norm, nn.BatchNorm2d)
                nn.init.zeros_(last_norm.weight)

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, features N×F out, averaged over the last map."""
        features: Tensor = self.features(pictures)
        return features.mean((2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, logits N×K out."""
        logits: Tensor = self.classifier(self.pooled_features(pictures))
        return logits
