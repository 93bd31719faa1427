"""A folded network gives the same logits, and leaves the original alone."""

import pytest
import torch
from torch import nn

from mobilenetv2.network.first_version import FirstVersion
from mobilenetv2.network.folding import fold_norms
from mobilenetv2.network.mobilenetv2 import MobileNetV2


@pytest.mark.parametrize("padding", ["symmetric", "keras"])
@pytest.mark.parametrize("size", [(32, 32), (45, 30)])
def test_same_logits(padding: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = MobileNetV2(5, width=0.35, padding=padding, norm_eps=1e-3)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    network.train()
    folded = fold_norms(network)
    assert network.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    pictures = torch.randn(3, 3, *size)
    expected = network.eval()(pictures)
    torch.testing.assert_close(folded(pictures), expected, rtol=1e-4, atol=1e-5)


def test_norms_that_follow_no_convolution_stay() -> None:
    network = FirstVersion().eval()
    pictures = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(fold_norms(network)(pictures), network(pictures))
