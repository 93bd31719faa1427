"""The network against torchvision's, the published tables, and Keras' padding rule."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models._utils import _make_divisible

from mobilenetv2.network.mobilenetv2 import (
    PAPER_STRIDES,
    SMALLEST_LAST_MAP,
    InvertedResidual,
    KerasPaddedConv2d,
    MobileNetV2,
    last_map_side,
    round_channels,
    stride_plan,
)

WIDTHS = (1.4, 1.3, 1.0, 0.75, 0.5, 0.35, 0.25, 0.1)


def torchvision_network(width: float, classes: int = 1000) -> nn.Module:
    multiple = 4 if width == 0.1 else 8
    network: nn.Module = mobilenet_v2(num_classes=classes, width_mult=width, round_nearest=multiple)
    return network


def live_in(network: nn.Module) -> None:
    """Batch norms as after a training: none at zero, statistics away from their start."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize("width", WIDTHS)
def test_state_dicts_travel_both_ways(width: float) -> None:
    ours, theirs = MobileNetV2(width=width), torchvision_network(width)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("width", [1.0, 0.35])
def test_equal_outputs_and_gradients(width: float) -> None:
    torch.manual_seed(0)
    ours, theirs = MobileNetV2(7, width=width, dropout=0.0), torchvision_network(width, 7)
    live_in(ours)
    theirs.load_state_dict(ours.state_dict())
    theirs.classifier[0].p = 0.0
    pictures, labels = torch.randn(4, 3, 96, 96), torch.tensor([0, 3, 6, 3])

    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures), theirs(pictures), rtol=1e-5, atol=1e-6)

    ours.train(), theirs.train()
    F.cross_entropy(ours(pictures), labels).backward()
    F.cross_entropy(theirs(pictures), labels).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 47), (64, 96)])
def test_any_size_channels_and_classes(classes: int, channels: int, size: tuple[int, int]) -> None:
    network = MobileNetV2(classes, channels, 0.1, stride_plan(*size)).eval()
    assert network(torch.zeros(2, channels, *size)).shape == (2, classes)


@example(64, 64)
@example(64, 400)
@example(65, 65)
@given(height=st.integers(8, 400), width=st.integers(8, 400))
def test_stride_plan(height: int, width: int) -> None:
    plan = stride_plan(height, width)
    side = min(height, width)
    assert all(stride in (1, paper) for stride, paper in zip(plan, PAPER_STRIDES, strict=True))
    if side > 64:
        assert plan == PAPER_STRIDES
        return
    assert last_map_side(side, plan) >= SMALLEST_LAST_MAP
    # One more stride would go too far: nothing is kept larger than it must be.
    removed = [i for i, stride in enumerate(PAPER_STRIDES) if stride == 2 and plan[i] == 1]
    if removed:
        deeper = [*plan]
        deeper[removed[0]] = 2
        assert last_map_side(side, deeper) < SMALLEST_LAST_MAP


def test_the_plan_tells_the_size_of_the_last_map() -> None:
    for side in (8, 13, 28, 50, 64, 96):
        plan = stride_plan(side, side)
        features = MobileNetV2(2, 1, 0.1, plan).eval().features(torch.zeros(1, 1, side, side))
        assert features.shape[-1] == last_map_side(side, plan)


@given(st.floats(1, 5000), st.sampled_from([4, 8]))
def test_channel_rounding(channels: float, multiple: int) -> None:
    rounded = round_channels(channels, multiple)
    assert rounded % multiple == 0
    assert rounded >= 0.9 * channels
    assert rounded <= max(multiple, channels + multiple)


@given(st.floats(0.5, 5000), st.sampled_from([1, 4, 8, 16, 32]))
def test_channel_rounding_is_the_published_rule(channels: float, multiple: int) -> None:
    assert round_channels(channels, multiple) == _make_divisible(channels, multiple)


@pytest.mark.parametrize("width", [0.05, 0.2, 0.6, 0.9, 1.05, 1.15, 1.7, 2.5, 4.0])
def test_widths_that_nobody_published(width: float) -> None:
    multiple = 4 if width <= 0.1 else 8
    with torch.device("meta"):
        ours = MobileNetV2(7, width=width)
        theirs = mobilenet_v2(num_classes=7, width_mult=width, round_nearest=multiple)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert ours.feature_channels == theirs.last_channel


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [8, 11, 32, 64])
def test_small_pictures_can_be_learnt_from(batch: int, side: int) -> None:
    """Also a last batch of one: the plan leaves batch norm more than one value per channel."""
    network = MobileNetV2(2, 1, 0.1, stride_plan(side, side)).train()
    network(torch.randn(batch, 1, side, side)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_settings_reach_the_layers() -> None:
    network = MobileNetV2(
        2, 1, 0.1, (1, 1, 2, 1, 2, 1, 1, 1), 0.35, "keras", norm_eps=1e-3, norm_momentum=0.01
    )
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    strided = [module for module in convolutions if module.stride == (2, 2)]
    assert len(strided) == 2
    assert all(isinstance(module, KerasPaddedConv2d) for module in strided)
    assert sum(isinstance(module, KerasPaddedConv2d) for module in convolutions) == 2
    assert all(module.bias is None for module in convolutions)
    assert network.classifier[0].p == 0.35
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU6)]
    assert len(relus) == 1 + 1 + 2 * 16 + 1  # linear bottlenecks: none after a projection


def test_pooled_features_are_what_the_classifier_sees() -> None:
    network = MobileNetV2(5, 3, 0.1, stride_plan(32, 32)).eval()
    pictures = torch.randn(2, 3, 32, 32)
    features = network.pooled_features(pictures)
    assert features.shape == (2, network.feature_channels)
    torch.testing.assert_close(network.classifier(features), network(pictures))


@given(
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    seed=st.integers(0, 100),
)
@settings(deadline=None)
def test_keras_padding(height: int, width: int, seed: int) -> None:
    """TensorFlow's "same" rule, written out: total padding, the smaller half first."""
    torch.manual_seed(seed)
    picture = torch.randn(1, 2, height, width)
    convolution = KerasPaddedConv2d(2, 3, 3, 2, 1, bias=False)
    pads = []
    for side in (width, height):
        total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        pads += [total // 2, total - total // 2]
    # Keras' MobileNetV2 pads an odd side by (1, 1), which is "same" for odd sides too.
    expected = F.conv2d(F.pad(picture, pads), convolution.weight, stride=2)
    torch.testing.assert_close(convolution(picture), expected)
    with torch.no_grad():  # takes another way
        torch.testing.assert_close(convolution(picture), expected)


def test_blocks_with_a_shortcut_start_as_the_identity() -> None:
    network = MobileNetV2(2, width=0.35)
    blocks = [m for m in network.features if isinstance(m, InvertedResidual) and m.has_shortcut]
    assert len(blocks) == 10
    for block in blocks:
        channels = block.conv[-1].num_features
        x = torch.randn(2, channels, 6, 6)
        assert torch.equal(block(x), x)


def test_wrong_strides_are_refused() -> None:
    for strides in ((2, 1, 2), (3, 1, 2, 2, 2, 1, 2, 1)):
        with pytest.raises(ValueError, match="strides are 8 numbers"):
            MobileNetV2(strides=strides)


def test_copies_are_independent() -> None:
    network = MobileNetV2(2, width=0.1)
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(next(network.parameters()), next(other.parameters()))
