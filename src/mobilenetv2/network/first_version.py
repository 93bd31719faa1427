"""The plain first version: the network this project grew from, kept as the baseline to beat.

It has MobileNetV2's parts in its own order: convolutions with bias, ReLU6 *before* batch norm, a
dense expansion, grouped instead of depthwise convolutions, no shortcut and no norm after the
projection. The tutorial walks from here to the paper's network one change at a time.
"""

from typing import NamedTuple

from torch import Tensor, nn


class Block(NamedTuple):
    """One row of the hand-typed table."""

    in_channels: int
    middle: int
    out_channels: int
    stride: int


BLOCKS = (
    Block(32, 32, 16, 1),
    Block(16, 64, 64, 2),
    Block(64, 64, 64, 1),
    Block(64, 64, 64, 1),
    Block(64, 64, 64, 1),
    Block(64, 384, 128, 1),
)
GROUPS = 32
HEAD_CHANNELS = 512


def _block(row: Block) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(row.in_channels, row.middle, 3, row.stride, 1),
        nn.ReLU6(),
        nn.BatchNorm2d(row.middle),
        nn.Conv2d(row.middle, row.middle, 3, 1, 1, groups=GROUPS),
        nn.ReLU6(),
        nn.BatchNorm2d(row.middle),
        nn.Conv2d(row.middle, row.out_channels, 1),
    )


class FirstVersion(nn.Module):
    """The first version's network; 801,210 parameters for grey pictures and ten classes.

    Its 7 × 7 average pool was typed for 28 px; here it is a pool to 1 × 1, which is the same for
    28 px and lets other sizes through.

    >>> sum(p.numel() for p in FirstVersion().parameters())
    801210
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, BLOCKS[0].in_channels, 3, 2, 1),
            *(_block(row) for row in BLOCKS),
            nn.Conv2d(BLOCKS[-1].out_channels, HEAD_CHANNELS, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 1),
        )
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures N×C×H×W in, logits N×K out."""
        logits: Tensor = self.classifier(self.features(pictures).flatten(1))
        return logits
