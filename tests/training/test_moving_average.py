"""The average is PyTorch's, step by step."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mobilenetv2.network.fast_ops import choose, install
from mobilenetv2.network.first_version import FirstVersion
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training.moving_average import MovingAverage


def fast(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = MobileNetV2(num_classes=3, width=0.1, in_channels=1)
        install(network, choose(torch.device("cpu"), kind))
        return network

    return build


NETWORKS = [*map(fast, ("off", "torch", "auto")), FirstVersion]


@pytest.mark.parametrize("build", NETWORKS, ids=["stock", "torch", "auto", "first-version"])
def test_as_of_pytorch(build: Callable[[], nn.Module]) -> None:
    """Whatever trains a network changes the tensors that the average has seen."""
    torch.manual_seed(0)
    network = build()
    ours = MovingAverage(network, 0.8, from_first_weights=True)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    theirs.n_averaged.fill_(1)  # else it copies the first step
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        logits = network(torch.randn(4, 1, 28, 28))
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 1])).backward()
        optimizer.step()
        ours.update()
        theirs.update_parameters(network)
        expected, now = theirs.module.state_dict(), network.state_dict()
        for name, tensor in ours.network.state_dict().items():
            wanted = expected if tensor.is_floating_point() else now  # counts are not averaged
            torch.testing.assert_close(tensor, wanted[name], msg=name)
    weights = zip(ours.network.parameters(), network.parameters(), strict=True)
    assert not all(torch.equal(averaged, current) for averaged, current in weights)
    assert not any(one.requires_grad for one in ours.network.parameters())
    assert ours.network(torch.randn(2, 1, 28, 28)).isfinite().all()
