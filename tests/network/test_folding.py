"""A folded network gives the same logits, and leaves the original alone."""

import copy

import pytest
import torch
from torch import nn

from mobilenetv2.network.duplicate import duplicate
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


def test_what_stands_twice_is_no_part_of_the_original() -> None:
    activation = nn.ReLU()
    first = nn.Sequential(nn.Linear(2, 2), activation, nn.BatchNorm1d(2), activation)
    second = duplicate(first)
    assert not set(map(id, first.modules())) & set(map(id, second.modules()))
    second.eval().register_buffer("own", torch.zeros(1), persistent=False)
    assert all(part.training for part in first.modules())
    assert "own" not in first._non_persistent_buffers_set


def test_a_duplicate_shares_nothing_that_is_written_to() -> None:
    """Weights, statistics, parts, modes and hooks; as `copy.deepcopy` does it."""
    first = MobileNetV2(5, width=0.1).to(memory_format=torch.channels_last)
    first.features[0].requires_grad_(False)
    seen: list[str] = []
    first.features[1].register_forward_hook(lambda *_: seen.append("first"))
    second, reference = duplicate(first), copy.deepcopy(first)
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    for (name, ours), theirs in zip(second.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.requires_grad == theirs.requires_grad
        assert ours.stride() == theirs.stride()
    pictures = torch.randn(2, 3, 32, 32)
    answers = []
    for network in (second, reference):
        torch.manual_seed(0)  # of dropout
        answers.append(network.train()(pictures))
    torch.testing.assert_close(*answers)
    assert seen == ["first"] * 2
    second.features[2].register_forward_hook(lambda *_: seen.append("second"))
    second.features[3] = nn.Identity()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    first.eval()
    first(pictures)
    assert seen == ["first"] * 3
    assert second.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, before[name]), name
